#include "tools/cli/bench/report.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace agentserve::tools {

using nlohmann::json;

namespace {

__attribute__((format(printf, 2, 3))) void Print(std::string* out, const char* format, ...) {
  char line[256];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof(line), format, args);
  va_end(args);
  *out += line;
}

void PrintSummary(std::string* out, const char* name, const Summary& s) {
  Print(out, "  %-22s %10.2f %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, s.mean, s.p50, s.p90, s.p95, s.p99, s.max);
}

json ToJson(const Summary& s) {
  return {{"count", s.count}, {"mean", s.mean}, {"p50", s.p50}, {"p90", s.p90},
          {"p95", s.p95},     {"p99", s.p99},   {"max", s.max}};
}

bool Within(const RequestRecord& r, const Slo& slo) {
  return (slo.ttft_ms <= 0 || r.ttft_ms() <= slo.ttft_ms) && (slo.tpot_ms <= 0 || r.tpot_ms() <= slo.tpot_ms);
}

}  // namespace

BenchReport MakeReport(const std::vector<RequestRecord>& records, const Slo& slo) {
  BenchReport report;
  report.slo = slo;
  std::vector<double> ttft, tpot, itl, e2e;
  base::TimeNs first = 0, last = 0;
  for (const RequestRecord& r : records) {
    first = first == 0 ? r.start : std::min(first, r.start);
    last = std::max(last, r.end);
    if (!r.ok()) {
      ++report.failed;
      ++report.errors[r.error];
      continue;
    }
    ++report.completed;
    report.prompt_tokens += r.prompt_tokens;
    report.completion_tokens += r.completion_tokens;
    report.cached_tokens += r.cached_tokens;
    if (r.first != 0) ttft.push_back(r.ttft_ms());
    if (r.completion_tokens > 1) tpot.push_back(r.tpot_ms());
    itl.insert(itl.end(), r.gaps_ms.begin(), r.gaps_ms.end());
    e2e.push_back(r.e2e_ms());
    if (Within(r, slo)) ++report.within_slo;
  }
  report.seconds = static_cast<double>(last - first) / 1e9;
  report.ttft_ms = Summarize(std::move(ttft));
  report.tpot_ms = Summarize(std::move(tpot));
  report.itl_ms = Summarize(std::move(itl));
  report.e2e_ms = Summarize(std::move(e2e));
  return report;
}

std::string ReportTable(const BenchReport& r) {
  std::string out;
  Print(&out, "\n  completed %zu, failed %zu, in %.2f s\n", r.completed, r.failed, r.seconds);
  for (const auto& [kind, count] : r.errors) Print(&out, "    %-20s %zu\n", kind.c_str(), count);
  Print(&out, "  requests/s             %10.2f\n", r.PerSecond(static_cast<double>(r.completed)));
  Print(&out, "  output tokens/s        %10.1f   (%llu tokens)\n",
        r.PerSecond(static_cast<double>(r.completion_tokens)), static_cast<unsigned long long>(r.completion_tokens));
  Print(&out, "  prompt tokens/s        %10.1f   (%llu tokens, %llu from cache)\n",
        r.PerSecond(static_cast<double>(r.prompt_tokens)), static_cast<unsigned long long>(r.prompt_tokens),
        static_cast<unsigned long long>(r.cached_tokens));
  Print(&out, "  goodput requests/s     %10.2f   (%zu within TTFT %.0f ms and TPOT %.0f ms; 0 = no limit)\n",
        r.PerSecond(static_cast<double>(r.within_slo)), r.within_slo, r.slo.ttft_ms, r.slo.tpot_ms);
  Print(&out, "  client CPU             %10.2f s\n\n", r.client_cpu_s);
  Print(&out, "  %-22s %10s %10s %10s %10s %10s %10s\n", "milliseconds", "mean", "p50", "p90", "p95", "p99", "max");
  PrintSummary(&out, "time to first token", r.ttft_ms);
  PrintSummary(&out, "time per output token", r.tpot_ms);
  PrintSummary(&out, "inter-token latency", r.itl_ms);
  PrintSummary(&out, "end to end", r.e2e_ms);
  return out;
}

std::string LoadTable(const std::vector<std::pair<int, BenchReport>>& reports) {
  std::string out;
  Print(&out, "\n  %7s %10s %10s  %-26s %-26s %9s %6s\n", "at once", "requests/s", "tokens/s", "TTFT ms p50/p95/p99",
        "TPOT ms p50/p95/p99", "goodput/s", "failed");
  for (const auto& [concurrency, r] : reports) {
    char ttft[64], tpot[64];
    std::snprintf(ttft, sizeof(ttft), "%.1f / %.1f / %.1f", r.ttft_ms.p50, r.ttft_ms.p95, r.ttft_ms.p99);
    std::snprintf(tpot, sizeof(tpot), "%.2f / %.2f / %.2f", r.tpot_ms.p50, r.tpot_ms.p95, r.tpot_ms.p99);
    Print(&out, "  %7d %10.2f %10.1f  %-26s %-26s %9.2f %6zu\n", concurrency,
          r.PerSecond(static_cast<double>(r.completed)), r.PerSecond(static_cast<double>(r.completion_tokens)), ttft,
          tpot, r.PerSecond(static_cast<double>(r.within_slo)), r.failed);
    for (const auto& [kind, count] : r.errors) Print(&out, "          %s: %zu\n", kind.c_str(), count);
  }
  return out;
}

std::string ReportJson(const BenchReport& r, const std::string& settings_json) {
  json out;
  out["settings"] = json::parse(settings_json);
  out["seconds"] = r.seconds;
  out["completed"] = r.completed;
  out["failed"] = r.failed;
  out["errors"] = r.errors;
  out["prompt_tokens"] = r.prompt_tokens;
  out["completion_tokens"] = r.completion_tokens;
  out["cached_tokens"] = r.cached_tokens;
  out["requests_per_s"] = r.PerSecond(static_cast<double>(r.completed));
  out["output_tokens_per_s"] = r.PerSecond(static_cast<double>(r.completion_tokens));
  out["prompt_tokens_per_s"] = r.PerSecond(static_cast<double>(r.prompt_tokens));
  out["goodput"] = {{"slo_ttft_ms", r.slo.ttft_ms},
                    {"slo_tpot_ms", r.slo.tpot_ms},
                    {"requests", r.within_slo},
                    {"requests_per_s", r.PerSecond(static_cast<double>(r.within_slo))}};
  out["ttft_ms"] = ToJson(r.ttft_ms);
  out["tpot_ms"] = ToJson(r.tpot_ms);
  out["itl_ms"] = ToJson(r.itl_ms);
  out["e2e_ms"] = ToJson(r.e2e_ms);
  out["client_cpu_s"] = r.client_cpu_s;
  return out.dump(2);
}

}  // namespace agentserve::tools
