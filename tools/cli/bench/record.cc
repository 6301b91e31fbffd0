#include "tools/cli/bench/record.h"

#include <nlohmann/json.hpp>

namespace agentserve::tools {

using nlohmann::json;

namespace {

// The new text of a chunk; tool calls count as text, since their tokens are output too.
bool HasText(const json& choice) {
  if (choice.contains("text") && choice["text"].is_string())
    return !choice["text"].get_ref<const std::string&>().empty();
  if (!choice.contains("delta") || !choice["delta"].is_object()) return false;
  const json& delta = choice["delta"];
  if (delta.contains("content") && delta["content"].is_string()) {
    return !delta["content"].get_ref<const std::string&>().empty();
  }
  return delta.contains("tool_calls");
}

uint32_t Count(const json& usage, const char* key) {
  return usage.contains(key) && usage[key].is_number_unsigned() ? usage[key].get<uint32_t>() : 0;
}

}  // namespace

double RequestRecord::tpot_ms() const {
  if (completion_tokens < 2 || last <= first) return 0;
  return base::ToMs(last - first) / (completion_tokens - 1);
}

bool StreamReader::OnEvent(std::string_view data, base::TimeNs now) {
  if (data == "[DONE]") {
    done_ = true;
    return false;
  }
  const json chunk = json::parse(data, nullptr, false);
  if (!chunk.is_object()) {
    record_->error = "bad_json";
    return false;
  }
  if (chunk.contains("error")) {
    record_->error = "stream_error";
    return true;
  }
  if (chunk.contains("usage") && chunk["usage"].is_object()) {
    const json& usage = chunk["usage"];
    usage_ = true;
    record_->prompt_tokens = Count(usage, "prompt_tokens");
    record_->completion_tokens = Count(usage, "completion_tokens");
    const auto details = usage.find("prompt_tokens_details");
    if (details != usage.end() && details->is_object()) record_->cached_tokens = Count(*details, "cached_tokens");
  }
  if (!chunk.contains("choices") || !chunk["choices"].is_array() || chunk["choices"].empty()) return true;
  const json& choice = chunk["choices"][0];
  if (!choice.is_object()) return true;
  if (choice.contains("finish_reason") && choice["finish_reason"].is_string()) {
    record_->finish_reason = choice["finish_reason"].get<std::string>();
  }
  if (!HasText(choice)) return true;
  if (record_->first == 0) {
    record_->first = now;
  } else {
    record_->gaps_ms.push_back(static_cast<float>(base::ToMs(now - record_->last)));
  }
  record_->last = now;
  return true;
}

void StreamReader::OnEnd(base::TimeNs now) {
  record_->end = now;
  if (!record_->error.empty()) return;
  if (!done_) {
    record_->error = "truncated";
  } else if (!usage_ || record_->finish_reason.empty()) {
    record_->error = "incomplete";
  }
}

}  // namespace agentserve::tools
