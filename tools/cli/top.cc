// `agentserve top`: a live view of a cluster.
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "base/flags.h"
#include "base/strings.h"
#include "tools/cli/cluster_client.h"
#include "tools/cli/commands.h"
#include "tools/cli/paths.h"

namespace agentserve::tools {

using base::StrCat;
using nlohmann::json;

namespace {

std::string ToJson(const ClusterSummary& s) {
  json out = {{"model", s.model_id},
              {"policy", s.policy},
              {"queued", s.queued},
              {"running", s.running},
              {"accepted", s.accepted_total},
              {"finished", s.finished_total},
              {"tokens_per_s", s.tokens_per_s},
              {"kvstore_connected", s.kvstore_connected},
              {"workers", json::array()}};
  for (const ClusterSummary::Worker& w : s.workers) {
    out["workers"].push_back({{"id", w.id},
                              {"role", w.role},
                              {"state", w.state},
                              {"address", w.address},
                              {"running", w.running},
                              {"waiting", w.waiting},
                              {"waiting_tokens", w.waiting_tokens},
                              {"total_blocks", w.total_blocks},
                              {"available_blocks", w.available_blocks},
                              {"cached_blocks", w.cached_blocks},
                              {"preemptions", w.preemptions},
                              {"steps", w.steps},
                              {"silent_ms", w.silent_ms},
                              {"tokens_per_s", w.tokens_per_s}});
  }
  return out.dump(2);
}

std::string Bar(double part) {
  constexpr size_t kWidth = 10;
  const auto filled = static_cast<size_t>(std::min(1.0, std::max(0.0, part)) * kWidth + 0.5);
  return StrCat(std::string(filled, '#'), std::string(kWidth - filled, '.'));
}

std::string Table(const ClusterSummary& s) {
  char line[256];
  std::string out;
  std::snprintf(line, sizeof(line),
                "%s   policy %s   queued %u   running %u   done %llu of %llu   %.0f tokens/s   kvstore %s\n\n",
                s.model_id.c_str(), s.policy.c_str(), s.queued, s.running,
                static_cast<unsigned long long>(s.finished_total), static_cast<unsigned long long>(s.accepted_total),
                s.tokens_per_s, s.kvstore_connected ? "up" : "down");
  out += line;
  std::snprintf(line, sizeof(line), "%-14s %-8s %-11s %7s %7s %9s %9s  %-17s %9s %8s\n", "worker", "role", "state",
                "running", "waiting", "to fill", "tokens/s", "KV in use", "preempted", "silent");
  out += line;
  for (const ClusterSummary::Worker& w : s.workers) {
    const double used = w.total_blocks == 0 ? 0 : 1.0 - static_cast<double>(w.available_blocks) / w.total_blocks;
    std::snprintf(line, sizeof(line), "%-14s %-8s %-11s %7u %7u %9u %9.0f  %s %5.1f%% %9llu %5llu ms\n", w.id.c_str(),
                  w.role.c_str(), w.state.c_str(), w.running, w.waiting, w.waiting_tokens, w.tokens_per_s,
                  Bar(used).c_str(), 100 * used, static_cast<unsigned long long>(w.preemptions),
                  static_cast<unsigned long long>(w.silent_ms));
    out += line;
  }
  return out;
}

}  // namespace

int RunTop(int argc, const char* const* argv) {
  std::string router, state_file;
  bool once = false, as_json = false;
  int interval_ms = 1000;
  base::FlagSet flags("agentserve top", "Shows workers, queues and rates of a running cluster until Ctrl-C.");
  flags.Add("router", &router, "host:port of the router's gRPC; none = from --state-file");
  flags.Add("state-file", &state_file, "state file of `agentserve up`; none = the newest running");
  flags.Add("interval-ms", &interval_ms, "milliseconds between two views");
  flags.Add("once", &once, "print one view and end");
  flags.Add("json", &as_json, "print JSON");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  if (interval_ms < 100 || interval_ms > 60'000) {
    std::fprintf(stderr, "agentserve top: --interval-ms must be 100 to 60000\n");
    return base::kExitConfig;
  }
  absl::Status s;
  if (router.empty()) {
    auto found = RouterAddress(state_file);
    s = found.status();
    if (found.ok()) router = *found;
  }
  const bool redraw = !once && !as_json && isatty(STDOUT_FILENO) == 1;
  const auto show = [&](const ClusterSummary& state) {
    std::printf("%s%s%s\n", redraw ? "\x1b[H\x1b[2J" : "", (as_json ? ToJson(state) : Table(state)).c_str(),
                redraw ? "\nCtrl-C ends." : "");
    std::fflush(stdout);
    return !once && std::ferror(stdout) == 0;
  };
  if (s.ok()) s = WatchCluster(router, static_cast<uint32_t>(interval_ms), show);
  if (s.ok()) return base::kExitOk;
  std::fprintf(stderr, "agentserve top: %s\n", base::MessageOf(s).c_str());
  return base::kExitFailure;
}

}  // namespace agentserve::tools
