#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <thread>

#include "base/strings.h"
#include "text/detokenizer.h"
#include "text/json_value.h"
#include "text/llama3_scanner.h"
#include "text/pretokenizer.h"
#include "text/test_util.h"
#include "text/tokenizer_spec.h"

namespace agentserve::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<uint32_t>;

std::unique_ptr<Tokenizer> Tiny() {
  auto t = Tokenizer::FromJson(Slurp(TestData("tiny/tokenizer.json")), "tiny/tokenizer.json");
  EXPECT_TRUE(t.ok()) << t.status();
  return *std::move(t);
}

// An independent, slow encoder: merges and vocabulary straight from the tree of the file, pieces from PCRE2, quadratic
// merging over strings.
class SlowEncoder {
 public:
  explicit SlowEncoder(const std::string& json) {
    auto root = ParseJson(json, "reference");
    EXPECT_TRUE(root.ok());
    const JsonValue& model = *root->Find("model");
    ignore_merges_ = model.Find("ignore_merges")->boolean;
    for (const auto& [token, id] : model.Find("vocab")->members) vocab_[token] = static_cast<uint32_t>(id.number);
    for (const JsonValue& m : model.Find("merges")->items) {
      std::pair<std::string, std::string> pair;
      if (m.is_string()) {
        const size_t space = m.string.find(' ');
        pair = {m.string.substr(0, space), m.string.substr(space + 1)};
      } else {
        pair = {m.items[0].string, m.items[1].string};
      }
      ranks_.emplace(pair, ranks_.size());
    }
    for (uint32_t b = 0, shifted = 0x100; b < 256; ++b) {
      const bool self = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
      AppendUtf8(self ? b : shifted++, &alphabet_[b]);
    }
    pre_ = *PreTokenizer::Create(kLlama3Pattern, "reference", /*always_regex=*/true);
  }

  Ids Encode(const std::string& text) const {
    Ids ids;
    PieceReader reader(*pre_, text);
    std::string_view piece;
    while (reader.Next(&piece)) EncodePiece(piece, &ids);
    return ids;
  }

 private:
  void EncodePiece(std::string_view piece, Ids* ids) const {
    std::vector<std::string> parts;
    std::string whole;
    for (const char c : piece) {
      parts.push_back(alphabet_[static_cast<uint8_t>(c)]);
      whole += parts.back();
    }
    if (ignore_merges_ && vocab_.contains(whole)) {
      ids->push_back(vocab_.at(whole));
      return;
    }
    while (true) {
      size_t best = 0, best_rank = SIZE_MAX;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto it = ranks_.find({parts[i], parts[i + 1]});
        if (it != ranks_.end() && it->second < best_rank) best = i, best_rank = it->second;
      }
      if (best_rank == SIZE_MAX) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    for (const std::string& part : parts) ids->push_back(vocab_.at(part));
  }
  bool ignore_merges_ = false;
  std::map<std::string, uint32_t> vocab_;
  std::map<std::pair<std::string, std::string>, size_t> ranks_;
  std::array<std::string, 256> alphabet_;
  std::unique_ptr<PreTokenizer> pre_;
};

TEST(Tokenizer, KnowsSpecialsAndBytes) {
  const auto t = Tiny();
  EXPECT_EQ(t->SpecialId("<|begin_of_text|>"), t->bos());
  ASSERT_TRUE(t->SpecialId("<|eot_id|>").has_value());
  EXPECT_TRUE(t->IsSpecial(*t->SpecialId("<|eot_id|>")));
  EXPECT_EQ(t->TokenBytes(*t->SpecialId("<|eot_id|>")), "<|eot_id|>");
  EXPECT_FALSE(t->SpecialId("the").has_value());
  EXPECT_FALSE(t->IsSpecial(0));
  EXPECT_EQ(t->TokenBytes(0), std::string_view("\0", 1));
  EXPECT_EQ(t->TokenBytes(t->vocab_size()), "");
  EXPECT_EQ(t->TokenBytes(UINT32_MAX), "");
  EXPECT_FALSE(t->IsSpecial(UINT32_MAX));
  EXPECT_EQ(t->added_tokens().size(), 256u);
  EXPECT_EQ(t->hash().size(), 64u);
  EXPECT_EQ(t->Encode("").size(), 0u);
}

TEST(Tokenizer, SpecialsAreOnlyParsedWhenAsked) {
  const auto t = Tiny();
  const std::string text = "a<|eot_id|><|eot_id|>b<|eot_id<|reserved_special_token_1|><|reserved_special_token_11|>";
  for (const uint32_t id : t->Encode(text)) EXPECT_FALSE(t->IsSpecial(id));
  EXPECT_EQ(t->Decode(t->Encode(text), true), text);
  const Ids ids = t->EncodeParsingSpecials(text);
  EXPECT_EQ(std::count_if(ids.begin(), ids.end(), [&](uint32_t id) { return t->IsSpecial(id); }), 4);
  EXPECT_EQ(t->Decode(ids, false), text);
  EXPECT_EQ(t->Decode(ids, true), "ab<|eot_id");
}

TEST(Tokenizer, MatchesSlowReferenceOnRandomText) {
  const std::string json = Slurp(TestData("tiny/tokenizer.json"));
  const auto t = Tiny();
  const SlowEncoder slow(json);
  base::SplitMix64 rng(20261122);
  for (int i = 0; i < 4000; ++i) {
    const std::string text = RandomText(&rng, 24);
    const Ids ids = t->Encode(text);
    ASSERT_EQ(ids, slow.Encode(text)) << "case " << i << ": " << QuoteForError(text);
    ASSERT_EQ(t->Decode(ids, false), text);
    StreamingDetokenizer stream(*t, true);
    std::string streamed;
    for (const uint32_t id : ids) {
      const std::string delta = stream.Push(id);
      ASSERT_TRUE(IsValidUtf8(delta));
      streamed += delta;
    }
    ASSERT_EQ(streamed + stream.Finish(), text);
  }
}

TEST(Tokenizer, BundledModelMatchesSlowReference) {
  const std::string dir = TestData("../../models/tiny-agent");
  ASSERT_TRUE(Exists(dir)) << dir;
  const auto t = Tokenizer::Load(dir);
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_TRUE((*t)->bos().has_value());
  const SlowEncoder slow(Slurp(dir + "/tokenizer.json"));
  base::SplitMix64 rng(12);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = RandomText(&rng, 24);
    const Ids ids = (*t)->Encode(text);
    ASSERT_EQ(ids, slow.Encode(text)) << "case " << i << ": " << QuoteForError(text);
    ASSERT_EQ((*t)->Decode(ids, false), text);
  }
}

TEST(Tokenizer, ScannerEqualsPattern) {
  const auto scan = *PreTokenizer::Create(kLlama3Pattern, "test");
  const auto regex = *PreTokenizer::Create(kLlama3Pattern, "test", /*always_regex=*/true);
  const auto split = [](const PreTokenizer& pre, const std::string& text) {
    std::vector<std::string> pieces;
    PieceReader reader(pre, text);
    std::string_view piece;
    while (reader.Next(&piece)) pieces.emplace_back(piece);
    return pieces;
  };
  base::SplitMix64 rng(7);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = RandomText(&rng, 16);
    ASSERT_EQ(split(*scan, text), split(*regex, text)) << "case " << i << ": " << QuoteForError(text);
  }
  // Every character, in surroundings that tell the classes apart.
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text = "a";
    AppendUtf8(c, &text);
    AppendUtf8(c, &text);
    text += "b1";
    AppendUtf8(c, &text);
    text += "2!";
    AppendUtf8(c, &text);
    text += "\n";
    ASSERT_EQ(split(*scan, text), split(*regex, text)) << std::hex << c;
  }
}

TEST(Tokenizer, GapsOfAPatternArePieces) {
  const auto pre = *PreTokenizer::Create("\\d+", "test");
  PieceReader reader(*pre, "ab12c3");
  std::vector<std::string> pieces;
  std::string_view piece;
  while (reader.Next(&piece)) pieces.emplace_back(piece);
  EXPECT_THAT(pieces, ElementsAre("ab", "12", "c", "3"));
  EXPECT_FALSE(PreTokenizer::Create("(", "file: field").ok());
}

TEST(Tokenizer, LongPiecesAreNotQuadratic) {
  const auto t = Tiny();
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& text :
       {std::string(1 << 20, 'e'), std::string(1 << 20, ' '), std::string(1 << 20, '\n'), std::string(1 << 20, '<')}) {
    EXPECT_EQ(t->Decode(t->Encode(text), false), text);
    EXPECT_EQ(t->Decode(t->EncodeParsingSpecials(text), false), text);
  }
  // Quadratic merging would take hours; sanitizers and load make seconds.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(Tokenizer, InvalidUtf8IsReadAsReplacementCharacters) {
  const auto t = Tiny();
  EXPECT_EQ(t->Encode("a\xFF\xC3"), t->Encode("a\xEF\xBF\xBD\xEF\xBF\xBD"));
}

TEST(Tokenizer, TiktokenAgreesWithMergeByRank) {
  auto loaded = Tokenizer::FromTiktoken(Slurp(TestData("tiny/tokenizer.model")), "tokenizer.model");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& t = **loaded;
  std::map<std::string, uint32_t> ranks;
  for (uint32_t id = 0; id < t.vocab_size() - 256; ++id) ranks[std::string(t.TokenBytes(id))] = id;
  EXPECT_EQ(t.SpecialId("<|begin_of_text|>"), t.vocab_size() - 256);
  EXPECT_EQ(t.SpecialId("<|reserved_special_token_247|>"), t.vocab_size() - 1);
  EXPECT_EQ(t.bos(), t.SpecialId("<|begin_of_text|>"));
  const auto pre = *PreTokenizer::Create(kLlama3Pattern, "test", true);
  base::SplitMix64 rng(3);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = RandomText(&rng, 16);
    Ids expected;
    PieceReader reader(*pre, text);
    std::string_view piece;
    while (reader.Next(&piece)) {
      std::vector<std::string> parts;
      for (const char c : piece) parts.emplace_back(1, c);
      if (ranks.contains(std::string(piece))) parts = {std::string(piece)};
      while (true) {
        size_t best = 0;
        uint32_t best_rank = UINT32_MAX;
        for (size_t k = 0; k + 1 < parts.size(); ++k) {
          const auto it = ranks.find(parts[k] + parts[k + 1]);
          if (it != ranks.end() && it->second < best_rank) best = k, best_rank = it->second;
        }
        if (best_rank == UINT32_MAX) break;
        parts[best] += parts[best + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      }
      for (const auto& part : parts) expected.push_back(ranks.at(part));
    }
    ASSERT_EQ(t.Encode(text), expected) << QuoteForError(text);
  }
}

TEST(Tokenizer, ConcurrentUse) {
  const auto t = Tiny();
  const std::string text = "Shall I compare thee to a summer's day? \xF0\x9F\x98\x80";
  const Ids expected = t->Encode(text);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 200; ++k) wrong += t->Encode(text) != expected || t->Decode(expected, true) != text;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// --- The real vocabulary, where its files are at hand ---

const char kNoData[] = "SKIPPED: the Llama 3 tokenizer is not at hand (set AGENTSERVE_SHARED_DATA): ";

struct Vector {
  std::string text;
  Ids ids;
};
std::vector<Vector> ReadVectors(const std::string& path) {
  std::vector<Vector> vectors;
  std::istringstream lines(Slurp(path));
  for (std::string line; std::getline(lines, line);) {
    const auto v = ParseJson(line, path);
    EXPECT_TRUE(v.ok()) << v.status();
    vectors.push_back({v->Find("text")->string, {}});
    for (const JsonValue& id : v->Find("ids")->items) vectors.back().ids.push_back(static_cast<uint32_t>(id.number));
  }
  return vectors;
}

const Tokenizer* RealTokenizer() {
  static const auto* tokenizer = [] {
    auto t = Tokenizer::Load(SharedData("llama3-tokenizer"));
    EXPECT_TRUE(t.ok()) << t.status();
    return t->release();
  }();
  return tokenizer;
}

TEST(Llama3Tokenizer, Vectors) {
  const std::string dir = SharedData("llama3-tokenizer");
  if (!Exists(dir)) GTEST_SKIP() << kNoData << dir;
  const Tokenizer& t = *RealTokenizer();
  EXPECT_EQ(t.vocab_size(), 128256u);
  EXPECT_EQ(t.bos(), 128000u);
  const auto vectors = ReadVectors(dir + "/vectors.jsonl");
  EXPECT_EQ(vectors.size(), 300u);
  for (const Vector& v : vectors) {
    EXPECT_EQ(t.Encode(v.text), v.ids) << QuoteForError(v.text);
    EXPECT_EQ(t.Decode(v.ids, false), v.text);
  }
  const auto special = ReadVectors(dir + "/vectors-special.jsonl");
  EXPECT_EQ(special.size(), 12u);
  for (const Vector& v : special) {
    EXPECT_EQ(t.EncodeParsingSpecials(v.text), v.ids) << QuoteForError(v.text);
    EXPECT_EQ(t.Decode(v.ids, false), v.text);
  }
}

TEST(Llama3Tokenizer, MatchesSlowReference) {
  const std::string dir = SharedData("llama3-tokenizer");
  if (!Exists(dir)) GTEST_SKIP() << kNoData << dir;
  const SlowEncoder slow(Slurp(dir + "/tokenizer.json"));
  base::SplitMix64 rng(11);
  for (int i = 0; i < 1500; ++i) {
    const std::string text = RandomText(&rng, 24);
    ASSERT_EQ(RealTokenizer()->Encode(text), slow.Encode(text)) << "case " << i << ": " << QuoteForError(text);
  }
}

std::string Base64(std::string_view s) {
  const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < s.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (i + k < s.size() ? static_cast<uint8_t>(s[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out.push_back(i + k > s.size() ? '=' : digits[bits >> (18 - 6 * k) & 63]);
  }
  return out;
}

TEST(Llama3Tokenizer, TiktokenLayoutGivesTheSameIds) {
  const std::string dir = SharedData("llama3-tokenizer");
  if (!Exists(dir)) GTEST_SKIP() << kNoData << dir;
  const Tokenizer& json = *RealTokenizer();
  std::string lines;
  for (uint32_t id = 0; id < 128000; ++id) base::StrAppend(&lines, Base64(json.TokenBytes(id)), " ", id, "\n");
  auto tiktoken = Tokenizer::FromTiktoken(lines, "tokenizer.model");
  ASSERT_TRUE(tiktoken.ok()) << tiktoken.status();
  for (uint32_t id = 128000; id < 128256; ++id) EXPECT_EQ((*tiktoken)->TokenBytes(id), json.TokenBytes(id));
  for (const Vector& v : ReadVectors(dir + "/vectors.jsonl")) EXPECT_EQ((*tiktoken)->Encode(v.text), v.ids);
  base::SplitMix64 rng(5);
  for (int i = 0; i < 5000; ++i) {
    const std::string text = RandomText(&rng, 24);
    ASSERT_EQ((*tiktoken)->Encode(text), json.Encode(text)) << QuoteForError(text);
  }
}

}  // namespace
}  // namespace agentserve::text
