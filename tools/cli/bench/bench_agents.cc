// `agentserve bench agents`: agent workloads against a running cluster.
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/bench/agents.h"
#include "tools/cli/bench/bench_programs.h"
#include "tools/cli/bench/load.h"
#include "tools/sim/experiment.h"
#include "tools/workload/sources.h"

namespace agentserve::tools {
namespace {

using base::StrCat;

struct Config {
  AgentsConfig run;
  workload::SourceOptions source;
  std::string url = "http://127.0.0.1:8000", arrivals = "poisson", calibration = "h200-1b", name = "live", json_file;
  int programs = 500, population = 8, most_calls = 256, seed = 1, divide = 8, jobs_per_session = 0;
  sim::Slo slo;
};

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(base::ToAbsl(what)); }

absl::Status Prepare(Config* c) {
  AgentsConfig& r = c->run;
  if (c->programs < 1 || c->population < 1 || c->most_calls < 1 || c->divide < 1 || c->jobs_per_session < 0) {
    return Bad("--programs, --population, --max-calls and --divide must be at least 1");
  }
  if (c->most_calls > 10'000) return Bad("--max-calls must be at most 10000");  // a socket and a coroutine each
  if (!(r.rate > 0)) return Bad("--rate must be above 0");
  if (!(r.duration_s > r.warmup_s && r.warmup_s >= 0)) return Bad("--duration must be longer than --warmup");
  if (!(r.wait_scale >= 0)) return Bad("--wait-scale must not be negative");
  AS_ASSIGN_OR_RETURN(r.arrivals, workload::ParseArrivals(c->arrivals));
  if (r.arrivals == workload::ArrivalKind::kTrace) return Bad("--arrivals trace is for the simulator");
  AS_ASSIGN_OR_RETURN(r.url, ParseUrl(c->url));
  r.population = static_cast<uint32_t>(c->population);
  r.most_calls = static_cast<uint32_t>(c->most_calls);
  r.seed = static_cast<uint64_t>(c->seed);
  c->source.generate.programs = static_cast<uint32_t>(c->programs);
  c->source.coding.divide = static_cast<uint32_t>(c->divide);
  c->source.coding.jobs_per_session = static_cast<uint32_t>(c->jobs_per_session);
  // The client's record of an answer is text: its tokens need not be those that were generated.
  c->source.forget_outputs = true;
  return absl::OkStatus();
}

absl::Status WriteJson(const std::string& file, const std::string& text) {
  if (file.empty()) return absl::OkStatus();
  if (file == "-") {
    std::printf("%s\n", text.c_str());
    return absl::OkStatus();
  }
  std::ofstream out(file);
  out << text << "\n";
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(base::ToAbsl(StrCat("cannot write --json ", file, ": ", strerror(errno))));
}

absl::Status Run(Config c, bool* failed) {
  AS_RETURN_IF_ERROR(Prepare(&c));
  AS_ASSIGN_OR_RETURN(const workload::Workload w, workload::OpenWorkload(c.source));
  absl::StatusOr<sim::Calibration> k = sim::BuiltinCalibration(c.calibration);
  if (!k.ok()) k = sim::LoadCalibration(c.calibration);
  AS_RETURN_IF_ERROR(k.status());
  AS_ASSIGN_OR_RETURN(const sim::StepModel model, sim::StepModel::Make(*k));
  if (c.run.model.empty()) {
    AS_ASSIGN_OR_RETURN(c.run.model, FirstModel(c.run.url, c.run.api_key));
  }
  const std::vector<uint32_t> pool = FetchTokenPool(c.run.url, c.run.api_key, c.run.model);
  const bool terminal = isatty(STDERR_FILENO) == 1;
  const auto progress = [&](const AgentsProgress& p) {
    if (!terminal) return;
    std::fprintf(stderr, "\r\x1b[2K%.0f s: %zu sessions, %zu calls in flight, %zu waiting, %zu jobs ended, %zu failed",
                 p.seconds, p.sessions, p.in_flight, p.waiting, p.jobs, p.failed);
  };
  AS_ASSIGN_OR_RETURN(const sim::RunRecords records, RunAgents(c.run, w, model, pool, progress));
  if (terminal) std::fputs("\r\x1b[2K", stderr);
  sim::Row row;
  row.variant = c.name;
  row.rate = c.run.rate;
  row.figures = sim::MakeFigures(records, w.classes, w.labels, c.slo);
  row.calls = records.calls.size();
  row.gap_call_fifo = row.gap_program_fifo = std::nan("");
  *failed = records.failed > 0;
  sim::ExperimentResult result;
  result.means = {row};
  if (c.json_file != "-") std::fputs(sim::ResultTable(result).c_str(), stdout);
  sim::Experiment e;
  e.options.arrivals = c.run.arrivals;
  e.options.duration_s = c.run.duration_s;
  e.options.warmup_s = c.run.warmup_s;
  e.options.population = c.run.population;
  return WriteJson(c.json_file, sim::ResultJson(result, w, *k, e));
}

}  // namespace

int RunBenchAgents(int argc, const char* const* argv) {
  Config c;
  base::FlagSet f("agentserve bench agents", "Lets simulated agents work against a running cluster, closed loop.");
  f.Add("url", &c.url, "address of the gateway", "Server");
  f.Add("model", &c.run.model, "model name; none = the first that the server offers", "Server");
  f.Add("api-key", &c.run.api_key, "key to send", "Server");
  f.Add("workload", &c.source.name, workload::WorkloadNames(), "Workload");
  f.Add("data", &c.source.data_dir, "folder that holds traces/", "Workload");
  f.Add("programs", &c.programs, "sessions that a generator makes (they repeat when used up)", "Workload");
  f.Add("divide", &c.divide, "coding: input lengths are divided by this", "Workload");
  f.Add("jobs-per-session", &c.jobs_per_session, "coding: sessions are cut after so many user turns", "Workload");
  f.Add("tool-cap", &c.source.coding.tool_cap_s, "coding: most seconds of a tool wait; 0 = as recorded", "Workload");
  f.Add("think-cap", &c.source.coding.think_cap_s, "coding: most seconds a user thinks; 0 = as recorded", "Workload");
  f.Add("in-scale", &c.source.in_scale, "prompt sizes are multiplied by this", "Workload");
  f.Add("out-scale", &c.source.out_scale, "output sizes are multiplied by this", "Workload");
  f.Add("wait-scale", &c.run.wait_scale, "tool waits and think times are multiplied by this", "Workload");
  f.Add("arrivals", &c.arrivals, "poisson, gamma (bursty), onoff (bursty) or closed", "Run");
  f.Add("rate", &c.run.rate, "sessions a second", "Run");
  f.Add("population", &c.population, "sessions at once with --arrivals closed", "Run");
  f.Add("duration", &c.run.duration_s, "seconds of arrivals", "Run");
  f.Add("warmup", &c.run.warmup_s, "seconds before jobs count", "Run");
  f.Add("max-calls", &c.most_calls, "calls in flight; more wait at the client", "Run");
  f.Add("timeout", &c.run.timeout_s, "seconds that one call may take", "Run");
  f.Add("hints", &c.run.hints, "name program, class, step and tool in headers", "Run");
  f.Add("seed", &c.seed, "seed of arrivals and of the order of sessions; as the simulator's", "Run");
  f.Add("calibration", &c.calibration, "for the time a job would take alone: file or built-in name", "Report");
  f.Add("name", &c.name, "name of the row", "Report");
  f.Add("slo-ttft", &c.slo.ttft_s, "goal of the time to first token, seconds", "Report");
  f.Add("slo-tpot-ms", &c.slo.tpot_ms, "goal of the time per output token", "Report");
  f.Add("json", &c.json_file, "file that gets the figures as JSON; - = standard output", "Report");
  if (const auto rc = f.ParseOrExit(argc, argv)) return *rc;
  bool failed = false;
  const absl::Status s = Run(std::move(c), &failed);
  if (s.ok()) return failed ? base::kExitFailure : base::kExitOk;
  std::fprintf(stderr, "agentserve bench agents: %s\n", base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) || absl::IsNotFound(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace agentserve::tools
