#include "tools/demo/demo.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "tools/cli/bench/fake_server_for_test.h"
#include "tools/demo/chat_stream.h"
#include "tools/demo/expression.h"
#include "tools/demo/toolbox.h"

namespace agentserve::tools {
namespace {

using nlohmann::json;

TEST(Expression, Values) {
  EXPECT_DOUBLE_EQ(*EvaluateExpression("1234 * 5678"), 7006652);
  EXPECT_DOUBLE_EQ(*EvaluateExpression("2+3*4"), 14);
  EXPECT_DOUBLE_EQ(*EvaluateExpression("(2+3)*4 - -1"), 21);
  EXPECT_DOUBLE_EQ(*EvaluateExpression("10/4/5"), 0.5);
  EXPECT_DOUBLE_EQ(*EvaluateExpression("8 - 3 - 2"), 3);
}
TEST(Expression, Refusals) {
  for (const char* bad : {"", "1 +", "2 3", "1..2", "(1", "1)", "a", "1/0", "9e9", "*2", "inf"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(EvaluateExpression(bad).status())) << bad;
  }
  EXPECT_FALSE(EvaluateExpression(std::string(100, '(') + "1" + std::string(100, ')')).ok());
  EXPECT_FALSE(EvaluateExpression(std::string(300, '1')).ok());
  EXPECT_NE(EvaluateExpression("1 + x").status().message().find("byte 4"), std::string::npos);
}

class ToolboxTest : public ::testing::Test {
 protected:
  ToolboxTest() {
    std::string path = (std::filesystem::temp_directory_path() / "toolbox-test-XXXXXX").string();
    root_ = mkdtemp(path.data());
    std::filesystem::create_directory(root_ / "notes");
    for (const char* name : {"b.txt", "a.txt"}) std::ofstream(root_ / "notes" / name) << "x";
  }
  ~ToolboxTest() override { std::filesystem::remove_all(root_); }
  std::filesystem::path root_;
};

TEST_F(ToolboxTest, Runs) {
  const Toolbox tools(root_.string());
  EXPECT_EQ(tools.Execute("calculator", R"({"expression":"6 * 7"})")->content, "42");
  EXPECT_EQ(tools.Execute("calculator", R"({"expression":"1 / 8"})")->content, "0.125");
  EXPECT_EQ(tools.Execute("get_weather", R"({"city":"Oslo"})")->content, R"({"temperature":14,"condition":"rainy"})");
  const auto files = tools.Execute("list_files", R"({"path":"/notes"})");
  EXPECT_EQ(files->content, "a.txt, b.txt");
  EXPECT_EQ(files->mentions, (std::vector<std::string>{"a.txt", "b.txt"}));
}
TEST_F(ToolboxTest, RefusesWhatTheModelGotWrong) {
  const Toolbox tools(root_.string());
  const std::pair<const char*, const char*> wrong[] = {{"nothing", "{}"},
                                                       {"calculator", "{"},
                                                       {"calculator", "[]"},
                                                       {"calculator", "{}"},
                                                       {"calculator", R"({"expression":3})"},
                                                       {"get_weather", R"({"city":"Oslo","unit":"kelvin"})"},
                                                       {"list_files", R"({"path":"../.."})"},
                                                       {"list_files", R"({"path":"/notes/../../etc"})"}};
  for (const auto& [name, arguments] : wrong) {
    EXPECT_TRUE(absl::IsInvalidArgument(tools.Execute(name, arguments).status())) << name << " " << arguments;
  }
  EXPECT_TRUE(absl::IsNotFound(tools.Execute("get_weather", R"({"city":"Atlantis"})").status()));
  EXPECT_TRUE(absl::IsNotFound(tools.Execute("list_files", R"({"path":"/none"})").status()));
}

std::string Chunk(const json& delta, const char* finish = nullptr) {
  json choice = {{"index", 0}, {"delta", delta}, {"finish_reason", nullptr}};
  if (finish != nullptr) choice["finish_reason"] = finish;
  return json{{"choices", {choice}}}.dump();
}

TEST(TurnBuilder, JoinsTextAndCalls) {
  std::string shown;
  TurnBuilder b([&](std::string_view t) { shown += t; });
  EXPECT_TRUE(b.Feed(Chunk({{"role", "assistant"}, {"content", ""}})));
  EXPECT_TRUE(b.Feed(Chunk({{"content", "a"}})));
  EXPECT_TRUE(b.Feed(Chunk({{"content", "b"}})));
  EXPECT_TRUE(b.Feed(
      R"({"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c1","function":{"name":"f","arguments":"{\"x\""}}]}}]})"));
  EXPECT_TRUE(b.Feed(R"({"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}]})"));
  EXPECT_TRUE(b.Feed(Chunk(json::object(), "tool_calls")));
  EXPECT_FALSE(b.Feed("[DONE]"));
  const auto turn = b.Take();
  ASSERT_TRUE(turn.ok()) << turn.status();
  EXPECT_EQ(turn->text, "ab");
  EXPECT_EQ(shown, "ab");
  EXPECT_EQ(turn->pieces, 2);
  ASSERT_EQ(turn->calls.size(), 1u);
  EXPECT_EQ(turn->calls[0].arguments, R"({"x":1})");
}
TEST(TurnBuilder, Errors) {
  for (const char* bad :
       {"nonsense", "[]", R"({"error":{"message":"worker lost"}})",
        R"({"choices":[{"delta":{"tool_calls":[{"index":3}]}}]})",
        R"({"choices":[{"delta":{"tool_calls":[{"index":-1}]}}]})", R"({"choices":[{"delta":{"tool_calls":[7]}}]})"}) {
    TurnBuilder b(nullptr);
    EXPECT_FALSE(b.Feed(bad)) << bad;
    EXPECT_FALSE(b.Take().ok()) << bad;
  }
  TurnBuilder cut(nullptr);
  EXPECT_TRUE(cut.Feed(Chunk({{"content", "a"}}, "stop")));
  EXPECT_FALSE(cut.Take().ok()) << "no [DONE]";
  TurnBuilder unfinished(nullptr);
  EXPECT_FALSE(unfinished.Feed("[DONE]"));
  EXPECT_FALSE(unfinished.Take().ok()) << "no finish_reason";
}

// Answers chat requests as a good model would; `spoil` may replace an answer. The request's last message decides.
class FakeModel {
 public:
  using Spoil = std::function<std::string(const json& last)>;
  explicit FakeModel(Spoil spoil = nullptr)
      : spoil_(std::move(spoil)), server_([this](const std::string& request, int socket) { Serve(request, socket); }) {}
  std::string url() const { return "http://127.0.0.1:" + std::to_string(server_.url().port); }

  static std::string Say(const std::string& text) {
    std::string out = FakeServer::StreamHead();
    for (size_t i = 0; i < text.size(); i += 5) out += FakeServer::Event(Chunk({{"content", text.substr(i, 5)}}));
    return out + FakeServer::Event(Chunk(json::object(), "stop")) + FakeServer::Event("[DONE]") +
           FakeServer::StreamEnd();
  }
  static std::string Call(const std::string& name, const json& arguments) {
    const std::string text = arguments.dump();
    auto delta = [](const json& d) { return FakeServer::Event(Chunk({{"tool_calls", {d}}})); };
    return FakeServer::StreamHead() +
           delta({{"index", 0},
                  {"id", "call_1"},
                  {"type", "function"},
                  {"function", {{"name", name}, {"arguments", ""}}}}) +
           delta({{"index", 0}, {"function", {{"arguments", text.substr(0, 4)}}}}) +
           delta({{"index", 0}, {"function", {{"arguments", text.substr(4)}}}}) +
           FakeServer::Event(Chunk(json::object(), "tool_calls")) + FakeServer::Event("[DONE]") +
           FakeServer::StreamEnd();
  }

 private:
  void Serve(const std::string& request, int socket) {
    if (request.rfind("GET /v1/models", 0) == 0) {
      return FakeServer::Send(socket, FakeServer::Answer(200, R"({"data":[{"id":"fake"}]})"));
    }
    const json body = json::parse(request.substr(request.find("\r\n\r\n") + 4), nullptr, false);
    const json last = body["messages"].back();
    std::string answer = spoil_ ? spoil_(last) : "";
    if (answer.empty()) answer = Good(body["messages"], last);
    FakeServer::Send(socket, answer);
  }
  static std::string Good(const json& messages, const json& last) {
    const std::string text = last["content"];
    if (text.find("*") != std::string::npos) return Call("calculator", {{"expression", "1234 * 5678"}});
    if (text.find("weather") != std::string::npos) return Call("get_weather", {{"city", "Lisbon"}});
    if (text.find("/notes") != std::string::npos) return Call("list_files", {{"path", "/notes"}});
    if (last["role"] == "user") return Say("Hello, I am a fake model.");
    if (text == "7006652") return Say("The result is 7,006,652.");
    if (text.find("sunny") != std::string::npos) return Call("get_weather", {{"city", "Oslo"}});
    if (text.find("rainy") != std::string::npos) {
      const bool both =
          messages[messages.size() - 3]["role"] == "tool";  // the first city's result must have been sent back
      return Say(both ? "Lisbon is sunny, 27 degrees; Oslo is rainy, 14 degrees." : "Oslo is rainy, 14 degrees.");
    }
    return Say("There are " + text + ".");
  }

  const Spoil spoil_;
  FakeServer server_;  // last: its threads use the members above
};

absl::Status Play(const std::string& url, std::string* printed = nullptr) {
  FILE* out = std::tmpfile();
  DemoConfig config;
  config.url = url;
  config.timeout_s = 10;
  const absl::Status s = PlayDemo(config, out);
  if (printed != nullptr) {
    std::rewind(out);
    char buffer[1 << 14];
    printed->assign(buffer, std::fread(buffer, 1, sizeof(buffer), out));
  }
  std::fclose(out);
  return s;
}

TEST(Demo, GoesWell) {
  const FakeModel model;
  std::string printed;
  const absl::Status s = Play(model.url(), &printed);
  EXPECT_TRUE(s.ok()) << s;
  EXPECT_NE(printed.find("-> calculator {\"expression\":\"1234 * 5678\"}\ntool       7006652\n"), std::string::npos)
      << printed;
  EXPECT_NE(printed.find("assistant  There are budget.csv, todo.txt, travel.md."), std::string::npos) << printed;
  EXPECT_NE(printed.find("4 answers"), std::string::npos);
  EXPECT_NE(printed.find("4 tool calls executed"), std::string::npos);
}

// Each way to go wrong must be noticed.
struct Fault {
  const char* name;
  std::string message;  // part of the error
  FakeModel::Spoil spoil;
};

TEST(Demo, NoticesFaults) {
  auto on_sum = [](const json& last) { return last["content"] == "What is 1234 * 5678?"; };
  auto on_result = [](const json& last) { return last["content"] == "7006652"; };
  const Fault faults[] = {
      {"no call", "without calling calculator",
       [=](const json& m) { return on_sum(m) ? FakeModel::Say("It is 7006652.") : ""; }},
      {"wrong call", "without calling calculator",
       [=](const json& m) {
         return on_sum(m) ? FakeModel::Call("get_weather", {{"city", "Oslo"}}) : "";
       }},
      {"unknown tool", "no tool 'fly'",
       [=](const json& m) {
         return on_sum(m) ? FakeModel::Call("fly", {{"to", "x"}}) : "";
       }},
      {"bad arguments", "must be a string",
       [=](const json& m) {
         return on_sum(m) ? FakeModel::Call("calculator", {{"expression", 12345}}) : "";
       }},
      {"wrong answer", "does not mention '7006652'",
       [=](const json& m) { return on_result(m) ? FakeModel::Say("It is 7006653.") : ""; }},
      {"stuck", "still calls tools",
       [=](const json& m) {
         return m["role"] == "tool" ? FakeModel::Call("calculator", {{"expression", "1+1"}}) : "";
       }},
      {"no stream", "in one piece",
       [=](const json& m) {
         return on_result(m) ? FakeModel::Say("").insert(FakeServer::StreamHead().size(),
                                                         FakeServer::Event(Chunk({{"content", "7006652"}})))
                             : "";
       }},
      {"empty", "is empty", [=](const json& m) { return on_result(m) ? FakeModel::Say("") : ""; }},
      {"cut", "too early",
       [=](const json&) {
         return FakeServer::StreamHead() + FakeServer::Event(Chunk({{"content", "a"}})) + FakeServer::StreamEnd();
       }},
      {"refused", "queue is full",
       [=](const json&) { return FakeServer::Answer(429, R"({"error":{"message":"queue is full"}})"); }},
  };
  for (const Fault& f : faults) {
    const FakeModel model(f.spoil);
    const absl::Status s = Play(model.url());
    EXPECT_FALSE(s.ok()) << f.name;
    EXPECT_NE(std::string(s.message()).find(f.message), std::string::npos) << f.name << ": " << s;
  }
}

TEST(Demo, NoServer) {
  EXPECT_TRUE(absl::IsUnavailable(Play("http://127.0.0.1:1")));
  EXPECT_TRUE(absl::IsInvalidArgument(Play("ftp://x")));
}

}  // namespace
}  // namespace agentserve::tools
