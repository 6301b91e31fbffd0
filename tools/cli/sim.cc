// `agentserve sim`: a cluster under virtual time.
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/commands.h"
#include "tools/sim/experiment.h"
#include "tools/workload/sources.h"

namespace agentserve::tools {
namespace {

using base::StrCat;

struct Config {
  workload::SourceOptions source;
  sim::SimOptions sim;
  std::string policies = "fifo,program-fifo", load, arrivals = "poisson", calibration = "h200-1b", hints = "ids";
  std::string workers = "fast", json_file, csv_file, rows_file;
  int seeds = 1, seed = 1, decode = 1, prefill = 0, block_tokens = 16, max_batch = 0, tenants = 0, batch_cap = 0;
  int programs = 2000, divide = 8, jobs_per_session = 0, out_cap = 8192, population = 100, most_requests = 0;
  int num_blocks = 0;
  double kv_gib = 0, saturation = 0;
};

void AddFlags(Config* c, base::FlagSet* f) {
  f->Add("workload", &c->source.name, workload::WorkloadNames(), "Workload");
  f->Add("data", &c->source.data_dir, "folder that holds traces/", "Workload");
  f->Add("programs", &c->programs, "sessions that a generator makes (they repeat when used up)", "Workload");
  f->Add("gap-scale", &c->source.coding.gap_scale, "tool waits and think times are multiplied by this", "Workload");
  f->Add("tool-cap", &c->source.coding.tool_cap_s, "coding: most seconds of a tool wait; 0 = as recorded", "Workload");
  f->Add("think-cap", &c->source.coding.think_cap_s, "coding: most seconds a user thinks; 0 = as recorded", "Workload");
  f->Add("divide", &c->divide, "coding: input lengths are divided by this", "Workload");
  f->Add("out-cap", &c->out_cap, "coding: most output tokens of a call", "Workload");
  f->Add("jobs-per-session", &c->jobs_per_session, "coding: sessions are cut after so many user turns; 0 = whole",
         "Workload");
  f->Add("in-scale", &c->source.in_scale, "prompt sizes are multiplied by this", "Workload");
  f->Add("out-scale", &c->source.out_scale, "output sizes are multiplied by this", "Workload");
  f->Add("forget-outputs", &c->source.forget_outputs, "later prompts share earlier prompts, but not the answers",
         "Workload");
  f->Add("most-requests", &c->most_requests, "request traces: use only so many; 0 = all", "Workload");
  f->Add("tenants", &c->tenants, "deal sessions to so many tenants; 0 = the workload's own", "Workload");
  f->Add("heavy-tenant", &c->source.generate.heavy_tenant, "generators: share of the sessions that tenant 0 sends",
         "Workload");
  f->Add("write-rows", &c->rows_file, "write the workload as rows to this file and end", "Workload");
  f->Add("policy", &c->policies,
         "comma list of POLICY[/inf][/full][/none][/layers=L1.L2]; see docs/scheduling_results.md", "Run");
  f->Add("hints", &c->hints, "what clients tell: none, ids (program, class, step, tools) or full (true sizes)", "Run");
  f->Add("arrivals", &c->arrivals, "poisson, gamma (bursty), onoff (bursty), closed, or trace (recorded times)", "Run");
  f->Add("load", &c->load, "comma list of fractions of the saturation; none = --rate", "Run");
  f->Add("saturation", &c->saturation, "sessions a second at saturation; 0 = measure it (closed loop, FIFO)", "Run");
  f->Add("rate", &c->sim.rate, "sessions a second where --load is not given", "Run");
  f->Add("population", &c->population, "sessions at once with --arrivals closed", "Run");
  f->Add("duration", &c->sim.duration_s, "virtual seconds of arrivals", "Run");
  f->Add("warmup", &c->sim.warmup_s, "virtual seconds before jobs count", "Run");
  f->Add("limit", &c->sim.limit_s, "virtual seconds after which a run is cut short", "Run");
  f->Add("seeds", &c->seeds, "runs of each row, with seeds --seed, --seed + 1, ...", "Run");
  f->Add("seed", &c->seed, "first seed", "Run");
  f->Add("exact-max-tokens", &c->sim.exact_max_tokens, "clients set max_tokens to the true output length", "Run");
  f->Add("workers", &c->decode, "decode workers (aggregated ones if there are no prefill workers)", "Cluster");
  f->Add("prefill-workers", &c->prefill, "prefill workers", "Cluster");
  f->Add("worker-model", &c->workers, "fast (a model of the workers) or core (their production cores)", "Cluster");
  f->Add("calibration", &c->calibration, "file, or h200-1b, h200-3b, a10g-published", "Cluster");
  f->Add("block-tokens", &c->block_tokens, "tokens of a KV block", "Cluster");
  f->Add("kv-gib", &c->kv_gib, "KV memory of a worker; 0 = the calibration's", "Cluster");
  f->Add("host-gib", &c->sim.host_gib, "host memory of a decode worker for KV; 0 = none", "Cluster");
  f->Add("num-blocks", &c->num_blocks, "instead of --kv-gib: blocks of a worker", "Cluster");
  f->Add("max-batch", &c->max_batch, "sequences of a worker's step; 0 = the calibration's", "Cluster");
  f->Add("batch-cap", &c->batch_cap, "sequences that the router puts on a worker; 0 = its batch", "Cluster");
  f->Add("slo-ttft", &c->sim.slo.ttft_s, "goal of the time to first token, seconds", "Report");
  f->Add("slo-tpot-ms", &c->sim.slo.tpot_ms, "goal of the time per output token", "Report");
  f->Add("json", &c->json_file, "file that gets all figures as JSON; - = standard output", "Report");
  f->Add("csv", &c->csv_file, "file that gets the table as CSV", "Report");
}

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(base::ToAbsl(what)); }

absl::Status Range(const char* flag, int value, int least, int most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Bad(StrCat("--", flag, " is ", value, "; it must be ", least, " to ", most));
}

absl::StatusOr<std::vector<double>> ParseLoads(const std::string& text) {
  std::vector<double> out;
  if (text.empty()) return out;
  std::stringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    double v = 0;
    if (!absl::SimpleAtod(item, &v) || !(v > 0) || v > 10) {
      return Bad(StrCat("--load is '", text.substr(0, 100), "'; numbers above 0 with commas between are expected"));
    }
    out.push_back(v);
  }
  return out;
}

absl::Status WriteText(const char* flag, const std::string& file, const std::string& text) {
  if (file.empty()) return absl::OkStatus();
  if (file == "-") {
    std::printf("%s\n", text.c_str());
    return absl::OkStatus();
  }
  std::ofstream out(file);
  out << text << "\n";
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(base::ToAbsl(StrCat("cannot write --", flag, " ", file, ": ", strerror(errno))));
}

absl::Status Apply(Config* c) {
  AS_RETURN_IF_ERROR(Range("programs", c->programs, 1, 10'000'000));
  AS_RETURN_IF_ERROR(Range("divide", c->divide, 1, 1000));
  AS_RETURN_IF_ERROR(Range("out-cap", c->out_cap, 1, 1 << 20));
  AS_RETURN_IF_ERROR(Range("jobs-per-session", c->jobs_per_session, 0, 1'000'000));
  AS_RETURN_IF_ERROR(Range("tenants", c->tenants, 0, 10'000));
  AS_RETURN_IF_ERROR(Range("seeds", c->seeds, 1, 1000));
  AS_RETURN_IF_ERROR(Range("workers", c->decode, 1, 100'000));
  AS_RETURN_IF_ERROR(Range("prefill-workers", c->prefill, 0, 100'000));
  AS_RETURN_IF_ERROR(Range("block-tokens", c->block_tokens, 1, 4096));
  AS_RETURN_IF_ERROR(Range("max-batch", c->max_batch, 0, 65536));
  AS_RETURN_IF_ERROR(Range("batch-cap", c->batch_cap, 0, 65536));
  AS_RETURN_IF_ERROR(Range("num-blocks", c->num_blocks, 0, 1 << 30));
  AS_RETURN_IF_ERROR(Range("population", c->population, 1, 10'000'000));
  AS_RETURN_IF_ERROR(Range("most-requests", c->most_requests, 0, 1 << 30));
  if (c->workers != "fast" && c->workers != "core") {
    return Bad(StrCat("--worker-model is '", c->workers, "'; it must be fast or core"));
  }
  if (c->hints != "none" && c->hints != "ids" && c->hints != "full") {
    return Bad(StrCat("--hints is '", c->hints, "'; it must be none, ids or full"));
  }
  workload::SourceOptions& w = c->source;
  w.generate.programs = static_cast<uint32_t>(c->programs);
  w.generate.gap_scale = w.coding.gap_scale;
  if (c->tenants > 0) w.generate.tenants = static_cast<uint32_t>(c->tenants);
  w.coding.divide = static_cast<uint32_t>(c->divide);
  w.coding.out_cap = static_cast<uint32_t>(c->out_cap);
  w.coding.jobs_per_session = static_cast<uint32_t>(c->jobs_per_session);
  w.most_requests = static_cast<size_t>(c->most_requests);
  sim::SimOptions& o = c->sim;
  AS_ASSIGN_OR_RETURN(o.arrivals, workload::ParseArrivals(c->arrivals));
  o.seed = static_cast<uint64_t>(c->seed);
  o.decode_workers = static_cast<uint32_t>(c->decode);
  o.prefill_workers = static_cast<uint32_t>(c->prefill);
  o.core_workers = c->workers == "core";
  o.block_tokens = static_cast<uint32_t>(c->block_tokens);
  o.max_batch = static_cast<uint32_t>(c->max_batch);
  o.num_blocks = static_cast<uint32_t>(c->num_blocks);
  o.population = static_cast<uint32_t>(c->population);
  o.hints = c->hints == "none" ? sim::Hints::kNone : c->hints == "ids" ? sim::Hints::kIds : sim::Hints::kFull;
  if (c->batch_cap > 0) {
    o.configure = [cap = c->batch_cap](router::CoreConfig* config) { config->batch_cap = static_cast<uint32_t>(cap); };
  }
  return absl::OkStatus();
}

absl::StatusOr<sim::Calibration> FindCalibration(const Config& c) {
  absl::StatusOr<sim::Calibration> k = sim::BuiltinCalibration(c.calibration);
  if (!k.ok()) {
    absl::StatusOr<sim::Calibration> file = sim::LoadCalibration(c.calibration);
    if (!file.ok()) {
      return Bad(StrCat(base::MessageOf(k.status()), " (", base::MessageOf(file.status()), ")"));
    }
    k = std::move(file);
  }
  if (c.kv_gib > 0) k->kv_gib = c.kv_gib;
  return k;
}

absl::Status Run(Config c) {
  AS_RETURN_IF_ERROR(Apply(&c));
  AS_ASSIGN_OR_RETURN(const workload::Workload w, workload::OpenWorkload(c.source));
  if (!c.rows_file.empty()) return workload::WriteRows(w, c.rows_file);
  AS_ASSIGN_OR_RETURN(const sim::Calibration calibration, FindCalibration(c));
  const bool own_tenants = c.tenants > 0 && w.tenants.size() == 1;
  c.sim.tenants = own_tenants ? static_cast<uint32_t>(c.tenants) : 0;
  sim::Experiment e;
  AS_ASSIGN_OR_RETURN(e.variants, sim::ParseVariants(c.policies));
  AS_ASSIGN_OR_RETURN(e.loads, ParseLoads(c.load));
  e.seeds = static_cast<uint32_t>(c.seeds);
  e.saturation = c.saturation;
  e.options = c.sim;
  e.say = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  if (isatty(STDERR_FILENO) == 1) {
    e.options.progress = [](double virtual_s, size_t jobs) {
      std::fprintf(stderr, "\r\x1b[2K  virtual %.0f s, %zu jobs ended\r", virtual_s, jobs);
    };
  }
  std::fprintf(stderr, "%s: %zu programs, %zu calls; calibration %s (%s)\n", w.name.c_str(), w.programs.size(),
               w.calls(), calibration.name.c_str(), calibration.source.c_str());
  AS_ASSIGN_OR_RETURN(const sim::ExperimentResult result, sim::RunExperiment(w, calibration, e));
  if (c.json_file != "-") std::fputs(sim::ResultTable(result).c_str(), stdout);
  AS_RETURN_IF_ERROR(WriteText("csv", c.csv_file, sim::ResultCsv(result)));
  return WriteText("json", c.json_file, sim::ResultJson(result, w, calibration, e));
}

}  // namespace

int RunSim(int argc, const char* const* argv) {
  Config config;
  base::FlagSet flags("agentserve sim",
                      "Replays agent workloads on a simulated cluster: production router, virtual time.");
  AddFlags(&config, &flags);
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  const absl::Status s = Run(std::move(config));
  if (s.ok()) return base::kExitOk;
  std::fprintf(stderr, "agentserve sim: %s\n", base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) || absl::IsNotFound(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace agentserve::tools
