// The load generator: one thread, one coroutine per running request.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "tools/cli/bench/record.h"
#include "tools/cli/bench/workload.h"
#include "tools/cli/http/url.h"

namespace agentserve::tools {

struct LoadConfig {
  Url url;
  std::string model;
  std::string api_key;
  bool chat = false;  // /v1/chat/completions instead of /v1/completions
  // Closed loop with this many clients; or, if rate > 0, an open loop with Poisson arrivals per second, in which
  // `concurrency` bounds what runs at once (arrivals beyond it are errors "client_limit").
  int concurrency = 8;
  double rate = 0;
  // Ends after this many requests or seconds, whichever is first; 0 = no such limit (not both).
  int64_t requests = 100;
  double duration_s = 0;
  int64_t warmup = 2;  // requests before the measurement, not counted
  bool ignore_eos = true;
  double temperature = 0;
  double timeout_s = 120;
  uint64_t seed = 1;
};

struct LoadProgress {
  int64_t started = 0, ended = 0, failed = 0, running = 0;
  uint64_t tokens = 0;  // of ended requests
  double seconds = 0;
  int64_t planned = 0;  // 0 = by duration
};

// The JSON body of one request.
std::string RequestBody(const LoadConfig& config, const WorkItem& item);

// Runs the load and returns one record per counted request, in order of their end. `on_progress` is called ten times a
// second. SIGINT ends it early: what ended by then is returned.
absl::StatusOr<std::vector<RequestRecord>> RunLoad(const LoadConfig& config, const Workload& workload,
                                                   const std::function<void(const LoadProgress&)>& on_progress);

// Id of the first model that the server offers.
absl::StatusOr<std::string> FirstModel(const Url& url, const std::string& api_key);
// Token ids of SampleText() at the server, without repeats; empty if it has no /tokenize.
std::vector<uint32_t> FetchTokenPool(const Url& url, const std::string& api_key, const std::string& model);

}  // namespace agentserve::tools
