#include "tools/demo/demo.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/bench/load.h"
#include "tools/demo/chat_stream.h"
#include "tools/demo/toolbox.h"

namespace agentserve::tools {
namespace {

using base::StrCat;
using nlohmann::ordered_json;

constexpr int kMaxCallsPerScene = 4;  // a scene needs at most two; a model that keeps calling is stuck
constexpr int kMaxTokens = 256;

// What the user says and which tools must have run before the answer, in this order.
struct Scene {
  const char* user;
  std::vector<std::string> needed_calls;
};
const std::vector<Scene>& Scenes() {
  static const std::vector<Scene> scenes = {
      {"Hello! Who are you, and what can you do?", {}},
      {"What is 1234 * 5678?", {"calculator"}},
      {"What is the weather in Lisbon and in Oslo?", {"get_weather", "get_weather"}},
      {"List the files in /notes", {"list_files"}},
  };
  return scenes;
}

// A fresh folder with the files that list_files shows; removed at the end.
class Sandbox {
 public:
  absl::Status Create() {
    std::error_code ec;
    std::string path = (std::filesystem::temp_directory_path(ec) / "agentserve-demo-XXXXXX").string();
    if (ec || mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(
          StrCat("cannot make a temporary folder at ", path, "; set TMPDIR to one that is writable"));
    }
    root_ = path;
    std::filesystem::create_directory(root_ / "notes", ec);
    for (const char* name : {"todo.txt", "budget.csv", "travel.md"}) {
      if (!(std::ofstream(root_ / "notes" / name) << "demo\n").flush()) {
        return absl::UnavailableError(StrCat("cannot write into ", path));
      }
    }
    return absl::OkStatus();
  }
  ~Sandbox() {
    std::error_code ec;
    if (!root_.empty()) std::filesystem::remove_all(root_, ec);
  }
  std::string root() const { return root_.string(); }

 private:
  std::filesystem::path root_;
};

// "7,006,652" counts as a mention of 7006652.
bool Mentions(std::string text, const std::string& what) {
  if (text.find(what) != std::string::npos) return true;
  text.erase(std::remove(text.begin(), text.end(), ','), text.end());
  return text.find(what) != std::string::npos;
}

class Agent {
 public:
  Agent(const DemoConfig& config, Url url, const Toolbox* tools, FILE* out)
      : config_(config), url_(std::move(url)), tools_(tools), out_(out) {}

  // One user message: streams answers and runs tools until the model answers in words.
  absl::Status Play(const Scene& scene) {
    std::fprintf(out_, "\nyou        %s\n", scene.user);
    messages_.push_back({{"role", "user"}, {"content", scene.user}});
    std::vector<std::string> ran, mentions;
    for (int round = 0; round <= kMaxCallsPerScene; ++round) {
      AS_ASSIGN_OR_RETURN(const AssistantTurn turn, Ask());
      if (turn.calls.empty()) return Judge(scene, turn, ran, mentions);
      AS_RETURN_IF_ERROR(RunCalls(turn, &ran, &mentions));
    }
    return absl::FailedPreconditionError(StrCat("the model still calls tools after ", kMaxCallsPerScene, " results"));
  }

  int pieces() const { return pieces_; }
  int calls() const { return calls_; }
  base::TimeNs first_text_after() const { return first_text_after_; }

 private:
  absl::StatusOr<AssistantTurn> Ask() {
    const ordered_json body = {{"model", config_.model}, {"messages", messages_},    {"tools", tools_->schemas()},
                               {"temperature", 0},       {"max_tokens", kMaxTokens}, {"stream", true}};
    const base::TimeNs start = clock_.Now();
    bool open = false;
    auto show = [&](std::string_view text) {
      if (first_text_after_ < 0) first_text_after_ = clock_.Now() - start;
      if (!open) std::fputs("assistant  ", out_);
      open = true;
      std::fwrite(text.data(), 1, text.size(), out_);
      std::fflush(out_);
    };
    auto turn = StreamTurn(url_, config_.api_key, static_cast<base::TimeNs>(config_.timeout_s * 1e9),
                           body.dump(-1, ' ', false, ordered_json::error_handler_t::replace), show);
    if (open) std::fputc('\n', out_);
    if (turn.ok()) pieces_ += turn->pieces;
    return turn;
  }

  absl::Status RunCalls(const AssistantTurn& turn, std::vector<std::string>* ran, std::vector<std::string>* mentions) {
    ordered_json calls = ordered_json::array();
    for (const ToolCall& c : turn.calls) {
      calls.push_back(
          {{"id", c.id}, {"type", "function"}, {"function", {{"name", c.name}, {"arguments", c.arguments}}}});
    }
    messages_.push_back({{"role", "assistant"}, {"content", nullptr}, {"tool_calls", calls}});
    for (const ToolCall& c : turn.calls) {
      std::fprintf(out_, "assistant  -> %s %s\n", c.name.c_str(), c.arguments.c_str());
      auto result = tools_->Execute(c.name, c.arguments);
      if (!result.ok()) {  // never INVALID_ARGUMENT: that would read as a wrong flag
        return absl::FailedPreconditionError(
            StrCat("the model's tool call failed: ", base::MessageOf(result.status())));
      }
      std::fprintf(out_, "tool       %s\n", result->content.c_str());
      ++calls_;
      ran->push_back(c.name);
      mentions->insert(mentions->end(), result->mentions.begin(), result->mentions.end());
      messages_.push_back({{"role", "tool"}, {"tool_call_id", c.id}, {"content", result->content}});
    }
    return absl::OkStatus();
  }

  absl::Status Judge(const Scene& scene, const AssistantTurn& turn, const std::vector<std::string>& ran,
                     const std::vector<std::string>& mentions) {
    messages_.push_back({{"role", "assistant"}, {"content", turn.text}});
    for (size_t i = 0; i < scene.needed_calls.size(); ++i) {
      if (i >= ran.size() || ran[i] != scene.needed_calls[i]) {
        return absl::FailedPreconditionError(StrCat("the model answered without calling ", scene.needed_calls[i]));
      }
    }
    if (turn.text.empty()) return absl::FailedPreconditionError("the answer is empty");
    if (turn.finish_reason != "stop") {
      return absl::FailedPreconditionError(
          StrCat("the answer did not end by itself: finish_reason ", turn.finish_reason));
    }
    if (turn.pieces < 2) return absl::FailedPreconditionError("the answer came in one piece, not as a stream");
    for (const std::string& m : mentions) {
      if (!Mentions(turn.text, m)) {
        return absl::FailedPreconditionError(StrCat("the answer does not mention '", m, "', which the tool returned"));
      }
    }
    return absl::OkStatus();
  }

  const DemoConfig config_;
  const Url url_;
  const Toolbox* const tools_;
  FILE* const out_;
  base::MonotonicClock clock_;
  ordered_json messages_ = ordered_json::array();
  int pieces_ = 0, calls_ = 0;
  base::TimeNs first_text_after_ = -1;
};

}  // namespace

absl::Status PlayDemo(const DemoConfig& given, FILE* out) {
  DemoConfig config = given;
  if (!(config.timeout_s > 0 && config.timeout_s <= 3600)) {
    return absl::InvalidArgumentError("--timeout must be above 0 and at most 3600 seconds");
  }
  AS_ASSIGN_OR_RETURN(const Url url, ParseUrl(config.url));
  if (config.model.empty()) {
    AS_ASSIGN_OR_RETURN(config.model, FirstModel(url, config.api_key));
  }
  Sandbox sandbox;
  AS_RETURN_IF_ERROR(sandbox.Create());
  const Toolbox tools(sandbox.root());
  std::fprintf(out, "A small agent with %zu tools talks to %s at %s.\n", tools.schemas().size(), config.model.c_str(),
               config.url.c_str());
  Agent agent(config, url, &tools, out);
  for (const Scene& scene : Scenes()) {
    if (const absl::Status s = agent.Play(scene); !s.ok()) {
      return absl::Status(s.code(), base::ToAbsl(StrCat("after \"", scene.user, "\": ", base::MessageOf(s))));
    }
  }
  std::fprintf(
      out,
      "\nThe demo went well: %zu answers in %d streamed pieces, %d tool calls executed, first text after %.0f ms.\n",
      Scenes().size(), agent.pieces(), agent.calls(), base::ToMs(agent.first_text_after()));
  return absl::OkStatus();
}

int RunDemo(int argc, const char* const* argv) {
  DemoConfig config;
  base::FlagSet flags("agentserve demo", "Lets a small agent with real tools work against a running server.");
  flags.Add("url", &config.url, "address of the gateway");
  flags.Add("model", &config.model, "model name; none = the first that the server offers");
  flags.Add("api-key", &config.api_key, "key to send");
  flags.Add("timeout", &config.timeout_s, "seconds that one answer may take");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  const absl::Status s = PlayDemo(config, stdout);
  if (s.ok()) return base::kExitOk;
  std::fflush(stdout);
  std::fprintf(stderr, "agentserve demo: %s\n", base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace agentserve::tools
