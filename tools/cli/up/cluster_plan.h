// From the settings of `agentserve up` to the command lines of the services.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/cli/up/supervisor.h"

namespace agentserve::tools {

// Settings of `agentserve up`; each field is a flag.
struct UpConfig {
  std::string model;
  std::string model_id;
  std::string device = "auto";
  int prefill = 1;
  int decode = 1;
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string policy = "program-fifo";
  std::vector<std::string> policies = {"program-fifo"};  // that the router has
  std::vector<std::string> api_keys;
  int threads = 0;
  int kv_memory_mib = 0;
  double gpu_memory_utilization = 0.9;
  bool batch_invariant = false;
  std::string kv_transport = "auto";
  bool kvstore = true;
  std::string run_dir;
  std::string log_dir;
  std::string log_level = "info";
  bool log_json = false;
  bool quiet = false;
  std::string state_file;
  std::string bin_dir;
  double drain_timeout_s = 10;
  double ready_timeout_s = 600;
  std::vector<std::string> gateway_args, router_args, kvstore_args, worker_args, prefill_args, decode_args;
};

// Most workers of one machine: each has its own copy of the weights in memory or in use, and 64 is past the largest
// hosts (8 GPUs, or one worker per few cores).
inline constexpr int kMaxWorkersPerRole = 64;

// OK, or which flag is wrong and what it may be.
absl::Status ValidateUpConfig(const UpConfig& config);

// Children in start order. `ports` gives, in order, port and metrics port of each inner service (see PortsNeeded).
// `hardware_threads` is shared out among the workers when --threads is 0. `gpus`: indices of the GPUs to use, in order:
// prefill workers first, then decode workers, go round them; workers of one GPU share its memory evenly. None: the CPU.
std::vector<ManagedChild> PlanCluster(const UpConfig& config, const std::vector<int>& ports, int hardware_threads,
                                      const std::vector<int>& gpus = {});
// Which of `found` GPUs --device asks for; none = the CPU. FAILED_PRECONDITION: there are none, and `why` that is.
absl::StatusOr<std::vector<int>> ChooseGpus(const UpConfig& config, const std::vector<int>& found,
                                            const std::string& why);
size_t PortsNeeded(const UpConfig& config);

// host:port, with brackets around an IPv6 address.
std::string HostPort(const std::string& host, int port);

}  // namespace agentserve::tools
