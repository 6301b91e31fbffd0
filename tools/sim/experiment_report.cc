// Tables, JSON and CSV of an experiment.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "base/version.h"
#include "tools/sim/experiment.h"

namespace agentserve::sim {
namespace {

using nlohmann::json;

json ToJson(const Distribution& d) {
  return {{"mean", d.mean}, {"p50", d.p50}, {"p95", d.p95}, {"p99", d.p99}, {"max", d.max}, {"n", d.n}};
}
json ToJson(const ClassFigures& c) {
  return {{"serving_s", ToJson(c.serving)},
          {"jct_s", ToJson(c.jct)},
          {"slowdown", ToJson(c.slowdown)},
          {"serving_slowdown", ToJson(c.serving_slowdown)}};
}
json OrNull(double v) { return std::isfinite(v) ? json(v) : json(nullptr); }

std::string Format(const char* format, double v) {
  char text[64];
  std::snprintf(text, sizeof text, format, v);
  return text;
}

struct Column {
  const char* name;
  const char* format;
  double (*value)(const Row&);
};

constexpr Column kColumns[] = {
    {"serving", "%.3f", [](const Row& r) { return r.figures.all.serving.mean; }},
    {"p50", "%.3f", [](const Row& r) { return r.figures.all.serving.p50; }},
    {"p95", "%.2f", [](const Row& r) { return r.figures.all.serving.p95; }},
    {"p99", "%.2f", [](const Row& r) { return r.figures.all.serving.p99; }},
    {"JCT", "%.2f", [](const Row& r) { return r.figures.all.jct.mean; }},
    {"JCTp99", "%.1f", [](const Row& r) { return r.figures.all.jct.p99; }},
    {"slow", "%.2f", [](const Row& r) { return r.figures.all.serving_slowdown.mean; }},
    {"slow99", "%.1f", [](const Row& r) { return r.figures.all.serving_slowdown.p99; }},
    {"slowmax", "%.0f", [](const Row& r) { return r.figures.all.serving_slowdown.max; }},
    {"jobs/h", "%.0f", [](const Row& r) { return r.figures.jobs_per_h; }},
    {"tok/s", "%.0f", [](const Row& r) { return r.figures.output_tokens_per_s; }},
    {"TTFTok", "%.3f", [](const Row& r) { return r.figures.ttft_attained; }},
    {"TPOTok", "%.3f", [](const Row& r) { return r.figures.tpot_attained; }},
    {"hit", "%.3f", [](const Row& r) { return r.figures.hit_rate; }},
    {"bound", "%.3f", [](const Row& r) { return r.figures.hit_rate_bound; }},
    {"Jain", "%.3f", [](const Row& r) { return r.figures.jain; }},
    {"share", "%.2f", [](const Row& r) { return r.figures.least_share; }},
    {"busy", "%.2f", [](const Row& r) { return r.busy_share; }},
    {"gap", "%.2f", [](const Row& r) { return r.gap_call_fifo; }},
    {"gapP", "%.2f", [](const Row& r) { return r.gap_program_fifo; }},
};

std::string Pad(const std::string& s, size_t width, bool left = false) {
  if (s.size() >= width) return s;
  const std::string space(width - s.size(), ' ');
  return left ? s + space : space + s;
}

json RowJson(const Row& r) {
  const Figures& f = r.figures;
  json row = {{"variant", r.variant},
              {"load", r.load},
              {"rate", r.rate},
              {"all", ToJson(f.all)},
              {"ttft_s", ToJson(f.ttft_s)},
              {"tpot_ms", ToJson(f.tpot_ms)},
              {"queue_s", ToJson(f.queue_s)},
              {"jobs_per_h", f.jobs_per_h},
              {"output_tokens_per_s", f.output_tokens_per_s},
              {"ttft_attained", f.ttft_attained},
              {"tpot_attained", f.tpot_attained},
              {"hit_rate", f.hit_rate},
              {"hit_rate_bound", f.hit_rate_bound},
              {"jain", f.jain},
              {"worst_tenant_slowdown", f.worst_tenant_slowdown},
              {"least_share", f.least_share},
              {"jobs", f.jobs},
              {"calls", f.calls},
              {"failed", f.failed},
              {"busy_share", r.busy_share},
              {"virtual_s", r.virtual_s},
              {"wall_s", r.wall_s},
              {"preemptions", r.preemptions},
              {"gave_up", r.gave_up}};
  for (const auto& [name, c] : f.by_class) row["by_class"][name] = ToJson(c);
  for (const auto& [name, d] : f.call_latency_by_label) row["call_latency_by_label"][name] = ToJson(d);
  if (r.seed > 0) {
    row["seed"] = r.seed;
    row["event_hash"] = base::StrCat("0x", absl::Hex(r.event_hash, absl::kZeroPad16));
  } else {
    row["gap_call_fifo"] = OrNull(r.gap_call_fifo);
    row["gap_program_fifo"] = OrNull(r.gap_program_fifo);
  }
  return row;
}

}  // namespace

std::string ResultTable(const ExperimentResult& r) {
  size_t name_width = 8;
  for (const Row& row : r.means) name_width = std::max(name_width, row.variant.size());
  std::string out = Pad("load", 5) + " " + Pad("policy", name_width, true);
  for (const Column& c : kColumns) out += Pad(c.name, 9);
  out += "\n";
  for (const Row& row : r.means) {
    out += Pad(row.load > 0 ? Format("%.2f", row.load) : "-", 5) + " " + Pad(row.variant, name_width, true);
    for (const Column& c : kColumns) {
      const double v = c.value(row);
      out += Pad(std::isfinite(v) ? Format(c.format, v) : "-", 9);
    }
    out += row.gave_up ? "  cut short\n" : "\n";
  }
  return out;
}

std::string ResultJson(const ExperimentResult& r, const workload::Workload& w, const Calibration& c,
                       const Experiment& e) {
  const SimOptions& o = e.options;
  json d = {{"commit", base::Commit()},
            {"workload", {{"name", w.name}, {"programs", w.programs.size()}, {"calls", w.calls()}}},
            {"calibration", {{"name", c.name}, {"source", c.source}}},
            {"settings",
             {{"decode_workers", o.decode_workers},
              {"prefill_workers", o.prefill_workers},
              {"core_workers", o.core_workers},
              {"block_tokens", o.block_tokens},
              {"max_batch", o.max_batch > 0 ? o.max_batch : c.max_batch},
              {"kv_gib", c.kv_gib},
              {"host_gib", o.host_gib},
              {"num_blocks", o.num_blocks},
              {"arrivals", workload::ArrivalName(o.arrivals)},
              {"population", o.population},
              {"duration_s", o.duration_s},
              {"warmup_s", o.warmup_s},
              {"tenants", o.tenants},
              {"slo_ttft_s", o.slo.ttft_s},
              {"slo_tpot_ms", o.slo.tpot_ms},
              {"seeds", e.seeds}}},
            {"saturation_sessions_per_s", r.saturation},
            {"means", json::array()},
            {"runs", json::array()}};
  for (const Row& row : r.means) d["means"].push_back(RowJson(row));
  for (const Row& row : r.runs) d["runs"].push_back(RowJson(row));
  return d.dump(1);
}

std::string ResultCsv(const ExperimentResult& r) {
  std::string out = "load,variant";
  for (const Column& c : kColumns) out += base::StrCat(",", c.name);
  out += "\n";
  for (const Row& row : r.means) {
    out += base::StrCat(Format("%g", row.load), ",", row.variant);
    for (const Column& c : kColumns) {
      const double v = c.value(row);
      out += base::StrCat(",", std::isfinite(v) ? Format("%.6g", v) : "");
    }
    out += "\n";
  }
  return out;
}

}  // namespace agentserve::sim
