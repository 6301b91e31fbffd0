// `agentserve bench`: measures a running cluster (serve), the model alone (step, prefill) or parts (kernels, handoff).
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/flags.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/bench/bench_programs.h"
#include "tools/cli/bench/bench_step.h"
#include "tools/cli/bench/hold.h"
#include "tools/cli/bench/load.h"
#include "tools/cli/bench/report.h"
#include "tools/cli/commands.h"
#include "tools/cli/paths.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

// One socket, about 40 KiB of buffers and a coroutine each: 400 MiB at the most.
constexpr int kMaxConcurrency = 10'000;
// A record is about 100 bytes plus 4 per token.
constexpr int64_t kMaxRequests = 1'000'000;

struct ServeConfig {
  LoadConfig load;
  std::string url = "http://127.0.0.1:8000", prompt_tokens = "128", output_tokens = "64", json_file, state_file;
  std::string endpoint = "completions", concurrency = "8";
  int shared_prefix = 0;
  Slo slo{1000, 50};
  int hold_idle = 0;
  double hold_seconds = 10;
  int64_t seed = 1;
};

void AddFlags(ServeConfig* c, base::FlagSet* flags) {
  LoadConfig& load = c->load;
  flags->Add("url", &c->url, "address of the gateway", "Server");
  flags->Add("model", &load.model, "model name; none = the first that the server offers", "Server");
  flags->Add("endpoint", &c->endpoint, "completions (exact prompt lengths) or chat", "Server");
  flags->Add("api-key", &load.api_key, "key to send", "Server");
  flags->Add("concurrency", &c->concurrency,
             "requests at once (with --rate: at most); a list (1,8,32) runs one load after the other", "Load");
  flags->Add("rate", &load.rate, "arrivals per second, Poisson; 0 = each client sends one after the other", "Load");
  flags->Add("requests", &load.requests, "requests to send; 0 = by --duration only", "Load");
  flags->Add("duration", &load.duration_s, "seconds after which no request is started; 0 = by --requests only", "Load");
  flags->Add("warmup", &load.warmup, "requests before the measurement", "Load");
  flags->Add("prompt-tokens", &c->prompt_tokens, "prompt length: N or LEAST:MOST", "Load");
  flags->Add("output-tokens", &c->output_tokens, "output length: N or LEAST:MOST", "Load");
  flags->Add("shared-prefix-tokens", &c->shared_prefix, "leading prompt tokens that all requests share", "Load");
  flags->Add("ignore-eos", &load.ignore_eos, "generate the full output length", "Load");
  flags->Add("temperature", &load.temperature, "sampling temperature", "Load");
  flags->Add("seed", &c->seed, "seed of lengths, prompts, arrivals and sampling", "Load");
  flags->Add("timeout", &load.timeout_s, "seconds that one request may take", "Load");
  flags->Add("slo-ttft-ms", &c->slo.ttft_ms, "goodput: most time to first token; 0 = no limit", "Report");
  flags->Add("slo-tpot-ms", &c->slo.tpot_ms, "goodput: most time per output token; 0 = no limit", "Report");
  flags->Add("json", &c->json_file, "file that gets the figures as JSON; - = standard output", "Report");
  flags->Add("hold-idle", &c->hold_idle, "instead: open this many streams and do not read them", "Idle streams");
  flags->Add("hold-seconds", &c->hold_seconds, "how long", "Idle streams");
  flags->Add("state-file", &c->state_file, "state file of `agentserve up`; none = the newest running", "Idle streams");
}

absl::Status Check(bool good, const std::string& text) {
  return good ? absl::OkStatus() : absl::InvalidArgumentError(base::ToAbsl(text));
}

absl::Status Validate(const ServeConfig& c) {
  const LoadConfig& l = c.load;
  AS_RETURN_IF_ERROR(Check(l.rate >= 0 && l.rate <= 1e6, "--rate must be 0 to 1000000"));
  AS_RETURN_IF_ERROR(
      Check(l.requests >= 0 && l.requests <= kMaxRequests, StrCat("--requests must be 0 to ", kMaxRequests)));
  AS_RETURN_IF_ERROR(Check(l.duration_s >= 0 && l.duration_s <= 86400, "--duration must be 0 to 86400 seconds"));
  AS_RETURN_IF_ERROR(Check(l.requests > 0 || l.duration_s > 0, "one of --requests and --duration must be above 0"));
  AS_RETURN_IF_ERROR(Check(l.warmup >= 0 && l.warmup <= 10'000, "--warmup must be 0 to 10000"));
  AS_RETURN_IF_ERROR(Check(l.timeout_s > 0 && l.timeout_s <= 86400, "--timeout must be above 0, at most 86400"));
  AS_RETURN_IF_ERROR(Check(c.shared_prefix >= 0, "--shared-prefix-tokens must not be negative"));
  AS_RETURN_IF_ERROR(Check(c.endpoint == "completions" || c.endpoint == "chat",
                           StrCat("--endpoint is '", c.endpoint, "'; it must be completions or chat")));
  AS_RETURN_IF_ERROR(
      Check(c.hold_idle >= 0 && c.hold_idle <= kMaxConcurrency, StrCat("--hold-idle must be 0 to ", kMaxConcurrency)));
  return Check(c.hold_seconds > 0 && c.hold_seconds <= 3600, "--hold-seconds must be above 0, at most 3600");
}

absl::StatusOr<std::vector<int>> ParseConcurrency(const std::string& text) {
  std::vector<int> out;
  std::stringstream items(text + ",");
  for (std::string item; std::getline(items, item, ',');) {
    int value = 0;
    AS_RETURN_IF_ERROR(Check(absl::SimpleAtoi(item, &value) && value >= 1 && value <= kMaxConcurrency,
                             StrCat("--concurrency is '", text.substr(0, 100), "'; numbers from 1 to ", kMaxConcurrency,
                                    " with commas between are expected")));
    out.push_back(value);
  }
  return out;
}

double CpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

void ShowProgress(const LoadProgress& p, double duration_s) {
  constexpr int kWidth = 30;
  const double part = p.planned > 0 ? static_cast<double>(p.ended) / static_cast<double>(p.planned)
                                    : p.seconds / std::max(duration_s, 1e-9);
  const int filled = static_cast<int>(std::min(1.0, part) * kWidth);
  const double s = std::max(p.seconds, 1e-9);
  std::fprintf(stderr, "\r\x1b[2K[%s%s] %lld ended, %lld running, %lld failed  %.1f req/s  %.0f tok/s  %.0f s",
               std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(kWidth - filled), '.').c_str(), static_cast<long long>(p.ended),
               static_cast<long long>(p.running), static_cast<long long>(p.failed), static_cast<double>(p.ended) / s,
               static_cast<double>(p.tokens) / s, p.seconds);
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
  return out.good() ? absl::OkStatus()
                    : absl::PermissionDeniedError(StrCat("cannot write --json ", file, ": ", strerror(errno)));
}

std::string SettingsJson(const ServeConfig& c, bool exact) {
  const LoadConfig& l = c.load;
  return nlohmann::json{{"url", c.url},
                        {"model", l.model},
                        {"endpoint", c.endpoint},
                        {"concurrency", l.concurrency},
                        {"rate", l.rate},
                        {"requests", l.requests},
                        {"duration_s", l.duration_s},
                        {"warmup", l.warmup},
                        {"prompt_tokens", c.prompt_tokens},
                        {"prompt_lengths_exact", exact},
                        {"output_tokens", c.output_tokens},
                        {"shared_prefix_tokens", c.shared_prefix},
                        {"ignore_eos", l.ignore_eos},
                        {"temperature", l.temperature},
                        {"seed", c.seed}}
      .dump();
}

absl::Status Hold(const ServeConfig& c, const Workload& workload) {
  std::string state = c.state_file;
  if (state.empty()) {
    AS_ASSIGN_OR_RETURN(state, FindStateFile());
  }
  AS_ASSIGN_OR_RETURN(const HoldReport report, HoldStreams(c.load, workload, c.hold_idle, c.hold_seconds, state));
  if (c.json_file != "-") std::fputs(HoldTable(report).c_str(), stdout);
  return WriteJson(c.json_file, HoldJson(report));
}

absl::StatusOr<BenchReport> MeasureLoad(const ServeConfig& c, const Workload& workload) {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  const double cpu_before = CpuSeconds();
  AS_ASSIGN_OR_RETURN(const std::vector<RequestRecord> records, RunLoad(c.load, workload, [&](const LoadProgress& p) {
                        if (terminal) ShowProgress(p, c.load.duration_s);
                      }));
  if (terminal) std::fputs("\r\x1b[2K", stderr);
  BenchReport report = MakeReport(records, c.slo);
  report.client_cpu_s = CpuSeconds() - cpu_before;
  return report;
}

// *failed: requests that ended with an error.
absl::Status Serve(ServeConfig c, size_t* failed) {
  AS_RETURN_IF_ERROR(Validate(c));
  AS_ASSIGN_OR_RETURN(const std::vector<int> loads, ParseConcurrency(c.concurrency));
  AS_ASSIGN_OR_RETURN(c.load.url, ParseUrl(c.url));
  Workload::Options options;
  AS_ASSIGN_OR_RETURN(options.prompt, ParseLengthRange("prompt-tokens", c.prompt_tokens));
  AS_ASSIGN_OR_RETURN(options.output, ParseLengthRange("output-tokens", c.output_tokens));
  options.shared_prefix = static_cast<uint32_t>(c.shared_prefix);
  options.seed = c.load.seed = static_cast<uint64_t>(c.seed);
  c.load.chat = c.endpoint == "chat";
  if (c.load.model.empty()) {
    AS_ASSIGN_OR_RETURN(c.load.model, FirstModel(c.load.url, c.load.api_key));
  }
  RaiseFileLimit();
  const std::vector<uint32_t> pool =
      c.load.chat ? std::vector<uint32_t>() : FetchTokenPool(c.load.url, c.load.api_key, c.load.model);
  if (c.hold_idle > 0) return Hold(c, Workload(options, pool));
  if (pool.empty()) std::fprintf(stderr, "Prompts are text of one word per token: their lengths are about right.\n");
  std::vector<std::pair<int, BenchReport>> reports;
  nlohmann::json all = nlohmann::json::array();
  for (const int concurrency : loads) {
    c.load.concurrency = concurrency;
    // Other prompts for each load, or it would find the ones before it in the cache.
    options.seed = c.load.seed = base::SplitMix64(static_cast<uint64_t>(c.seed) + reports.size()).Next();
    if (loads.size() == 1) options.seed = c.load.seed = static_cast<uint64_t>(c.seed);
    AS_ASSIGN_OR_RETURN(const BenchReport report, MeasureLoad(c, Workload(options, pool)));
    *failed += report.failed;
    if (c.json_file != "-" && loads.size() == 1) std::fputs(ReportTable(report).c_str(), stdout);
    all.push_back(nlohmann::json::parse(ReportJson(report, SettingsJson(c, !pool.empty()))));
    reports.emplace_back(concurrency, report);
  }
  if (c.json_file != "-" && loads.size() > 1) std::fputs(LoadTable(reports).c_str(), stdout);
  return WriteJson(c.json_file, (loads.size() == 1 ? all[0] : all).dump(2));
}

int RunBenchServe(int argc, const char* const* argv) {
  ServeConfig config;
  base::FlagSet flags("agentserve bench serve", "Sends load to a running server and reports latencies and rates.");
  AddFlags(&config, &flags);
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  size_t failed = 0;
  const absl::Status s = Serve(config, &failed);
  if (s.ok()) return failed == 0 ? base::kExitOk : base::kExitFailure;
  std::fprintf(stderr, "agentserve bench serve: %s\n", base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace

int RunBench(int argc, const char* const* argv) {
  const std::string word = argc > 1 ? argv[1] : "";
  if (word == "agents") return RunBenchAgents(argc - 1, argv + 1);
  if (word == "serve") return RunBenchServe(argc - 1, argv + 1);
#ifdef AGENTSERVE_HAS_OFFLINE
  if (word == "step") return RunBenchStep(argc - 1, argv + 1);
  if (word == "prefill") return RunBenchPrefill(argc - 1, argv + 1);
  if (word == "calibrate") return RunBenchCalibrate(argc - 1, argv + 1);
#endif
  if (word == "kernels") return RunBenchKernels(argc - 1, argv + 1);
  if (word == "handoff") return RunBenchHandoff(argc - 1, argv + 1);
  const bool help = word == "--help" || word == "-h" || word == "help";
  std::fprintf(help ? stdout : stderr,
               "agentserve bench: measures.\n\nUsage: agentserve bench KIND [flags]\n\nKinds:\n"
               "  serve    load a running server over HTTP and report latencies and rates\n"
               "  agents   let simulated agents work against a running server, closed loop\n"
               "  kernels  run the benches of the single operations\n"
               "  handoff  run the benches of moving KV between workers\n%s",
#ifdef AGENTSERVE_HAS_OFFLINE
               "  step     run the model in this process: decode steps over batch sizes and contexts\n"
               "  prefill  run the model in this process: prompts from end to end\n"
               "  calibrate  run the model in this process: step times for `agentserve sim`\n"
#else
               ""
#endif
  );
  return help ? base::kExitOk : base::kExitConfig;
}

}  // namespace agentserve::tools
