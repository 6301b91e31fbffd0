#include "gateway/json_util.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/strings.h"

namespace agentserve::gateway {
namespace {

TEST(ParseJson, Torture) {
  for (const char* bad : {"",
                          " ",
                          "{",
                          "[1,",
                          "{\"a\":}",
                          "{\"a\" 1}",
                          "nul",
                          "tru",
                          "01",
                          "1.",
                          ".5",
                          "+1",
                          "NaN",
                          "Infinity",
                          "1e309",
                          "-1e309",
                          "\"\\x\"",
                          "\"\\u12\"",
                          "\"\xFF\"",
                          "\"\xC0\xAF\"",
                          "\"\xED\xA0\x80\"",
                          "[1]]",
                          "{}{}",
                          "{'a':1}",
                          "{\"a\":1,}",
                          "[1,]",
                          "\"\t\"",
                          "\"\\uD800\"",
                          "// x\n1",
                          "\xEF\xBB\xBF"
                          "x"}) {
    const auto r = ParseJson(bad, 64, 1000);
    EXPECT_FALSE(r.ok()) << bad;
    EXPECT_LT(r.status().message().size(), 400U);
  }
  for (const char* good :
       {"{}", "[]", "0", "-0", "1e308", "\"\\uD83D\\uDE00\"", " {\"a\" : [ 1 , null ] } ", "{\"a\":1,\"a\":2}"}) {
    EXPECT_TRUE(ParseJson(good, 64, 1000).ok()) << good;
  }
  EXPECT_EQ((*ParseJson("{\"a\":1,\"a\":2}", 64, 1000))["a"], 2) << "the last one counts";
}

TEST(ParseJson, DepthAndSizeAreBounded) {
  const std::string deep = std::string(64, '[') + std::string(64, ']');
  EXPECT_TRUE(ParseJson(deep, 64, 1000).ok());
  EXPECT_FALSE(ParseJson(deep, 63, 1000).ok());
  EXPECT_FALSE(ParseJson(std::string(1'000'000, '['), 64, 10'000'000).ok());
  EXPECT_TRUE(ParseJson("\"[[[[[[[[\\\"[[[\"", 2, 10).ok()) << "brackets inside strings do not count";
  EXPECT_FALSE(ParseJson("[1,2,3,4,5,6,7,8,9,10]", 64, 10).ok());
}

TEST(RawTopLevelMember, FindsTheTextOfAValue) {
  const std::string body =
      R"( { "a" : {"tools":[9]} , "tools" : [ {"z":1, "b":"]"} ] ,"s":"x\"y","n":-1.5e3,"tools2":null } )";
  EXPECT_EQ(RawTopLevelMember(body, "tools"), R"([ {"z":1, "b":"]"} ])");
  EXPECT_EQ(RawTopLevelMember(body, "s"), R"("x\"y")");
  EXPECT_EQ(RawTopLevelMember(body, "n"), "-1.5e3");
  EXPECT_EQ(RawTopLevelMember(body, "tools2"), "null");
  EXPECT_EQ(RawTopLevelMember(body, "absent"), std::nullopt);
  EXPECT_EQ(RawTopLevelMember(R"({"a":1,"a":2})", "a"), "2");
  EXPECT_EQ(RawTopLevelMember("[1]", "a"), std::nullopt);
}

TEST(AppendJsonString, RoundTripsEveryByte) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  all += "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  EXPECT_EQ(Json::parse(JsonString(all)), all);
  EXPECT_EQ(Json::parse(JsonString("a\xFF"
                                   "b\xC3")),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD");
}

TEST(AppendJsonNumber, NeverWritesWhatJsonLacks) {
  std::string out;
  AppendJsonNumber(&out, std::numeric_limits<double>::quiet_NaN());
  AppendJsonNumber(&out, -std::numeric_limits<double>::infinity());
  EXPECT_EQ(out, "-9999-9999");
}

TEST(CompleteUtf8Prefix, CutsOnlyUnfinishedCharacters) {
  EXPECT_EQ(CompleteUtf8Prefix("abc"), 3U);
  EXPECT_EQ(CompleteUtf8Prefix("a\xE2\x82"), 1U);
  EXPECT_EQ(CompleteUtf8Prefix("a\xE2\x82\xAC"), 4U);
  EXPECT_EQ(CompleteUtf8Prefix("\xF0\x9F\x98"), 0U);
  EXPECT_EQ(CompleteUtf8Prefix("\x80\x80\x80\x80"), 4U) << "not the begin of anything";
  EXPECT_EQ(Shorten("abcdef", 3), "abc...");
}

}  // namespace
}  // namespace agentserve::gateway
