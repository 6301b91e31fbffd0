// `agentserve up`: flags, preparation, and what is printed when the cluster is ready.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/version.h"
#include "router/core/policy.h"
#include "tools/cli/cluster_client.h"
#include "tools/cli/commands.h"
#include "tools/cli/paths.h"
#include "tools/cli/up/banner.h"
#include "tools/cli/up/cluster_plan.h"
#include "tools/cli/up/gpus.h"
#include "tools/cli/up/net.h"
#include "tools/cli/up/supervisor.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

void AddFlags(UpConfig* c, base::FlagSet* flags) {
  flags->Add("model", &c->model, "Hugging Face folder of a Llama 3 model; none = the bundled tiny-agent", "Model");
  flags->Add("model-id", &c->model_id, "name that clients use; none = the folder's name", "Model");
  flags->Add("device", &c->device,
             "cpu; cuda: all GPUs, prefill workers first, then decode workers in turn; cuda:N: that GPU; auto: the "
             "GPUs found, "
             "else the CPU",
             "Model");
  flags->Add("batch-invariant", &c->batch_invariant,
             "tokens do not depend on what else runs, bit for bit; always so on the CPU, costs some speed on a GPU",
             "Model");
  flags->Add("prefill", &c->prefill, "prefill workers; 0 = decode workers prefill themselves", "Cluster");
  flags->Add("decode", &c->decode, "decode workers", "Cluster");
  flags->Add("threads", &c->threads, "CPU threads per worker; 0 = the machine's, shared out", "Cluster");
  flags->Add("kv-memory-mib", &c->kv_memory_mib, "KV memory per worker in MiB; 0 = the worker's default", "Cluster");
  flags->Add("gpu-memory-utilization", &c->gpu_memory_utilization,
             "share of each GPU's memory to use, divided among the workers on it", "Cluster");
  flags->Add("kv-transport", &c->kv_transport, "how KV blocks travel: auto, mapped, staged or stream", "Cluster");
  c->policies.clear();
  for (const auto& p : router::Policies()) c->policies.emplace_back(p.name);
  flags->Add("policy", &c->policy, "order of requests, e.g. agent, program-fifo, fifo (agentserve-router --help)",
             "Cluster");
  flags->Add("kvstore", &c->kvstore, "run the block directory", "Cluster");
  flags->Add("host", &c->host, "address of the HTTP gateway; 0.0.0.0 = reachable from other machines", "Network");
  flags->Add("port", &c->port, "port of the HTTP gateway; 0 = any free one", "Network");
  flags->Add("api-key", &c->api_keys, "key that clients must send; may be repeated", "Network");
  flags->Add("run-dir", &c->run_dir, "folder for sockets and state; none = a private temporary one", "Files");
  flags->Add("state-file", &c->state_file, "JSON with pids and ports; none = state.json in the run folder", "Files");
  flags->Add("log-dir", &c->log_dir, "folder that gets one log file per service", "Files");
  flags->Add("bin-dir", &c->bin_dir, "folder of the service programs; none = beside this one", "Files");
  flags->Add("log-level", &c->log_level, "debug, info, warn or error", "Output");
  flags->Add("log-json", &c->log_json, "log lines as JSON", "Output");
  flags->Add("quiet", &c->quiet, "of the services' lines show only warnings and errors", "Output");
  flags->Add("drain-timeout", &c->drain_timeout_s, "seconds that running requests get when stopping", "Time limits");
  flags->Add("ready-timeout", &c->ready_timeout_s, "seconds within which the cluster must be ready", "Time limits");
  constexpr char kPass[] = "Pass-through (may be repeated, e.g. --router-arg=--max-queued=64)";
  flags->Add("gateway-arg", &c->gateway_args, "argument for the gateway", kPass);
  flags->Add("router-arg", &c->router_args, "argument for the router", kPass);
  flags->Add("kvstore-arg", &c->kvstore_args, "argument for the kvstore", kPass);
  flags->Add("worker-arg", &c->worker_args, "argument for every worker", kPass);
  flags->Add("prefill-arg", &c->prefill_args, "argument for the prefill workers", kPass);
  flags->Add("decode-arg", &c->decode_args, "argument for the decode workers", kPass);
}

int Complain(int code, const absl::Status& why) {
  std::fprintf(stderr, "agentserve up: %s\n", base::MessageOf(why).c_str());
  return code;
}

absl::StatusOr<std::vector<int>> FindGpus(const UpConfig& config) {
  std::string why;
  std::vector<int> found;
  if (config.device != "cpu") found = FindGpusInChild(&why);
  return ChooseGpus(config, found, why);
}

// For people: "cpu" or "cuda:0, cuda:1".
std::string ToText(const std::vector<int>& gpus) {
  std::string text;
  for (const int gpu : gpus) base::StrAppend(&text, text.empty() ? "" : ", ", "cuda:", gpu);
  return text.empty() ? "cpu" : text;
}

// OK if the folder looks like a model; its contents are checked by the services.
absl::Status ResolveModel(UpConfig* c) {
  if (c->model.empty()) {
    AS_ASSIGN_OR_RETURN(c->model, FindBundledModel());
  }
  c->model = Absolute(c->model);
  std::error_code ec;
  if (!std::filesystem::is_directory(c->model, ec)) {
    return absl::NotFoundError(StrCat("--model ", c->model, " is not a folder"));
  }
  if (!std::filesystem::exists(c->model + "/config.json", ec)) {
    return absl::NotFoundError(
        StrCat("--model ", c->model, " holds no config.json; a Hugging Face model folder is expected"));
  }
  if (c->model_id.empty()) c->model_id = std::filesystem::path(c->model).filename().string();
  return absl::OkStatus();
}

absl::Status CheckBinaries(const UpConfig& c) {
  for (const char* name : {"agentserve-gateway", "agentserve-router", "agentserve-kvstore", "agentserve-prefill-worker",
                           "agentserve-decode-worker"}) {
    const std::string path = StrCat(c.bin_dir, "/", name);
    const bool needed = (c.kvstore || std::string_view(name) != "agentserve-kvstore") &&
                        (c.prefill > 0 || std::string_view(name) != "agentserve-prefill-worker");
    if (needed && access(path.c_str(), X_OK) != 0) {
      return absl::NotFoundError(StrCat(path,
                                        " is missing or not executable; build it with scripts/build, or say where "
                                        "the programs are with --bin-dir"));
    }
  }
  return absl::OkStatus();
}

absl::Status ResolvePort(UpConfig* c) {
  if (c->port == 0) {
    AS_ASSIGN_OR_RETURN(const std::vector<int> ports, PickPorts(1));
    c->port = ports[0];
  }
  absl::Status s = CheckPortFree(c->host, c->port);
  if (absl::IsAlreadyExists(s)) {
    return absl::AlreadyExistsError(
        StrCat(base::MessageOf(s), "; stop the program that uses it or choose another with --port"));
  }
  return s;
}

// Connections and memory maps of many streams need descriptors; gRPC's listener does not survive running out of them.
void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::string StateFields(const UpConfig& c) {
  return nlohmann::json{{"url", StrCat("http://", HostPort(ClientHost(c.host), c.port))},
                        {"model", c.model},
                        {"model_id", c.model_id},
                        {"device", c.device},
                        {"run_dir", c.run_dir},
                        {"version", base::Version()},
                        {"commit", base::Commit()}}
      .dump();
}

SupervisorConfig MakeSupervisorConfig(const UpConfig& c, std::vector<ManagedChild> children) {
  SupervisorConfig s;
  s.children = std::move(children);
  s.core.drain_timeout = static_cast<base::TimeNs>(c.drain_timeout_s * 1e9);
  s.console = {isatty(STDERR_FILENO) == 1, c.quiet, c.log_json, STDERR_FILENO};
  s.state_file = c.state_file;
  s.log_dir = c.log_dir;
  s.ready_host = c.host;
  s.ready_port = c.port;
  s.wait_for_all = c.log_level == "info" || c.log_level == "debug";
  s.ready_timeout = static_cast<base::TimeNs>(c.ready_timeout_s * 1e9);
  s.state_fields_json = StateFields(c);
  s.on_ready = [c, children = s.children](const ReadyReport& report) {
    constexpr base::TimeNs kAskTimeout = 2 * base::kNsPerSecond;
    std::string router;
    for (const ManagedChild& child : children) {
      if (child.role == "router") router = HostPort(child.host, child.port);
    }
    const auto info = FetchClusterSummary(router, kAskTimeout);
    std::fputs(ReadyBanner(c, children, report, info.ok() ? &*info : nullptr).c_str(), stdout);
    std::fflush(stdout);
  };
  return s;
}

}  // namespace

int RunUp(int argc, const char* const* argv) {
  UpConfig config;
  base::FlagSet flags("agentserve up", "Runs a whole cluster on this machine until Ctrl-C.");
  AddFlags(&config, &flags);
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  if (absl::Status s = ValidateUpConfig(config); !s.ok()) return Complain(base::kExitConfig, s);
  if (absl::Status s = ResolveModel(&config); !s.ok()) return Complain(base::kExitModel, s);
  if (config.bin_dir.empty()) config.bin_dir = ProgramDir();
  if (absl::Status s = CheckBinaries(config); !s.ok()) return Complain(base::kExitConfig, s);
  if (absl::Status s = ResolvePort(&config); !s.ok()) return Complain(base::kExitConfig, s);
  auto ports = PickPorts(PortsNeeded(config));
  if (!ports.ok()) return Complain(base::kExitFailure, ports.status());
  auto run_dir = RunDir::Make(config.run_dir);
  if (!run_dir.ok()) return Complain(base::kExitConfig, run_dir.status());
  config.run_dir = run_dir->path();
  if (config.state_file.empty()) config.state_file = config.run_dir + "/state.json";
  if (!config.log_dir.empty()) {
    std::error_code ec;
    std::filesystem::create_directories(config.log_dir, ec);
    if (ec) return Complain(base::kExitConfig, absl::InvalidArgumentError(StrCat("--log-dir: ", ec.message())));
  }
  const auto gpus = FindGpus(config);
  if (!gpus.ok()) return Complain(base::kExitConfig, gpus.status());
  config.device = ToText(*gpus);
  if (!gpus->empty() && gpus->size() < static_cast<size_t>(config.prefill + config.decode)) {
    std::fprintf(stderr,
                 "agentserve up: %d workers share %zu GPU(s): they take turns, memory is divided. Fewer workers "
                 "(--prefill 0 --decode %zu) serve these GPUs better.\n",
                 config.prefill + config.decode, gpus->size(), gpus->size());
  }
  RaiseFileLimit();
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  Supervisor supervisor(MakeSupervisorConfig(config, PlanCluster(config, *ports, threads, *gpus)));
  return supervisor.Run();
}

}  // namespace agentserve::tools
