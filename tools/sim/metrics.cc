#include "tools/sim/metrics.h"

#include <algorithm>
#include <cmath>

namespace agentserve::sim {
namespace {

// Nearest rank.
double Quantile(const std::vector<double>& sorted, double q) {
  const auto at = static_cast<size_t>(std::ceil(q * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(at, 1, sorted.size()) - 1];
}

struct Collected {
  std::vector<double> serving, jct, slowdown, serving_slowdown;
  void Add(const JobRecord& j) {
    serving.push_back(j.serving_s);
    jct.push_back(j.jct_s);
    slowdown.push_back(j.jct_s / std::max(j.alone_jct_s, 1e-9));
    serving_slowdown.push_back(j.serving_s / std::max(j.alone_serving_s, 1e-9));
  }
  ClassFigures Make() { return {Summarise(serving), Summarise(jct), Summarise(slowdown), Summarise(serving_slowdown)}; }
};

void TenantFigures(const RunRecords& r, Figures* f) {
  std::map<uint16_t, std::pair<double, size_t>> slowdown;
  for (const JobRecord& j : r.jobs) {
    auto& [sum, n] = slowdown[j.tenant];
    sum += j.serving_s / std::max(j.alone_serving_s, 1e-9);
    ++n;
  }
  double sum = 0, squares = 0;
  for (const auto& [tenant, s] : slowdown) {
    const double mean = s.first / static_cast<double>(s.second);
    f->worst_tenant_slowdown = std::max(f->worst_tenant_slowdown, mean);
    sum += 1 / mean;
    squares += 1 / (mean * mean);
  }
  if (squares > 0) f->jain = sum * sum / (static_cast<double>(slowdown.size()) * squares);
  std::vector<double> got(r.tenant_asked.size(), 0);
  double total = 0;
  for (const CallRecord& c : r.calls) {
    if (c.end_s < r.window_from_s || c.end_s > r.window_to_s || c.tenant >= got.size()) continue;
    got[c.tenant] += c.out;
    total += c.out;
  }
  for (size_t t = 0; t < got.size(); ++t) {
    const double due = std::min(r.tenant_asked[t], total / static_cast<double>(got.size()));
    if (due > 0) f->least_share = std::min(f->least_share, got[t] / due);
  }
}

}  // namespace

Distribution Summarise(std::vector<double> values) {
  Distribution d;
  d.n = values.size();
  if (values.empty()) return d;
  std::sort(values.begin(), values.end());
  for (double v : values) d.mean += v / static_cast<double>(values.size());
  d.p50 = Quantile(values, 0.50);
  d.p95 = Quantile(values, 0.95);
  d.p99 = Quantile(values, 0.99);
  d.max = values.back();
  return d;
}

Figures MakeFigures(const RunRecords& r, const std::vector<std::string>& classes,
                    const std::vector<std::string>& labels, const Slo& slo) {
  Figures f;
  Collected all;
  std::map<std::string, Collected> by_class;
  for (const JobRecord& j : r.jobs) {
    all.Add(j);
    by_class[classes.at(j.workflow)].Add(j);
  }
  f.all = all.Make();
  for (auto& [name, c] : by_class) f.by_class[name] = c.Make();
  std::vector<double> ttft, tpot, queue;
  std::map<std::string, std::vector<double>> by_label;
  double prompt = 0, cached = 0, bound = 0, out = 0, ttft_ok = 0, tpot_ok = 0, with_tpot = 0;
  for (const CallRecord& c : r.calls) {
    if (c.end_s >= r.window_from_s && c.end_s <= r.window_to_s) out += c.out;
    if (!c.measured) continue;
    ttft.push_back(c.ttft_s);
    queue.push_back(c.queue_s);
    ttft_ok += c.ttft_s <= slo.ttft_s;
    if (c.out > 1) {
      tpot.push_back(c.tpot_ms);
      tpot_ok += c.tpot_ms <= slo.tpot_ms;
      ++with_tpot;
    }
    if (c.label > 0) by_label[labels.at(c.label - 1u)].push_back(c.e2e_s);
    prompt += c.in, cached += c.cached, bound += c.bound_cached;
  }
  for (auto& [name, values] : by_label) f.call_latency_by_label[name] = Summarise(std::move(values));
  f.calls = ttft.size();
  f.jobs = r.jobs.size();
  f.failed = r.failed;
  f.ttft_attained = ttft.empty() ? 0 : ttft_ok / static_cast<double>(ttft.size());
  f.tpot_attained = with_tpot == 0 ? 0 : tpot_ok / with_tpot;
  f.ttft_s = Summarise(std::move(ttft));
  f.tpot_ms = Summarise(std::move(tpot));
  f.queue_s = Summarise(std::move(queue));
  const double span = r.window_to_s - r.window_from_s;
  if (span > 0) {
    f.jobs_per_h = static_cast<double>(r.window_jobs) / span * 3600;
    f.output_tokens_per_s = out / span;
  }
  if (prompt > 0) f.hit_rate = cached / prompt, f.hit_rate_bound = bound / prompt;
  TenantFigures(r, &f);
  return f;
}

}  // namespace agentserve::sim
