// Figures of a load test, as a table for people and as JSON for programs.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tools/cli/bench/record.h"
#include "tools/cli/bench/stats.h"

namespace agentserve::tools {

struct Slo {
  double ttft_ms = 0;  // 0 = no limit
  double tpot_ms = 0;
};

struct BenchReport {
  double seconds = 0;
  size_t completed = 0, failed = 0;
  std::map<std::string, size_t> errors;
  uint64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  Summary ttft_ms, tpot_ms, itl_ms, e2e_ms;
  Slo slo;
  size_t within_slo = 0;
  double client_cpu_s = 0;

  // Per second; 0 if nothing ran.
  double PerSecond(double amount) const { return seconds > 0 ? amount / seconds : 0; }
};

// `seconds`: from the first start to the last end.
BenchReport MakeReport(const std::vector<RequestRecord>& records, const Slo& slo);
std::string ReportTable(const BenchReport& report);
// One line per load: how many requests at once, and what came of it.
std::string LoadTable(const std::vector<std::pair<int, BenchReport>>& reports);
// Pretty-printed object; `settings_json` becomes its field "settings".
std::string ReportJson(const BenchReport& report, const std::string& settings_json);

}  // namespace agentserve::tools
