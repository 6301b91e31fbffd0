#include "text/tool_call_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "text/json_value.h"
#include "text/test_util.h"

namespace agentserve::text {
namespace {

using Kind = ToolEvent::Kind;

// Joins neighbours that only differ in where the input was cut.
std::vector<ToolEvent> Joined(const std::vector<ToolEvent>& events) {
  std::vector<ToolEvent> out;
  for (const ToolEvent& e : events) {
    const bool text = e.kind == Kind::kContent || e.kind == Kind::kArguments;
    if (text && !out.empty() && out.back().kind == e.kind && out.back().index == e.index) {
      out.back().text += e.text;
    } else {
      out.push_back(e);
    }
  }
  return out;
}

ToolParserOptions Options() { return {.tool_names = {"get_weather", "add", "a.b-c", "get"}, .id_seed = 7}; }

std::vector<ToolEvent> Parse(const std::string& text, const std::vector<size_t>& cuts = {},
                             ToolParserOptions options = Options()) {
  ToolCallParser parser(std::move(options));
  std::vector<ToolEvent> events;
  const auto add = [&](std::vector<ToolEvent> more) { events.insert(events.end(), more.begin(), more.end()); };
  size_t from = 0;
  for (const size_t cut : cuts) {
    add(parser.Feed(std::string_view(text).substr(from, cut - from)));
    from = cut;
  }
  add(parser.Feed(std::string_view(text).substr(from)));
  add(parser.Finish());
  return Joined(events);
}

// "content|NAME(arguments)|content"; an incomplete call ends in "!" instead of ")".
std::string Shape(const std::vector<ToolEvent>& events) {
  std::string out;
  for (const ToolEvent& e : events) {
    switch (e.kind) {
      case Kind::kContent:
        out += (out.empty() ? "" : "|") + e.text;
        break;
      case Kind::kCallStart:
        out += (out.empty() ? "" : "|") + e.name + "(";
        break;
      case Kind::kArguments:
        out += e.text;
        break;
      case Kind::kCallEnd:
        out += e.complete ? ")" : "!";
        break;
    }
  }
  return out;
}

struct Case {
  std::string text, shape;
};

const std::vector<Case>& Cases() {
  static const auto* cases = new std::vector<Case>{
      // No call.
      {"", ""},
      {"Hello {world} [1] <b>", "Hello {world} [1] <b>"},
      {"{\"name\": \"unknown\", \"parameters\": {}}", "{\"name\": \"unknown\", \"parameters\": {}}"},
      {"{\"name\": \"get_weather_now\", \"parameters\": {}}", "{\"name\": \"get_weather_now\", \"parameters\": {}}"},
      {"{\"names\": \"add\"}", "{\"names\": \"add\"}"},
      {"{\"name\": 1}", "{\"name\": 1}"},
      {"{\"name\": \"add\", \"parameters\": [1]}", "{\"name\": \"add\", \"parameters\": [1]}"},
      {"{\"parameters\": {\"a\": 1}}", "{\"parameters\": {\"a\": 1}}"},
      {"{\"parameters\": {\"a\": 1}, \"name\": \"nope\"}", "{\"parameters\": {\"a\": 1}, \"name\": \"nope\"}"},
      {"{\"name\": \"add\"", "{\"name\": \"add\""},
      {"<|python_tag|>print(1)", "<|python_tag|>print(1)"},
      {"<|python_t", "<|python_t"},
      {"[add]", "[add]"},
      {"[adder(1)]", "[adder(1)]"},
      {"[ ]", "[ ]"},
      {"{}", "{}"},
      {"a <|eot_id|> b", "a <|eot_id|> b"},
      // JSON.
      {"{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": \"x\"}}", "add({\"a\": 1, \"b\": \"x\"})"},
      {"{\"name\":\"add\",\"arguments\":{}}", "add({})"},
      {" {\"name\": \"get\", \"parameters\": {\"q\": \"{[<\"}} ", " |get({\"q\": \"{[<\"})"},
      {"Sure. {\"name\": \"add\", \"parameters\": {}}", "Sure. |add({})"},
      {"<|python_tag|>{\"name\": \"add\", \"parameters\": {}}<|eom_id|>", "add({})"},
      {"x<|python_tag|> {\"name\": \"add\", \"parameters\": {}}<|eot_id|>\n", "x|add({})"},
      {"<|<|python_tag|>{\"name\": \"add\"}", "<||add({})"},
      {"{\"name\": \"add\"}", "add({})"},
      {"{\"name\": \"add\", \"parameters\": null}", "add({})"},
      {"{\"parameters\": {\"a\": 1}, \"name\": \"add\"}", "add({\"a\": 1})"},
      {"{\"type\": \"function\", \"name\": \"add\", \"parameters\": {\"a\": 1}}", "add({\"a\": 1})"},
      {"{\"type\": \"function\", \"function\": \"add\", \"parameters\": {\"a\": 1}}", "add({\"a\": 1})"},
      {"{\"id\": \"7\", \"function\": {\"name\": \"add\", \"arguments\": {\"a\": 1}}, \"type\": \"function\"}",
       "add({\"a\": 1})"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": {\"b\": [1, [], {}]}}}done",
       "add({\"a\": {\"b\": [1, [], {}]}})|done"},
      {"{ {\"name\": \"add\"}", "{ |add({})"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": 1}", "add({\"a\": 1})"},  // the last brace is often forgotten
      {"{\"name\": \"add\", \"parameters\": {\"a\": 1}}}", "add({\"a\": 1})|}"},
      // Several.
      {"{\"name\": \"add\"}; {\"name\": \"get\", \"parameters\": {\"x\": 2}}", "add({})|get({\"x\": 2})"},
      {"{\"name\": \"add\"}\n{\"name\": \"get\"} ;\n", "add({})|get({})"},
      {"[{\"name\": \"add\"}, {\"name\": \"get\", \"parameters\": {}}]", "add({})|get({})"},
      {"[ {\"name\": \"add\"} ]\nok", "add({})|\nok"},
      {"{\"name\": \"add\"}; and", "add({})|; and"},
      {"{\"name\": \"add\"}; {\"name\": \"nope\"}", "add({})|; {\"name\": \"nope\"}"},
      // Pythonic.
      {"[add(a=1, b=\"x\")]", "add({\"a\": 1, \"b\": \"x\"})"},
      {"[add(a = 1,b = -2.5e3 , ), get()]", "add({\"a\": 1, \"b\": -2.5e3})|get({})"},
      {"[a.b-c(x='it\\'s \"q\"', y=True, z=None, w=[1, {'k': 'v'}, ])]",
       "a.b-c({\"x\": \"it's \\\"q\\\"\", \"y\": true, \"z\": null, \"w\": [1, {\"k\": \"v\"}]})"},
      {"Now [get(q=\"\xE6\x9D\xB1\xE4\xBA\xAC\")]", "Now |get({\"q\": \"\xE6\x9D\xB1\xE4\xBA\xAC\"})"},
      {"[get()", "get({})"},
      // Repairs.
      {"{\"name\": \"add\", \"parameters\": {\"a\": \"l1\nl2\tx\", \"b\": True,}}",
       "add({\"a\": \"l1\\nl2\\tx\", \"b\": true})"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": \"\\ud83d\\ude00 \\ud83d \\ude00 \\ud83d\\ud83d\\ude00\"}}",
       "add({\"a\": \"\\ud83d\\ude00 \\ufffd \\ufffd \\ufffd\\ud83d\\ude00\"})"},
  };
  return *cases;
}

// Broken off or malformed: a prefix, and the rest as content.
const std::vector<Case>& BrokenCases() {
  static const auto* cases = new std::vector<Case>{
      {"{\"name\": \"add\", \"parameters\": {\"a\": \"/etc/pas", "add({\"a\": \"/etc/pas!"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": tru", "add({\"a\": !"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": 1,", "add({\"a\": 1!"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": 1 2}}", "add({\"a\": 1 !|2}}"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": trux}}", "add({\"a\": !|trux}}"},
      {"{\"name\": \"add\", \"parameters\": {\"a\": 01}}", "add({\"a\": 0!|1}}"},
      {"{\"name\": \"add\", \"parameters\": {a: 1}}", "add({!|a: 1}}"},
      {"[add(1)]", "add({!|1)]"},
      {"[add(a=1 b=2)]", "add({\"a\": 1!| b=2)]"},
      {"[add(a=x)]", "add({\"a\": !|x)]"},
  };
  return *cases;
}

TEST(ToolCallParser, Cases) {
  for (const Case& c : Cases()) EXPECT_EQ(Shape(Parse(c.text)), c.shape) << c.text;
  for (const Case& c : BrokenCases()) EXPECT_EQ(Shape(Parse(c.text)), c.shape) << c.text;
}

TEST(ToolCallParser, CutsDoNotMatter) {
  std::vector<Case> cases = Cases();
  cases.insert(cases.end(), BrokenCases().begin(), BrokenCases().end());
  for (const Case& c : cases) {
    const auto whole = Parse(c.text);
    std::vector<size_t> every;
    for (size_t i = 1; i < c.text.size(); ++i) {
      EXPECT_EQ(Parse(c.text, {i}), whole) << c.text << " cut at " << i;
      every.push_back(i);
    }
    EXPECT_EQ(Parse(c.text, every), whole) << c.text;
  }
}

TEST(ToolCallParser, IdsAreDeterministicAndDistinct) {
  const std::string two = "[{\"name\": \"add\"}, {\"name\": \"add\"}]";
  std::set<std::string> ids;
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}}) {
    ToolParserOptions options = Options();
    options.id_seed = seed;
    EXPECT_EQ(Parse(two, {}, options), Parse(two, {}, options));
    for (const ToolEvent& e : Parse(two, {}, options)) {
      if (e.kind != Kind::kCallStart) continue;
      EXPECT_EQ(e.id.size(), 29u);
      EXPECT_TRUE(e.id.starts_with("call_"));
      EXPECT_EQ(e.id.find_first_not_of("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 5),
                std::string::npos);
      ids.insert(e.id);
    }
  }
  EXPECT_EQ(ids.size(), 4u);
}

TEST(ToolCallParser, OnlyTheFirstCallIfAsked) {
  ToolParserOptions options = Options();
  options.parallel_calls = false;
  EXPECT_EQ(Shape(Parse("[{\"name\": \"add\"}, {\"name\": \"get\", \"parameters\": {\"x\": 2}}]", {}, options)),
            "add({})");
  EXPECT_EQ(Shape(Parse("[add(a=1), get(b=[1,2])]", {}, options)), "add({\"a\": 1})");
}

TEST(ToolCallParser, WithoutToolsAllIsContent) {
  const std::string text = "{\"name\": \"add\", \"parameters\": {}} <|python_tag|>";
  EXPECT_EQ(Shape(Parse(text, {}, {})), text);
}

TEST(ToolCallParser, ArgumentsStream) {
  ToolCallParser parser(Options());
  EXPECT_TRUE(parser.Feed("{\"name\": \"add\", \"parameters\": ").empty());
  auto events = parser.Feed("{\"a\": \"long te");
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, Kind::kCallStart);
  EXPECT_EQ(events[1].text, "{\"a\": \"long te");
  events = parser.Feed("xt");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].text, "xt");
  EXPECT_EQ(parser.calls(), 1u);
  EXPECT_EQ(parser.complete_calls(), 0u);
  parser.Feed("\"}");
  EXPECT_EQ(parser.complete_calls(), 1u);
}

TEST(ToolCallParser, HeldTextIsBounded) {
  // Arguments before the name, longer than what is held: content, all of it.
  const std::string text = "{\"parameters\": {\"a\": \"" + std::string(300000, 'x') + "\"}, \"name\": \"add\"}";
  EXPECT_EQ(Shape(Parse(text)), text);
  const std::string deep = "{\"name\": \"add\", \"parameters\": {\"a\": " + std::string(1000, '[');
  const auto events = Parse(deep);
  EXPECT_EQ(events.back().kind, Kind::kContent);
}

// Text put together of pieces of syntax: cuts do not matter, complete calls are JSON objects, incomplete ones are not.
TEST(ToolCallParser, RandomText) {
  // One piece a line.
  std::istringstream lines(
      "{\n}\n[\n]\n\"\n\"name\"\n: \n\"add\"\n\"parameters\"\n\"get\"\n, \n; "
      "\n1\n-0.5\ntrue\nNone\nnull\n\\\n\\u\nd83d\nde00\n"
      "'\nadd\n(\n)\n=\na\n<|python_tag|>\n<|eom_id|>\n<|\n\t\n\x01\n\xC3\xA9\n\"type\"\n\"function\"\n"
      "{\"name\": \"add\", \"parameters\": {\n{\"a\": \n[add(a=\n}}");
  std::vector<std::string> pieces;
  for (std::string line; std::getline(lines, line);) pieces.push_back(line);
  base::SplitMix64 rng(99);
  int complete = 0, incomplete = 0;
  for (int i = 0; i < 60000; ++i) {
    std::string text;
    for (uint64_t n = rng.Below(24); n > 0; --n) text += pieces[rng.Below(pieces.size())];
    const auto whole = Parse(text);
    std::vector<size_t> every;
    for (size_t k = 1; k < text.size(); ++k) every.push_back(k);
    ASSERT_EQ(Parse(text, every), whole) << text;
    std::string arguments, out;
    for (const ToolEvent& e : whole) {
      if (e.kind == Kind::kCallStart) arguments.clear();
      if (e.kind == Kind::kArguments) arguments += e.text;
      if (e.kind == Kind::kContent) out += e.text;
      if (e.kind != Kind::kCallEnd) continue;
      const auto json = ParseJson(arguments, "arguments");
      const bool object = json.ok() && json->is_object();
      ASSERT_EQ(object, e.complete) << text << "\n" << arguments << "\n" << json.status();
      ++(e.complete ? complete : incomplete);
    }
    if (whole.size() == 1 && whole[0].kind == Kind::kContent) {
      ASSERT_EQ(out, text);
    }
    // Content is a subsequence of the text: in order, nothing made up.
    size_t at = 0;
    for (const char c : out) {
      at = text.find(c, at);
      ASSERT_NE(at, std::string::npos) << text << "\n" << out;
      ++at;
    }
  }
  EXPECT_GT(complete, 100);
  EXPECT_GT(incomplete, 100);
}

}  // namespace
}  // namespace agentserve::text
