#include "model/bench/step_bench.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::model {
namespace {

// Multiply-adds of one token's matrices, twice; attention is left out, so the figure is a floor.
double FlopsPerToken(const ModelConfig& c) {
  const double h = c.hidden_size;
  const double layer = h * (2.0 * c.q_size() + 2.0 * c.kv_size()) + 3.0 * h * c.intermediate_size;
  return 2.0 * c.num_layers * layer;
}

// `batch` sequences of equal length over one private pool.
class Runner {
 public:
  explicit Runner(const StepBenchOptions& o) : options_(o) {}

  absl::Status Init(Model& model) {
    const StepBenchOptions& o = options_;
    constexpr uint32_t kBlockTokens = 16;
    const engine::KvLayout layout = model.layout(kBlockTokens);
    const uint32_t per_seq = layout.BlocksFor(o.prompt_tokens + o.decode_tokens + 1);
    AS_ASSIGN_OR_RETURN(memory_, model.AllocateKv(size_t{per_seq} * o.batch * layout.BlockBytes()));
    AS_ASSIGN_OR_RETURN(executor_, model.CreateExecutor({memory_.get(), per_seq * o.batch, layout}));
    base::SplitMix64 rng(7);
    for (uint32_t b = 0; b < o.batch; ++b) {
      std::vector<engine::TokenId> tokens(o.prompt_tokens);
      for (engine::TokenId& t : tokens) t = static_cast<engine::TokenId>(rng.Below(model.config().vocab_size));
      history_.push_back(std::move(tokens));
      std::vector<engine::BlockId> table;
      for (uint32_t i = 0; i < per_seq; ++i) table.emplace_back(b * per_seq + i);
      tables_.push_back(std::move(table));
    }
    sampling_.temperature = 0;
    return absl::OkStatus();
  }

  // Sequence by sequence, in chunks.
  absl::Status Prefill() {
    for (uint32_t b = 0; b < options_.batch; ++b) {
      for (uint32_t at = 0; at < options_.prompt_tokens; at += options_.chunk_tokens) {
        const uint32_t n = std::min(options_.chunk_tokens, options_.prompt_tokens - at);
        plan_.slices = {Slice(b, at, n, at + n == options_.prompt_tokens)};
        AS_RETURN_IF_ERROR(executor_->Run(plan_, nullptr, &out_));
      }
      history_[b].push_back(out_.tokens.front().token);
    }
    return absl::OkStatus();
  }

  absl::Status DecodeStep() {
    plan_.slices.clear();
    for (uint32_t b = 0; b < options_.batch; ++b) {
      plan_.slices.push_back(Slice(b, static_cast<uint32_t>(history_[b].size()) - 1, 1, true));
    }
    AS_RETURN_IF_ERROR(executor_->Run(plan_, nullptr, &out_));
    for (uint32_t b = 0; b < options_.batch; ++b) history_[b].push_back(out_.tokens[b].token);
    return absl::OkStatus();
  }

 private:
  engine::SeqSlice Slice(uint32_t b, uint32_t at, uint32_t n, bool sample) {
    engine::SeqSlice s;
    s.seq = engine::SeqId(b);
    s.tokens = std::span(history_[b]).subspan(at, n);
    s.start = at;
    s.blocks = tables_[b];
    s.sample = sample;
    s.sampling = &sampling_;
    s.history = history_[b];
    s.prompt_tokens = options_.prompt_tokens;
    return s;
  }

  StepBenchOptions options_;
  KvMemory memory_;
  std::unique_ptr<engine::Executor> executor_;
  std::vector<std::vector<engine::TokenId>> history_;
  std::vector<std::vector<engine::BlockId>> tables_;
  engine::SamplingParams sampling_;
  engine::StepPlan plan_;
  engine::StepOutput out_;
};

}  // namespace

absl::StatusOr<StepBenchResult> RunStepBench(Model& model, const StepBenchOptions& options) {
  if (options.prompt_tokens == 0 || options.decode_tokens == 0 || options.batch == 0 || options.chunk_tokens == 0) {
    return absl::InvalidArgumentError("prompt_tokens, decode_tokens, batch and chunk_tokens must be at least 1");
  }
  StepBenchResult r;
  // Before and after, best of both: on a shared machine one of them may meet a busy neighbour.
  AS_ASSIGN_OR_RETURN(const double before, model.MeasureReadBandwidth(options.threads));
  Runner runner(options);
  AS_RETURN_IF_ERROR(runner.Init(model));
  const base::MonotonicClock clock;
  base::TimeNs began = clock.Now();
  AS_RETURN_IF_ERROR(runner.Prefill());
  const double prefill_seconds = static_cast<double>(clock.Now() - began) / 1e9;
  r.prefill_tokens_per_second = options.prompt_tokens * options.batch / prefill_seconds;
  r.prefill_gflops = r.prefill_tokens_per_second * FlopsPerToken(model.config()) / 1e9;
  std::vector<double> ms;
  for (uint32_t i = 0; i < options.decode_tokens; ++i) {
    began = clock.Now();
    AS_RETURN_IF_ERROR(runner.DecodeStep());
    ms.push_back(base::ToMs(clock.Now() - began));
  }
  std::sort(ms.begin(), ms.end());
  r.decode_ms_median = ms[ms.size() / 2];
  r.decode_ms_p95 = ms[std::min(ms.size() - 1, ms.size() * 95 / 100)];
  r.decode_tokens_per_second = options.batch * 1000.0 / r.decode_ms_median;
  r.decode_weight_gb_per_second = static_cast<double>(model.weight_bytes()) / 1e6 / r.decode_ms_median;
  AS_ASSIGN_OR_RETURN(const double after, model.MeasureReadBandwidth(options.threads));
  r.memory_read_gb_per_second = std::max(before, after);
  r.decode_bandwidth_percent = 100.0 * r.decode_weight_gb_per_second / r.memory_read_gb_per_second;
  return r;
}

std::string StepBenchResult::ToText() const {
  char text[512];
  std::snprintf(text, sizeof(text),
                "prefill  %.1f tokens/s, %.1f GFLOP/s (matrices only)\n"
                "decode   %.2f ms a step (median; p95 %.2f), %.1f tokens/s\n"
                "weights  %.2f GB/s read in decode, %.1f %% of the %.2f GB/s that plain reading reaches here\n",
                prefill_tokens_per_second, prefill_gflops, decode_ms_median, decode_ms_p95, decode_tokens_per_second,
                decode_weight_gb_per_second, decode_bandwidth_percent, memory_read_gb_per_second);
  return text;
}

std::string StepBenchResult::ToJson() const {
  char text[512];
  std::snprintf(text, sizeof(text),
                "{\"prefill_tokens_per_second\":%.3f,\"prefill_gflops\":%.3f,\"decode_ms_median\":%.4f,"
                "\"decode_ms_p95\":%.4f,\"decode_tokens_per_second\":%.3f,\"decode_weight_gb_per_second\":%.3f,"
                "\"memory_read_gb_per_second\":%.3f,\"decode_bandwidth_percent\":%.2f}",
                prefill_tokens_per_second, prefill_gflops, decode_ms_median, decode_ms_p95, decode_tokens_per_second,
                decode_weight_gb_per_second, memory_read_gb_per_second, decode_bandwidth_percent);
  return text;
}

}  // namespace agentserve::model
