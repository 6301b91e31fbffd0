// `agentserve chat`: a terminal client over HTTP streaming.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/clock.h"
#include "base/flags.h"
#include "base/strings.h"
#include "tools/cli/bench/load.h"
#include "tools/cli/commands.h"
#include "tools/cli/http/sse_client.h"

namespace agentserve::tools {

using base::StrCat;
using nlohmann::json;

namespace {

struct ChatConfig {
  std::string url = "http://127.0.0.1:8000", model, api_key, system;
  double temperature = -1;
  int max_tokens = 0;
  double timeout_s = 600;
};

class ChatSession {
 public:
  ChatSession(ChatConfig config, Url url) : config_(std::move(config)), url_(std::move(url)) { Reset(); }

  void Reset() {
    messages_ = json::array();
    if (!config_.system.empty()) messages_.push_back({{"role", "system"}, {"content", config_.system}});
  }
  void SetSystem(const std::string& text) {
    config_.system = text;
    Reset();
  }

  // Sends one user message and prints the answer. False if it failed; the message is then forgotten.
  bool Say(const std::string& text, bool show_rate) {
    messages_.push_back({{"role", "user"}, {"content", text}});
    answer_.clear();
    tool_calls_ = json::array();
    error_.clear();
    tokens_ = 0;
    done_ = false;
    const base::TimeNs start = clock_.Now();
    first_ = 0;
    const HttpOutcome outcome =
        ExchangeBlocking(url_, MakeRequest(), [this](std::string_view data) { return OnEvent(data); });
    std::printf("\n");
    std::fflush(stdout);
    if (!outcome.ok() || !error_.empty() || !done_) {
      std::fprintf(stderr, "agentserve chat: %s\n",
                   !outcome.ok()     ? outcome.Explain().c_str()
                   : !error_.empty() ? error_.c_str()
                                     : "the stream ended too early");
      messages_.erase(messages_.end() - 1);
      return false;
    }
    json reply = {{"role", "assistant"}, {"content", answer_}};
    if (!tool_calls_.empty()) reply["tool_calls"] = tool_calls_;
    messages_.push_back(reply);
    if (show_rate) ShowRate(start, clock_.Now());
    return true;
  }

 private:
  HttpRequest MakeRequest() const {
    json body = {{"model", config_.model},
                 {"messages", messages_},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (config_.temperature >= 0) body["temperature"] = config_.temperature;
    if (config_.max_tokens > 0) body["max_tokens"] = config_.max_tokens;
    HttpRequest request;
    request.target = "/v1/chat/completions";
    request.body = body.dump(-1, ' ', false, json::error_handler_t::replace);
    request.api_key = config_.api_key;
    request.timeout = static_cast<base::TimeNs>(config_.timeout_s * 1e9);
    return request;
  }

  bool OnEvent(std::string_view data) {
    if (data == "[DONE]") {
      done_ = true;
      return false;
    }
    const json chunk = json::parse(data, nullptr, false);
    if (!chunk.is_object()) return true;
    if (chunk.contains("error") && chunk["error"].is_object()) error_ = chunk["error"].value("message", "failed");
    if (chunk.contains("usage") && chunk["usage"].is_object()) tokens_ = chunk["usage"].value("completion_tokens", 0u);
    if (!chunk.contains("choices") || chunk["choices"].empty() || !chunk["choices"][0].contains("delta")) return true;
    const json& delta = chunk["choices"][0]["delta"];
    if (delta.contains("content") && delta["content"].is_string()) {
      const std::string& text = delta["content"].get_ref<const std::string&>();
      if (!text.empty() && first_ == 0) first_ = clock_.Now();
      answer_ += text;
      std::fputs(text.c_str(), stdout);
      std::fflush(stdout);
    }
    if (delta.contains("tool_calls") && delta["tool_calls"].is_array()) OnToolCalls(delta["tool_calls"]);
    return true;
  }

  void OnToolCalls(const json& deltas) {
    for (const json& d : deltas) {
      const size_t index = d.value("index", size_t{0});
      if (index > tool_calls_.size()) continue;
      if (index == tool_calls_.size()) {
        tool_calls_.push_back(
            {{"id", d.value("id", "")}, {"type", "function"}, {"function", {{"name", ""}, {"arguments", ""}}}});
      }
      if (!d.contains("function")) continue;
      json& call = tool_calls_[index]["function"];
      const std::string name = d["function"].value("name", ""), piece = d["function"].value("arguments", "");
      call["name"] = call["name"].get<std::string>() + name;
      call["arguments"] = call["arguments"].get<std::string>() + piece;
      std::printf("%s%s", name.empty() ? "" : StrCat("[calls ", name, "] ").c_str(), piece.c_str());
    }
  }

  void ShowRate(base::TimeNs start, base::TimeNs end) const {
    if (first_ == 0) return;
    const double decode_s = static_cast<double>(end - first_) / 1e9;
    std::fprintf(stderr, "%s(%u tokens, %.0f ms to the first, %.1f tokens/s)%s\n",
                 isatty(STDERR_FILENO) ? "\x1b[2m" : "", tokens_, base::ToMs(first_ - start),
                 decode_s > 0 && tokens_ > 1 ? (tokens_ - 1) / decode_s : 0.0, isatty(STDERR_FILENO) ? "\x1b[0m" : "");
  }

  ChatConfig config_;
  const Url url_;
  base::MonotonicClock clock_;
  json messages_, tool_calls_;
  std::string answer_, error_;
  uint32_t tokens_ = 0;
  bool done_ = false;
  base::TimeNs first_ = 0;
};

// Returns false to leave.
bool OnCommand(const std::string& line, ChatSession* session) {
  if (line == "/quit" || line == "/exit") return false;
  if (line == "/reset") {
    session->Reset();
    std::fprintf(stderr, "The conversation starts anew.\n");
  } else if (line.rfind("/system", 0) == 0 && (line.size() == 7 || line[7] == ' ')) {
    session->SetSystem(line.size() > 8 ? line.substr(8) : "");
    std::fprintf(stderr, "System message set; the conversation starts anew.\n");
  } else {
    std::fprintf(stderr, "/quit ends, /reset forgets the conversation, /system TEXT sets the system message.\n");
  }
  return true;
}

int Converse(ChatSession* session) {
  const bool terminal = isatty(STDIN_FILENO) == 1;
  bool ok = true;
  for (std::string line; true;) {
    if (terminal) std::fprintf(stderr, "> ");
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    if (line[0] == '/') {
      if (!OnCommand(line, session)) break;
    } else {
      ok = session->Say(line, true) && ok;
      if (!ok && !terminal) break;  // a script must notice
    }
  }
  return ok || terminal ? base::kExitOk : base::kExitFailure;
}

}  // namespace

int RunChat(int argc, const char* const* argv) {
  ChatConfig config;
  base::FlagSet flags("agentserve chat", "Talks to a server; one line is one message. /help lists commands.");
  flags.Add("url", &config.url, "address of the gateway");
  flags.Add("model", &config.model, "model name; none = the first that the server offers");
  flags.Add("api-key", &config.api_key, "key to send");
  flags.Add("system", &config.system, "system message");
  flags.Add("temperature", &config.temperature, "sampling temperature; below 0 = the server's default");
  flags.Add("max-tokens", &config.max_tokens, "most tokens per answer; 0 = the server's default");
  flags.Add("timeout", &config.timeout_s, "seconds that one answer may take");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  const auto url = ParseUrl(config.url);
  absl::Status s = url.status();
  if (s.ok() && !(config.timeout_s > 0 && config.timeout_s <= 86400)) {
    s = absl::InvalidArgumentError("--timeout must be above 0 and at most 86400 seconds");
  }
  if (s.ok() && config.model.empty()) {
    auto model = FirstModel(*url, config.api_key);
    s = model.status();
    if (model.ok()) config.model = *model;
  }
  if (!s.ok()) {
    std::fprintf(stderr, "agentserve chat: %s\n", base::MessageOf(s).c_str());
    return absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure;
  }
  std::fprintf(stderr, "%s at %s. /help lists commands.\n", config.model.c_str(), config.url.c_str());
  ChatSession session(config, *url);
  return Converse(&session);
}

}  // namespace agentserve::tools
