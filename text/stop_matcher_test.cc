#include "text/stop_matcher.h"

#include <gtest/gtest.h>

#include "text/test_util.h"

namespace agentserve::text {
namespace {

struct Outcome {
  std::string text;
  std::string match;
  bool stopped = false;
  bool operator==(const Outcome&) const = default;
  friend std::ostream& operator<<(std::ostream& out, const Outcome& o) {
    return out << "'" << o.text << "', " << (o.stopped ? "stopped by '" + o.match + "'" : "not stopped");
  }
};

Outcome RunMatcher(const std::vector<std::string>& stops, bool include, const std::vector<std::string>& chunks) {
  StopMatcher matcher(stops, include);
  Outcome out;
  for (const std::string& chunk : chunks) {
    const auto result = matcher.Feed(chunk);
    out.text += result.text;
    if (result.stopped && !out.stopped) out.match = result.match;
    out.stopped |= result.stopped;
  }
  out.text += matcher.Flush();
  return out;
}

TEST(StopMatcher, StopsAndCuts) {
  EXPECT_EQ(RunMatcher({"END"}, false, {"some EN", "D more"}), (Outcome{"some ", "END", true}));
  EXPECT_EQ(RunMatcher({"END"}, true, {"some EN", "D more"}), (Outcome{"some END", "END", true}));
  EXPECT_EQ(RunMatcher({"END"}, false, {"some EN"}), (Outcome{"some EN", "", false}));
  EXPECT_EQ(RunMatcher({"END"}, false, {"EEN", "EN", "D"}), (Outcome{"EEN", "END", true}));
  EXPECT_EQ(RunMatcher({}, false, {"a", "b"}), (Outcome{"ab", "", false}));
  EXPECT_EQ(RunMatcher({"", "b"}, false, {"ab"}), (Outcome{"a", "b", true}));
}

TEST(StopMatcher, TheMatchThatEndsFirstWinsThenTheLongest) {
  EXPECT_EQ(RunMatcher({"xabc", "ab"}, false, {"xabc"}), (Outcome{"x", "ab", true}));
  EXPECT_EQ(RunMatcher({"b", "ab"}, false, {"xab"}), (Outcome{"x", "ab", true}));
  EXPECT_EQ(RunMatcher({"abcd", "bc"}, false, {"abc"}), (Outcome{"a", "bc", true}));
}

TEST(StopMatcher, HoldsBackNoMoreThanNeeded) {
  StopMatcher matcher({"<stop>"}, false);
  EXPECT_EQ(matcher.Feed("a<b<s").text, "a<b");
  EXPECT_EQ(matcher.Feed("x").text, "<sx");
  EXPECT_EQ(matcher.Feed("<stop").text, "");
  EXPECT_EQ(matcher.Flush(), "<stop");
  EXPECT_EQ(matcher.Feed("y").text, "y");
}

TEST(StopMatcher, NothingAfterAStop) {
  StopMatcher matcher({"s"}, false);
  EXPECT_TRUE(matcher.Feed("as").stopped);
  EXPECT_EQ(matcher.Feed("more").text, "");
  EXPECT_TRUE(matcher.Feed("more").stopped);
  EXPECT_EQ(matcher.Flush(), "");
}

// Small alphabets make overlaps; the reference looks at every end in turn.
TEST(StopMatcher, MatchesReferenceHoweverCut) {
  base::SplitMix64 rng(4);
  const auto word = [&](uint64_t most) {
    std::string s;
    for (uint64_t n = rng.Below(most + 1); n > 0; --n) s += "ab\xC3\xA9"[rng.Below(2)];
    return s;
  };
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> stops;
    for (uint64_t n = rng.Below(4); n > 0; --n) stops.push_back(word(5));
    std::vector<std::string> chunks;
    std::string text;
    for (uint64_t n = rng.Below(6); n > 0; --n) {
      chunks.push_back(word(6));
      text += chunks.back();
    }
    const bool include = rng.Below(2) == 0;
    Outcome expected{text, "", false};
    for (size_t end = 1; end <= text.size() && !expected.stopped; ++end) {
      for (const std::string& stop : stops) {
        if (stop.empty() || !std::string_view(text).substr(0, end).ends_with(stop)) continue;
        if (stop.size() <= expected.match.size()) continue;
        expected = {text.substr(0, include ? end : end - stop.size()), stop, true};
      }
    }
    ASSERT_EQ(RunMatcher(stops, include, chunks), expected) << text;
  }
}

TEST(StopMatcher, KeepsCharactersWhole) {
  const std::string text = "x\xC3\xA9y\xE6\x9D\xB1z";
  StopMatcher matcher({"\xC3\xA9z", "\xE6\x9D\xB2"}, false);
  std::string out;
  for (const char* piece : {"x\xC3\xA9", "y\xE6\x9D\xB1", "z"}) {
    const std::string part = matcher.Feed(piece).text;
    EXPECT_TRUE(IsValidUtf8(part));
    out += part;
  }
  EXPECT_EQ(out + matcher.Flush(), text);
}

}  // namespace
}  // namespace agentserve::text
