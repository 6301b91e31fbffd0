// A whole cluster of real processes on loopback, for tests: started, killed piece by piece, and checked to be gone.
#pragma once

#include <grpcpp/channel.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agentserve/router/v1/router.grpc.pb.h"
#include "tests/integration/process.h"

namespace agentserve::testing {

struct ClusterOptions {
  std::string model = "models/tiny-agent";  // relative to the repository
  int prefill = 1;
  int decode = 1;
  bool kvstore = true;
  bool gateway = false;
  std::string kv_transport = "auto";
  bool prefix_cache = true;
  int kv_blocks = 0;            // 0 = the worker's default
  int prefill_threshold = 512;  // shorter prompts are prefilled by the decode worker
  std::vector<std::string> router_args;
  std::vector<std::string> worker_args;
  std::vector<std::string> gateway_args;
  // Environment of one process by name ("decode-0"), e.g. AGENTSERVE_FAILPOINTS=...
  std::map<std::string, std::vector<std::string>> env;
};

// Names of processes: "router", "kvstore", "gateway", "prefill-0", "decode-1".
class Cluster {
 public:
  // Starts everything and waits until every worker is ready (at most 30 s).
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(const ClusterOptions& options);
  ~Cluster();

  agentserve::router::v1::RouterService::Stub& router() { return *stub_; }
  Process& process(const std::string& name) { return *processes_.at(name); }
  std::vector<std::string> names() const;
  // Starts a dead process again, on its old port.
  absl::Status Restart(const std::string& name);
  // Waits until the router shows `prefill` and `decode` ready workers and nothing queued or running.
  absl::Status WaitIdle(int timeout_ms);
  // Waits until each worker's pool is at baseline: every block free or cached.
  absl::Status WaitPoolsAtBaseline(int timeout_ms);
  // SIGTERM everywhere in order; error if a process does not exit with 0 in time or leaves files in the run directory.
  absl::Status Shutdown();
  std::string router_address() const;
  int gateway_port() const { return ports_.at("gateway"); }
  // Last lines of every log, for failure messages.
  std::string Logs() const;
  const std::string& dir() const { return dir_; }

 private:
  explicit Cluster(ClusterOptions options);
  std::vector<std::string> CommandLine(const std::string& name) const;
  absl::Status Launch(const std::string& name);
  absl::StatusOr<agentserve::router::v1::WatchClusterResponse> State();
  int ReadyWorkers(const agentserve::router::v1::WatchClusterResponse& state) const;

  ClusterOptions options_;
  std::string dir_;
  std::map<std::string, int> ports_;
  std::map<std::string, std::unique_ptr<Process>> processes_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<agentserve::router::v1::RouterService::Stub> stub_;
};

// What a client saw of one request.
struct Outcome {
  grpc::Status status;
  std::string request_id;
  std::vector<uint32_t> tokens;  // of sequence 0
  std::string text;              // of sequence 0
  int ends = 0;                  // SequenceEnd events of sequence 0
  int dones = 0;                 // Done events
  int events_after_done = 0;
  agentserve::common::v1::FinishReason reason = agentserve::common::v1::FINISH_REASON_UNSPECIFIED;
  agentserve::router::v1::Done done;
  // Exactly one terminal event: a Done with OK, or an error without Done.
  bool OneEnd() const { return events_after_done == 0 && (status.ok() ? dones == 1 && ends == 1 : dones == 0); }
};

// Runs one request to its end. `on_token` (may be empty) is called with the count of tokens so far; false cancels.
Outcome Generate(agentserve::router::v1::RouterService::Stub& stub,
                 const agentserve::router::v1::GenerateRequest& request,
                 const std::function<bool(size_t)>& on_token = {}, int timeout_ms = 60000);

// A request over random token ids: greedy if `seed` is 0, else temperature 0.8, top_p 0.95 with that seed.
agentserve::router::v1::GenerateRequest RandomRequest(uint64_t which, uint32_t vocab, uint32_t prompt_tokens,
                                                      uint32_t max_tokens, bool greedy);

}  // namespace agentserve::testing
