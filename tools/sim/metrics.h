// Figures of one run, simulated or live: the same records, the same definitions (docs/scheduling_results.md).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace agentserve::sim {

// One finished job (user turn).
struct JobRecord {
  uint16_t workflow = 0, tenant = 0;
  double start_s = 0;
  double jct_s = 0;
  double serving_s = 0;  // of these, with at least one call in the system
  double alone_jct_s = 0, alone_serving_s = 0;
  uint32_t calls = 0, out = 0;
};
struct CallRecord {
  uint16_t workflow = 0, tenant = 0, label = 0;
  float ttft_s = 0, tpot_ms = 0, e2e_s = 0, queue_s = 0;
  uint32_t in = 0, out = 0, cached = 0, bound_cached = 0;
  double end_s = 0;
  bool measured = false;
};

struct Distribution {
  double mean = 0, p50 = 0, p95 = 0, p99 = 0, max = 0;
  size_t n = 0;
};
Distribution Summarise(std::vector<double> values);

struct ClassFigures {
  Distribution serving, jct, slowdown, serving_slowdown;
};

struct Slo {
  double ttft_s = 2, tpot_ms = 50;
};

struct Figures {
  ClassFigures all;
  std::map<std::string, ClassFigures> by_class;
  std::map<std::string, Distribution> call_latency_by_label;
  Distribution ttft_s, tpot_ms, queue_s;
  double jobs_per_h = 0, output_tokens_per_s = 0;
  double ttft_attained = 0, tpot_attained = 0;  // share of calls within the goal
  double hit_rate = 0, hit_rate_bound = 0;      // cached prompt tokens / prompt tokens
  double jain = 1;                              // over tenants, of 1 / mean serving slowdown
  double worst_tenant_slowdown = 0;             // mean serving slowdown of the worst tenant
  double least_share = 1;  // of a tenant: output tokens it got / min(what it asked for, its equal share), least
  size_t jobs = 0, calls = 0, failed = 0;
};

struct RunRecords {
  std::vector<JobRecord> jobs;    // those that count
  std::vector<CallRecord> calls;  // all that ended
  double window_from_s = 0, window_to_s = 0;
  size_t window_jobs = 0;            // ended in the window
  std::vector<double> tenant_asked;  // output tokens of calls submitted in the window, by tenant
  size_t failed = 0;
  bool count_all_calls = false;
};

Figures MakeFigures(const RunRecords& r, const std::vector<std::string>& classes,
                    const std::vector<std::string>& labels, const Slo& slo);

}  // namespace agentserve::sim
