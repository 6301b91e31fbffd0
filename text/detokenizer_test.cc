#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include "text/json_value.h"
#include "text/test_util.h"

namespace agentserve::text {
namespace {

const Tokenizer& Tiny() {
  static const auto* t = Tokenizer::FromJson(Slurp(TestData("tiny/tokenizer.json")), "tiny")->release();
  return *t;
}
// The fixture gives the byte b the id b.
std::vector<std::string> PushBytes(std::string_view bytes) {
  StreamingDetokenizer stream(Tiny(), true);
  std::vector<std::string> out;
  for (const char c : bytes) out.push_back(stream.Push(static_cast<uint8_t>(c)));
  out.push_back(stream.Finish());
  return out;
}
using Strings = std::vector<std::string>;
const std::string kBad(kReplacementChar);

TEST(StreamingDetokenizer, HoldsUnfinishedCharacters) {
  EXPECT_EQ(PushBytes("\xF0\x9F\x98\x80!"), (Strings{"", "", "", "\xF0\x9F\x98\x80", "!", ""}));
  EXPECT_EQ(PushBytes("\xF0\x9F\x98"), (Strings{"", "", "", kBad}));
  EXPECT_EQ(PushBytes(""), (Strings{""}));
}

TEST(StreamingDetokenizer, ReplacesAsSoonAsInvalid) {
  EXPECT_EQ(PushBytes("\xF0\x9F"
                      "a"),
            (Strings{"", "", kBad + "a", ""}));
  EXPECT_EQ(PushBytes("\xFF\x80"), (Strings{kBad, kBad, ""}));
  EXPECT_EQ(PushBytes("\xC0\xAF"), (Strings{kBad, kBad, ""}));                 // overlong
  EXPECT_EQ(PushBytes("\xED\xA0\x80"), (Strings{"", kBad + kBad, kBad, ""}));  // surrogate
  EXPECT_EQ(PushBytes("\xF4\x90"), (Strings{"", kBad + kBad, ""}));            // above U+10FFFF
  EXPECT_EQ(PushBytes("\xE6\xC3\xA9"), (Strings{"", kBad, "\xC3\xA9", ""}));
}

TEST(StreamingDetokenizer, SpecialsAndUnknownIds) {
  const uint32_t eot = *Tiny().SpecialId("<|eot_id|>");
  StreamingDetokenizer skipping(Tiny(), true), keeping(Tiny(), false);
  EXPECT_EQ(skipping.Push(eot), "");
  EXPECT_EQ(keeping.Push(eot), "<|eot_id|>");
  EXPECT_EQ(keeping.Push(UINT32_MAX), "");
  EXPECT_EQ(skipping.Push(0xC3), "");
  EXPECT_EQ(skipping.Push(eot), "");
  EXPECT_EQ(skipping.Push(0xA9), "\xC3\xA9");
}

TEST(StreamingDetokenizer, EqualsDecode) {
  base::SplitMix64 rng(8);
  for (int i = 0; i < 5000; ++i) {
    std::vector<uint32_t> ids;
    for (uint64_t n = rng.Below(30); n > 0; --n) {
      ids.push_back(
          static_cast<uint32_t>(rng.Below(2) == 0 ? 0x80 + rng.Below(0x80) : rng.Below(Tiny().vocab_size() + 3)));
    }
    const bool skip = rng.Below(2) == 0;
    StreamingDetokenizer stream(Tiny(), skip);
    std::string text;
    for (const uint32_t id : ids) {
      const std::string delta = stream.Push(id);
      ASSERT_TRUE(IsValidUtf8(delta));
      text += delta;
    }
    text += stream.Finish();
    ASSERT_EQ(text, Tiny().Decode(ids, skip));
  }
}

TEST(Utf8, Helpers) {
  EXPECT_EQ(PythonStrip(" \t\n a b \xC2\xA0\xE3\x80\x80\x1c"), "a b");
  EXPECT_EQ(PythonStrip("\xE2\x80\x8Bx\xE1\xA0\x8E"), "\xE2\x80\x8Bx\xE1\xA0\x8E");  // no white space in Python
  EXPECT_EQ(PythonStrip("  "), "");
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string s;
    AppendUtf8(c, &s);
    size_t pos = 0;
    ASSERT_TRUE(IsValidUtf8(s));
    ASSERT_EQ(NextCodePoint(s, &pos), c);
    ASSERT_EQ(pos, s.size());
    ASSERT_FALSE(IsValidUtf8(s.substr(0, s.size() - 1) + "\xFF"));
  }
}

TEST(JsonValue, PrintsFloatsAsPython) {
  EXPECT_EQ(PythonFloatRepr(0.1), "0.1");
  EXPECT_EQ(PythonFloatRepr(1e15), "1000000000000000.0");
  EXPECT_EQ(PythonFloatRepr(1e16), "1e+16");
  EXPECT_EQ(PythonFloatRepr(1e-5), "1e-05");
  EXPECT_EQ(PythonFloatRepr(0.0001), "0.0001");
  EXPECT_EQ(PythonFloatRepr(-0.0), "-0.0");
  EXPECT_EQ(PythonFloatRepr(123456789.125), "123456789.125");
  EXPECT_EQ(PythonFloatRepr(5e-324), "5e-324");
}

}  // namespace
}  // namespace agentserve::text
