#include "tools/sim/experiment.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "base/clock.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "router/core/agent_options.h"

namespace agentserve::sim {
namespace {

using base::StrCat;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(base::ToAbsl(what)); }

std::vector<std::string> Split(const std::string& text, char at) {
  std::vector<std::string> out;
  size_t from = 0;
  for (;;) {
    const size_t to = text.find(at, from);
    out.push_back(text.substr(from, to - from));
    if (to == std::string::npos) return out;
    from = to + 1;
  }
}

}  // namespace

absl::StatusOr<Variant> ParseVariant(const std::string& text) {
  const std::vector<std::string> parts = Split(text, '/');
  Variant v;
  v.text = text;
  v.policy = parts[0];
  for (size_t i = 1; i < parts.size(); ++i) {
    if (parts[i] == "inf") {
      v.infinite_cache = true;
    } else if (parts[i] == "full" || parts[i] == "none" || parts[i] == "ids") {
      v.set_hints = true;
      v.hints = parts[i] == "full" ? Hints::kFull : parts[i] == "none" ? Hints::kNone : Hints::kIds;
    } else if (parts[i].starts_with("layers=")) {
      v.layers = parts[i].substr(7);
      std::replace(v.layers.begin(), v.layers.end(), '.', ',');
      router::AgentPolicyOptions check;
      AS_RETURN_IF_ERROR(router::ParseAgentLayers(v.layers, &check));
    } else {
      return Bad(StrCat("policy \"", text, "\": \"", parts[i], "\" is none of inf, full, ids, none, layers=..."));
    }
  }
  return v;
}

absl::StatusOr<std::vector<Variant>> ParseVariants(const std::string& list) {
  std::vector<Variant> out;
  for (const std::string& text : Split(list, ',')) {
    AS_ASSIGN_OR_RETURN(Variant v, ParseVariant(text));
    out.push_back(std::move(v));
  }
  return out;
}

absl::StatusOr<double> MeasureSaturation(const workload::Workload& w, const Calibration& c, const SimOptions& base,
                                         const std::function<void(const std::string&)>& say) {
  double out_per_session = 0;
  for (const workload::Program& p : w.programs) {
    for (const workload::Call& call : p.calls) out_per_session += call.out;
  }
  out_per_session /= static_cast<double>(w.programs.size());
  double best = 0;
  // Beyond 64 batches of sessions per worker everything waits anyway.
  const uint32_t batch = (base.max_batch > 0 ? base.max_batch : c.max_batch) * base.decode_workers;
  for (uint32_t population = std::max(4u, batch / 16); population <= 64 * batch; population *= 2) {
    SimOptions o = base;
    o.policy = "fifo";
    o.arrivals = workload::ArrivalKind::kClosed;
    o.population = population;
    o.limit_s = o.duration_s;
    AS_ASSIGN_OR_RETURN(const SimResult r, Simulate(w, c, o));
    const double rate = r.figures.output_tokens_per_s / out_per_session;
    if (say) {
      say(StrCat("saturation: ", population, " sessions at once: ", std::to_string(rate), " sessions/s, workers busy ",
                 std::to_string(r.busy_share), ", hit rate ", std::to_string(r.figures.hit_rate)));
    }
    if (rate < best * 1.03) return std::max(best, rate);
    best = rate;
    // Of longer sessions only the beginnings would be seen.
    if (population / rate > (o.duration_s - o.warmup_s) / 2) break;
  }
  return best;
}

namespace {

absl::StatusOr<Row> RunOne(const workload::Workload& w, const Calibration& c, const Experiment& e, const Variant& v,
                           double load, double saturation, uint64_t seed) {
  SimOptions o = e.options;
  o.policy = v.policy;
  o.seed = seed;
  o.infinite_cache = v.infinite_cache;
  if (v.set_hints) o.hints = v.hints;
  if (load > 0) o.rate = load * saturation;
  if (!v.layers.empty()) {
    o.configure = [&, before = e.options.configure](router::CoreConfig* config) {
      if (before) before(config);
      (void)router::ParseAgentLayers(v.layers, &config->agent);
    };
  }
  const base::MonotonicClock clock;
  const base::TimeNs begin = clock.Now();
  AS_ASSIGN_OR_RETURN(SimResult r, Simulate(w, c, o));
  Row row;
  row.variant = v.text;
  row.load = load;
  row.rate = o.rate;
  row.seed = seed;
  row.figures = r.figures;
  row.busy_share = r.busy_share;
  row.virtual_s = r.virtual_s;
  row.wall_s = base::ToMs(clock.Now() - begin) / 1000;
  row.preemptions = r.preemptions;
  row.calls = r.calls_ended;
  row.event_hash = r.event_hash;
  row.gave_up = r.gave_up;
  return row;
}

void AddDistribution(const Distribution& d, double weight, Distribution* sum) {
  sum->mean += weight * d.mean;
  sum->p50 += weight * d.p50;
  sum->p95 += weight * d.p95;
  sum->p99 += weight * d.p99;
  sum->max = std::max(sum->max, d.max);
  sum->n += d.n;
}

void AddClass(const ClassFigures& c, double weight, ClassFigures* sum) {
  AddDistribution(c.serving, weight, &sum->serving);
  AddDistribution(c.jct, weight, &sum->jct);
  AddDistribution(c.slowdown, weight, &sum->slowdown);
  AddDistribution(c.serving_slowdown, weight, &sum->serving_slowdown);
}

// Means of the runs' figures; maxima and counts over all of them.
Row MeanOf(const std::vector<const Row*>& runs) {
  Row mean = *runs[0];
  mean.seed = 0;
  mean.event_hash = 0;
  mean.figures = {};
  mean.figures.jain = mean.figures.least_share = 0;
  mean.busy_share = mean.virtual_s = mean.wall_s = 0;
  mean.preemptions = mean.calls = 0;
  const double weight = 1.0 / static_cast<double>(runs.size());
  Figures& f = mean.figures;
  for (const Row* r : runs) {
    const Figures& g = r->figures;
    AddClass(g.all, weight, &f.all);
    for (const auto& [name, c] : g.by_class) AddClass(c, weight, &f.by_class[name]);
    for (const auto& [name, d] : g.call_latency_by_label) AddDistribution(d, weight, &f.call_latency_by_label[name]);
    AddDistribution(g.ttft_s, weight, &f.ttft_s);
    AddDistribution(g.tpot_ms, weight, &f.tpot_ms);
    AddDistribution(g.queue_s, weight, &f.queue_s);
    f.jobs_per_h += weight * g.jobs_per_h;
    f.output_tokens_per_s += weight * g.output_tokens_per_s;
    f.ttft_attained += weight * g.ttft_attained;
    f.tpot_attained += weight * g.tpot_attained;
    f.hit_rate += weight * g.hit_rate;
    f.hit_rate_bound += weight * g.hit_rate_bound;
    f.jain += weight * g.jain;
    f.least_share += weight * g.least_share;
    f.worst_tenant_slowdown = std::max(f.worst_tenant_slowdown, g.worst_tenant_slowdown);
    f.jobs += g.jobs, f.calls += g.calls, f.failed += g.failed;
    mean.busy_share += weight * r->busy_share;
    mean.virtual_s += weight * r->virtual_s;
    mean.wall_s += weight * r->wall_s;
    mean.preemptions += r->preemptions;
    mean.calls += r->calls;
    mean.gave_up = mean.gave_up || r->gave_up;
  }
  return mean;
}

// The oracle of a load: the best mean serving time among variants that know the truth.
bool IsOracle(const std::string& variant) {
  return variant.find("oracle") == 0 || variant.find("/inf") != std::string::npos;
}

void FillGaps(std::vector<Row>* means) {
  for (Row& row : *means) {
    double fifo = -1, program = -1, oracle = -1;
    for (const Row& other : *means) {
      if (other.load != row.load) continue;
      const double serving = other.figures.all.serving.mean;
      if (other.variant == "fifo") fifo = serving;
      if (other.variant == "program-fifo") program = serving;
      if (IsOracle(other.variant) && (oracle < 0 || serving < oracle)) oracle = serving;
    }
    const auto gap = [&](double from) {
      if (from < 0 || oracle < 0 || from - oracle < 1e-9) return std::numeric_limits<double>::quiet_NaN();
      return (from - row.figures.all.serving.mean) / (from - oracle);
    };
    row.gap_call_fifo = gap(fifo);
    row.gap_program_fifo = gap(program);
  }
}

}  // namespace

absl::StatusOr<ExperimentResult> RunExperiment(const workload::Workload& w, const Calibration& c, const Experiment& e) {
  ExperimentResult result;
  result.saturation = e.saturation;
  if (!e.loads.empty() && result.saturation <= 0) {
    AS_ASSIGN_OR_RETURN(result.saturation, MeasureSaturation(w, c, e.options, e.say));
  }
  const std::vector<double> loads = e.loads.empty() ? std::vector<double>{0} : e.loads;
  const size_t total = loads.size() * e.variants.size() * e.seeds;
  for (double load : loads) {
    for (const Variant& v : e.variants) {
      std::vector<const Row*> of_variant;
      const size_t first = result.runs.size();
      for (uint32_t seed = 1; seed <= e.seeds; ++seed) {
        AS_ASSIGN_OR_RETURN(Row row, RunOne(w, c, e, v, load, result.saturation, e.options.seed + seed - 1));
        if (e.say) {
          e.say(StrCat("[", result.runs.size() + 1, "/", total, "] ", v.text, " load ", load, " seed ", row.seed, ": ",
                       row.calls, " calls in ", std::to_string(row.wall_s), " s"));
        }
        result.runs.push_back(std::move(row));
      }
      for (size_t i = first; i < result.runs.size(); ++i) of_variant.push_back(&result.runs[i]);
      result.means.push_back(MeanOf(of_variant));
    }
  }
  FillGaps(&result.means);
  return result;
}

}  // namespace agentserve::sim
