// What happened to one request, seen from the client.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

namespace agentserve::tools {

struct RequestRecord {
  base::TimeNs start = 0;
  base::TimeNs first = 0;  // first text; 0 = none came
  base::TimeNs last = 0;   // last text
  base::TimeNs end = 0;
  std::vector<float> gaps_ms;  // between texts that followed each other
  uint32_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  std::string finish_reason;
  std::string error;  // empty = complete; else a short kind: "connect", "timeout", "http_429", "stream_error", ...

  bool ok() const { return error.empty(); }
  double ttft_ms() const { return base::ToMs(first - start); }
  double e2e_ms() const { return base::ToMs(end - start); }
  // Time per output token after the first; 0 with fewer than two tokens.
  double tpot_ms() const;
};

// Reads the events of one OpenAI stream (chat or completions). Single-threaded.
class StreamReader {
 public:
  explicit StreamReader(RequestRecord* record) : record_(record) {}
  // False after [DONE].
  bool OnEvent(std::string_view data, base::TimeNs now);
  // The stream ended; sets the error if it did so before [DONE] or without usage.
  void OnEnd(base::TimeNs now);

 private:
  RequestRecord* record_;
  bool done_ = false;
  bool usage_ = false;
};

}  // namespace agentserve::tools
