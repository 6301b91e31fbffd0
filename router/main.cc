// agentserve-router: flags, wiring, drain.
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "base/flags.h"
#include "base/log.h"
#include "base/strings.h"
#include "router/core/policy.h"
#include "router/service/router_server.h"
#include "router/service/tenant_file.h"

namespace {

using agentserve::base::Field;
using agentserve::router::ServiceConfig;

struct Options {
  ServiceConfig service;
  std::string log_level = "info";
  bool log_json = false;
  std::string layers = "all", tenant_policy, tenant_class, tenant_share;
  int64_t batch_cap = 0;
  int64_t aging_bound_ms = agentserve::router::AgentPolicyOptions().aging_bound / agentserve::base::kNsPerMs;
  int64_t prefill_threshold = 512;
  int64_t max_queued = 10'000;
  int64_t max_queued_tokens = 16'000'000;
  int64_t max_queued_mib = 256;
  int64_t max_queue_wait_ms = 120'000;
  int64_t lease_ms = 3'000;
  std::string tenants;
};

void AddFlags(agentserve::base::FlagSet* f, Options* o) {
  std::string policies;
  for (const auto& p : agentserve::router::Policies()) {
    agentserve::base::StrAppend(&policies, policies.empty() ? "" : "; ", p.name, ": ", p.help);
  }
  f->Add("host", &o->service.host, "address to listen on", "Network");
  f->Add("port", &o->service.port, "gRPC port; 0 = any free one", "Network");
  f->Add("metrics-port", &o->service.metrics_port, "Prometheus port; 0 = any free one, -1 = off", "Network");
  f->Add("kvstore", &o->service.kvstore, "host:port of the kvstore; empty = the router's own memory of prefixes",
         "Network");
  f->Add("model", &o->service.model_dir, "folder with config.json and tokenizer.json", "Model");
  f->Add("model-id", &o->service.model_id, "name that clients use; empty = name of the folder", "Model");
  f->Add("chat-date", &o->service.chat_date, "date shown by the chat template; a fixed one keeps prefixes cacheable",
         "Model");
  f->Add("policy", &o->service.core.policy, "order of the queue: " + policies, "Scheduling");
  f->Add("policy-layers", &o->layers, "layers of policy agent: all, none, or a list such as L1,L2,L8 or all,-L7",
         "Scheduling");
  f->Add("tenant-policy", &o->tenant_policy, "policies of tenant classes, CLASS=POLICY with commas", "Scheduling");
  f->Add("tenant-class", &o->tenant_class, "classes of tenants, TENANT=CLASS with commas; others are their own class",
         "Scheduling");
  f->Add("tenant-share", &o->tenant_share, "weights of tenants, NAME=WEIGHT with commas; others have 1", "Scheduling");
  f->Add("batch-cap", &o->batch_cap, "most calls on one decode worker; 0 = the worker's own batch", "Scheduling");
  f->Add("aging-bound-ms", &o->aging_bound_ms, "wait after which a call of policy agent goes first", "Scheduling");
  f->Add("prefill-threshold", &o->prefill_threshold, "prompts with fewer new tokens are prefilled on the decode worker",
         "Scheduling");
  f->Add("tenants", &o->tenants, "JSON file of tenants: shares, classes, bounds on hints (docs/agents.md)",
         "Scheduling");
  f->Add("infer-programs", &o->service.core.infer_programs,
         "join calls that name no program to the one whose prompt they continue", "Scheduling");
  f->Add("max-queued", &o->max_queued, "most calls waiting", "Limits");
  f->Add("max-queued-tokens", &o->max_queued_tokens, "most prompt tokens waiting", "Limits");
  f->Add("max-queued-mib", &o->max_queued_mib, "most memory of waiting calls, MiB", "Limits");
  f->Add("max-queue-wait-ms", &o->max_queue_wait_ms, "longest wait for a worker", "Limits");
  f->Add("default-budget-ms", &o->service.default_budget_ms, "time budget of requests that name none", "Limits");
  f->Add("drain-ms", &o->service.drain_ms, "on SIGTERM, wait this long for running requests", "Limits");
  f->Add("lease-ms", &o->lease_ms, "silence after which a worker is lost", "Limits");
  f->Add("log-level", &o->log_level, "debug, info, warn or error", "Logging");
  f->Add("log-json", &o->log_json, "log JSON lines", "Logging");
}

// "a=1,b=2"; the empty text is the empty map. False with `problem` set if a piece is not NAME=VALUE or comes twice.
bool ParseMap(const std::string& flag, const std::string& text, std::map<std::string, std::string>* out,
              std::string* problem) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string piece = text.substr(at, comma - at);
    at = comma + 1;
    const size_t equals = piece.find('=');
    const bool good = equals != std::string::npos && equals > 0 && equals + 1 < piece.size();
    if (!good || !out->emplace(piece.substr(0, equals), piece.substr(equals + 1)).second) {
      *problem = agentserve::base::StrCat("--", flag, ": \"", piece, "\" is not NAME=VALUE, or NAME comes twice");
      return false;
    }
  }
  return true;
}

std::string CheckScheduling(Options* o) {
  using agentserve::base::StrCat;
  auto& core = o->service.core;
  if (auto p = agentserve::router::FindPolicy(core.policy); !p.ok()) {
    return StrCat("--policy: ", agentserve::base::MessageOf(p.status()));
  }
  if (absl::Status s = agentserve::router::ParseAgentLayers(o->layers, &core.agent); !s.ok()) {
    return StrCat("--policy-layers: ", agentserve::base::MessageOf(s));
  }
  std::string problem;
  std::map<std::string, std::string> shares;
  if (!ParseMap("tenant-policy", o->tenant_policy, &core.tenant_policy, &problem) ||
      !ParseMap("tenant-class", o->tenant_class, &core.tenant_class, &problem) ||
      !ParseMap("tenant-share", o->tenant_share, &shares, &problem)) {
    return problem;
  }
  for (const auto& [tenant_class, policy] : core.tenant_policy) {
    if (auto p = agentserve::router::FindPolicy(policy); !p.ok()) {
      return StrCat("--tenant-policy: class ", tenant_class, ": ", agentserve::base::MessageOf(p.status()));
    }
  }
  for (const auto& [tenant, text] : shares) {
    char* end = nullptr;
    const double weight = std::strtod(text.c_str(), &end);
    if (*end != '\0' || !(weight >= 0.001 && weight <= 1000)) {
      return StrCat("--tenant-share: tenant ", tenant, ": \"", text, "\" is no weight from 0.001 to 1000");
    }
    core.tenant_share[tenant] = weight;
  }
  if (o->batch_cap < 0 || o->batch_cap > 65'536) return "--batch-cap must be 0 to 65536";
  if (o->aging_bound_ms < 1 || o->aging_bound_ms > 86'400'000) return "--aging-bound-ms must be 1 to 86400000";
  core.batch_cap = static_cast<uint32_t>(o->batch_cap);
  core.agent.aging_bound = o->aging_bound_ms * agentserve::base::kNsPerMs;
  return "";
}

std::string CheckOptions(Options* o) {
  using agentserve::base::StrCat;
  auto in = [](int64_t v, int64_t low, int64_t high) { return v >= low && v <= high; };
  if (o->service.model_dir.empty()) return "--model is missing; name the folder of the model";
  if (!in(o->prefill_threshold, 0, 1 << 24)) return "--prefill-threshold must be 0 to 16777216";
  if (!in(o->max_queued, 1, 1'000'000)) return "--max-queued must be 1 to 1000000";
  if (!in(o->max_queued_tokens, 1, int64_t{1} << 40)) return "--max-queued-tokens must be at least 1";
  if (!in(o->max_queued_mib, 1, 1 << 20)) return "--max-queued-mib must be 1 to 1048576";
  if (!in(o->max_queue_wait_ms, 1, 86'400'000)) return "--max-queue-wait-ms must be 1 to 86400000";
  if (!in(o->service.default_budget_ms, 1, o->service.max_budget_ms)) {
    return StrCat("--default-budget-ms must be 1 to ", o->service.max_budget_ms);
  }
  if (!in(o->lease_ms, 300, 600'000)) return "--lease-ms must be 300 to 600000";
  if (std::string problem = CheckScheduling(o); !problem.empty()) return problem;
  auto& core = o->service.core;
  core.prefill_threshold = static_cast<uint32_t>(o->prefill_threshold);
  core.max_queued = static_cast<uint32_t>(o->max_queued);
  core.max_queued_tokens = static_cast<uint64_t>(o->max_queued_tokens);
  core.max_queued_bytes = static_cast<uint64_t>(o->max_queued_mib) << 20;
  core.max_queue_wait = o->max_queue_wait_ms * agentserve::base::kNsPerMs;
  core.lease = o->lease_ms * agentserve::base::kNsPerMs;
  core.heartbeat = core.lease / 3;
  if (!o->tenants.empty()) {
    if (auto s = agentserve::router::ReadTenantFile(o->tenants, &core); !s.ok()) {
      return StrCat("--tenants: ", agentserve::base::MessageOf(s));
    }
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  namespace base = agentserve::base;
  // Blocked before any thread starts, so that sigwait below gets them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  Options options;
  base::FlagSet flags("agentserve-router", "Admits, orders and places requests; the text edge of the cluster.");
  AddFlags(&flags, &options);
  if (auto code = flags.ParseOrExit(argc, argv)) return *code;
  base::LogLevel level;
  std::string problem = CheckOptions(&options);
  if (problem.empty() && !base::ParseLogLevel(options.log_level, &level)) {
    problem = "--log-level must be debug, info, warn or error";
  }
  if (!problem.empty()) {
    std::fprintf(stderr, "agentserve-router: %s\n", problem.c_str());
    return base::kExitConfig;
  }
  base::InitLog("router", level, options.log_json);
  auto server = agentserve::router::RouterServer::Start(options.service);
  if (!server.ok()) {
    AS_LOG(kError, "service.failed") << Field("reason", base::MessageOf(server.status()));
    return absl::IsUnavailable(server.status()) ? base::kExitConfig : base::kExitModel;
  }
  AS_LOG(kInfo, "service.ready") << Field("port", (*server)->port()) << Field("metrics_port", (*server)->metrics_port())
                                 << Field("model", (*server)->model().model_id)
                                 << Field("context", (*server)->model().card.context_length)
                                 << Field("policy", options.service.core.policy);
  int signal_number = 0;
  sigwait(&signals, &signal_number);
  AS_LOG(kInfo, "service.draining") << Field("signal", signal_number);
  (*server)->Shutdown(options.service.drain_ms);
  AS_LOG(kInfo, "service.stopped");
  return base::kExitOk;
}
