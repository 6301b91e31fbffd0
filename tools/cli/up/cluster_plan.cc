#include "tools/cli/up/cluster_plan.h"

#include <algorithm>
#include <cstdio>

#include "base/check.h"
#include "base/log.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

// Stop order: no new requests first, then who places them, then who computes, last the directory they report to.
enum StopStage : int { kStopGateway, kStopRouter, kStopWorkers, kStopKvstore };

// A unix socket path ends at 107 bytes; "/prefill-63.sock" and the like must fit behind the folder.
constexpr size_t kMaxRunDirBytes = 80;

absl::Status OneOf(const char* flag, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return absl::OkStatus();
  std::string list;
  for (const std::string& a : allowed) base::StrAppend(&list, list.empty() ? "" : ", ", a);
  return absl::InvalidArgumentError(StrCat("--", flag, " is '", value, "'; it must be one of ", list));
}

absl::Status InRange(const char* flag, int value, int least, int most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("--", flag, " is ", value, "; it must be ", least, " to ", most));
}

class Planner {
 public:
  Planner(const UpConfig& config, const std::vector<int>& ports) : config_(config), ports_(ports) {}

  ManagedChild Inner(const std::string& name, const std::string& role, const std::string& binary, int stage) {
    AS_CHECK_LE(next_port_ + 2, ports_.size());
    ManagedChild child;
    child.rule = {name, stage};
    child.role = role;
    child.port = ports_[next_port_++];
    child.metrics_port = ports_[next_port_++];
    child.process.argv = {StrCat(config_.bin_dir, "/", binary),
                          "--host",
                          child.host,
                          "--port",
                          StrCat(child.port),
                          "--metrics-port",
                          StrCat(child.metrics_port)};
    AddLogFlags(&child);
    return child;
  }

  ManagedChild Gateway(const ManagedChild& router) {
    ManagedChild child;
    child.rule = {"gateway", kStopGateway};
    child.role = "gateway";
    child.host = config_.host;
    child.port = config_.port;
    child.process.argv = {StrCat(config_.bin_dir, "/agentserve-gateway"),
                          "--host",
                          config_.host,
                          "--port",
                          StrCat(config_.port),
                          "--router",
                          Address(router)};
    AddLogFlags(&child);
    if (!config_.api_keys.empty()) {
      // By environment: other users of the machine can read command lines.
      std::string keys;
      for (const std::string& k : config_.api_keys) base::StrAppend(&keys, keys.empty() ? "" : ",", k);
      child.process.extra_env.push_back(StrCat("AGENTSERVE_GATEWAY_API_KEY=", keys));
    }
    Append(config_.gateway_args, &child);
    return child;
  }

  void AddModel(ManagedChild* child) const {
    for (const std::string& a : {std::string("--model"), config_.model, std::string("--model-id"), config_.model_id}) {
      child->process.argv.push_back(a);
    }
  }

  // `place`: this worker's number among all.
  void AddDevice(size_t place, const std::vector<int>& gpus, ManagedChild* child) const {
    auto& argv = child->process.argv;
    if (config_.batch_invariant) argv.push_back("--batch-invariant");
    if (gpus.empty()) {
      argv.insert(argv.end(), {"--device", "cpu"});
      return;
    }
    const size_t workers = static_cast<size_t>(config_.prefill + config_.decode), gpu = place % gpus.size();
    const size_t sharing = (workers - gpu + gpus.size() - 1) / gpus.size();
    char share[16];
    std::snprintf(share, sizeof(share), "%.4g", config_.gpu_memory_utilization / static_cast<double>(sharing));
    argv.insert(argv.end(), {"--device", StrCat("cuda:", gpus[gpu]), "--gpu-memory-utilization", share});
  }

  ManagedChild Worker(bool prefill, int index, const ManagedChild& router, const ManagedChild* kvstore, int threads,
                      const std::vector<int>& gpus) {
    const std::string role = prefill ? "prefill" : "decode";
    ManagedChild child = Inner(StrCat(role, "-", index), role, StrCat("agentserve-", role, "-worker"), kStopWorkers);
    AddModel(&child);
    auto& argv = child.process.argv;
    argv.insert(argv.end(), {"--router", Address(router), "--worker-id", child.rule.name, "--run-dir", config_.run_dir,
                             "--threads", StrCat(threads), "--kv-transport", config_.kv_transport});
    AddDevice(static_cast<size_t>(prefill ? index : config_.prefill + index), gpus, &child);
    if (kvstore != nullptr) argv.insert(argv.end(), {"--kvstore", Address(*kvstore)});
    if (config_.kv_memory_mib > 0) argv.insert(argv.end(), {"--kv-memory-mib", StrCat(config_.kv_memory_mib)});
    Append(config_.worker_args, &child);
    Append(prefill ? config_.prefill_args : config_.decode_args, &child);
    return child;
  }

  static void Append(const std::vector<std::string>& args, ManagedChild* child) {
    child->process.argv.insert(child->process.argv.end(), args.begin(), args.end());
  }
  static std::string Address(const ManagedChild& child) { return HostPort(child.host, child.port); }

 private:
  void AddLogFlags(ManagedChild* child) const {
    child->process.argv.insert(child->process.argv.end(), {"--log-level", config_.log_level});
    if (config_.log_json) child->process.argv.push_back("--log-json");
  }

  const UpConfig& config_;
  const std::vector<int>& ports_;
  size_t next_port_ = 0;
};

}  // namespace

std::string HostPort(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? StrCat("[", host, "]:", port) : StrCat(host, ":", port);
}

absl::Status ValidateUpConfig(const UpConfig& c) {
  absl::Status s =
      c.device.starts_with("cuda:") ? absl::OkStatus() : OneOf("device", c.device, {"auto", "cpu", "cuda", "cuda:N"});
  if (!(c.gpu_memory_utilization >= 0.05 && c.gpu_memory_utilization <= 1)) {
    s.Update(absl::InvalidArgumentError("--gpu-memory-utilization must be 0.05 to 1"));
  }
  s.Update(OneOf("policy", c.policy, c.policies));
  s.Update(OneOf("kv-transport", c.kv_transport, {"auto", "mapped", "staged", "stream"}));
  s.Update(InRange("prefill", c.prefill, 0, kMaxWorkersPerRole));
  s.Update(InRange("decode", c.decode, 1, kMaxWorkersPerRole));
  s.Update(InRange("port", c.port, 0, 65535));
  s.Update(InRange("threads", c.threads, 0, 1024));
  s.Update(InRange("kv-memory-mib", c.kv_memory_mib, 0, 1 << 20));
  base::LogLevel level;
  if (!base::ParseLogLevel(c.log_level, &level))
    s.Update(OneOf("log-level", c.log_level, {"debug", "info", "warn", "error"}));
  if (c.run_dir.size() > kMaxRunDirBytes) {
    s.Update(absl::InvalidArgumentError(StrCat("--run-dir is ", c.run_dir.size(),
                                               " bytes long; unix sockets lie in it, so at most ", kMaxRunDirBytes,
                                               " are possible")));
  }
  if (!(c.drain_timeout_s >= 0 && c.drain_timeout_s <= 3600)) {
    s.Update(absl::InvalidArgumentError("--drain-timeout must be 0 to 3600 seconds"));
  }
  if (!(c.ready_timeout_s > 0 && c.ready_timeout_s <= 86400)) {
    s.Update(absl::InvalidArgumentError("--ready-timeout must be above 0 and at most 86400 seconds"));
  }
  return s;
}

size_t PortsNeeded(const UpConfig& c) {
  return 2 * static_cast<size_t>(1 + (c.kvstore ? 1 : 0) + c.prefill + c.decode);
}

absl::StatusOr<std::vector<int>> ChooseGpus(const UpConfig& config, const std::vector<int>& found,
                                            const std::string& why) {
  if (config.device == "cpu") return std::vector<int>();
  if (config.device == "auto") return found;
  if (found.empty()) {
    return absl::FailedPreconditionError(
        StrCat("--device ", config.device, ": ", why, "; --device cpu runs on the CPU"));
  }
  if (config.device == "cuda") return found;
  for (const int gpu : found) {
    if (config.device == StrCat("cuda:", gpu)) return std::vector<int>{gpu};
  }
  return absl::FailedPreconditionError(StrCat("--device ", config.device, ": there is no usable GPU of that number"));
}

std::vector<ManagedChild> PlanCluster(const UpConfig& config, const std::vector<int>& ports, int hardware_threads,
                                      const std::vector<int>& gpus) {
  Planner planner(config, ports);
  std::vector<ManagedChild> out;
  if (config.kvstore) {
    out.push_back(planner.Inner("kvstore", "kvstore", "agentserve-kvstore", kStopKvstore));
    Planner::Append(config.kvstore_args, &out.back());
  }
  ManagedChild router = planner.Inner("router", "router", "agentserve-router", kStopRouter);
  planner.AddModel(&router);
  router.process.argv.insert(router.process.argv.end(), {"--policy", config.policy});
  if (config.kvstore) router.process.argv.insert(router.process.argv.end(), {"--kvstore", Planner::Address(out[0])});
  Planner::Append(config.router_args, &router);
  const ManagedChild kvstore = config.kvstore ? out[0] : ManagedChild();
  const ManagedChild* kvstore_or_null = config.kvstore ? &kvstore : nullptr;
  const int workers = config.prefill + config.decode;
  const int threads = config.threads > 0 ? config.threads : std::max(1, hardware_threads / workers);
  out.push_back(router);
  for (int i = 0; i < config.prefill; ++i)
    out.push_back(planner.Worker(true, i, router, kvstore_or_null, threads, gpus));
  for (int i = 0; i < config.decode; ++i)
    out.push_back(planner.Worker(false, i, router, kvstore_or_null, threads, gpus));
  out.push_back(planner.Gateway(router));
  return out;
}

}  // namespace agentserve::tools
