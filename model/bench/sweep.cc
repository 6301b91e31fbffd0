#include "model/bench/sweep.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::model {
namespace {

using base::StrCat;
using engine::SeqSlice;
using engine::TokenId;

// Steps before the first timed one: kernels are loaded, graphs captured (for both of two slots), clocks go up.
constexpr uint32_t kWarmSteps = 8;

// `count` sequences of `tokens` tokens each (known, random) over a pool with random contents.
class Sequences {
 public:
  static absl::StatusOr<std::unique_ptr<Sequences>> Make(Model& model, uint32_t count, uint32_t tokens,
                                                         uint32_t block_tokens) {
    std::unique_ptr<Sequences> s(new Sequences());
    const engine::KvLayout layout = model.layout(block_tokens);
    const uint32_t per_seq = layout.BlocksFor(tokens);
    const size_t bytes = size_t{per_seq} * count * layout.BlockBytes();
    AS_ASSIGN_OR_RETURN(const DeviceMemory device, model.device_memory());
    if (device.on_gpu() && bytes > device.PoolBytes()) {
      return absl::ResourceExhaustedError(
          StrCat("its KV of ", bytes >> 20, " MiB does not fit the ", device.PoolBytes() >> 20, " MiB that are free"));
    }
    AS_ASSIGN_OR_RETURN(s->memory_, model.AllocateKv(bytes));
    AS_RETURN_IF_ERROR(FillKv(model, s->memory_.get(), bytes));
    AS_ASSIGN_OR_RETURN(s->executor_, model.CreateExecutor({s->memory_.get(), per_seq * count, layout}));
    base::SplitMix64 rng(7);
    for (uint32_t i = 0; i < count; ++i) {
      std::vector<TokenId>& history = s->history_.emplace_back(tokens);
      for (TokenId& t : history) t = static_cast<TokenId>(rng.Below(model.config().vocab_size));
      std::vector<engine::BlockId>& table = s->tables_.emplace_back();
      for (uint32_t b = 0; b < per_seq; ++b) table.emplace_back(i * per_seq + b);
    }
    s->sampling_.temperature = 0;
    return s;
  }

  engine::Executor& executor() { return *executor_; }

  // One decode step at position `at` of all sequences; `pending`: its input is sampled by the step in flight.
  const engine::StepPlan& Decode(uint32_t at, bool pending) {
    plan_.slices.clear();
    for (size_t i = 0; i < history_.size(); ++i) {
      plan_.slices.push_back(Slice(i, at, 1, true));
      plan_.slices.back().input_pending = pending;
    }
    return plan_;
  }
  const engine::StepPlan& Chunk(uint32_t at, uint32_t n, bool sample) {
    plan_.slices = {Slice(0, at, n, sample)};
    return plan_;
  }

 private:
  Sequences() = default;
  SeqSlice Slice(size_t i, uint32_t at, uint32_t n, bool sample) {
    SeqSlice s;
    s.seq = engine::SeqId(i);
    s.tokens = std::span<const TokenId>(history_[i]).subspan(at, n);
    s.start = at;
    s.blocks = tables_[i];
    s.sample = sample;
    s.sampling = &sampling_;
    s.history = std::span<const TokenId>(history_[i]).first(at + n);
    s.prompt_tokens = 1;
    return s;
  }

  KvMemory memory_;
  std::unique_ptr<engine::Executor> executor_;
  std::vector<std::vector<TokenId>> history_;
  std::vector<std::vector<engine::BlockId>> tables_;
  engine::SamplingParams sampling_;
  engine::StepPlan plan_;
};

// Milliseconds per step of `n` steps from position `at` on, one at a time.
absl::Status DecodeAlone(Sequences& sequences, uint32_t at, uint32_t n, std::vector<double>* ms) {
  const base::MonotonicClock clock;
  engine::StepOutput out;
  for (uint32_t i = 0; i < n; ++i) {
    const base::TimeNs began = clock.Now();
    AS_RETURN_IF_ERROR(sequences.executor().Run(sequences.Decode(at + i, false), nullptr, &out));
    ms->push_back(base::ToMs(clock.Now() - began));
  }
  return absl::OkStatus();
}

// The same with two steps in flight: milliseconds from result to result.
absl::Status DecodePipelined(Sequences& sequences, uint32_t at, uint32_t n, std::vector<double>* ms) {
  const base::MonotonicClock clock;
  engine::StepOutput out;
  AS_RETURN_IF_ERROR(sequences.executor().Launch(sequences.Decode(at, false)));
  base::TimeNs last = clock.Now();
  for (uint32_t i = 0; i < n; ++i) {
    if (i + 1 < n) AS_RETURN_IF_ERROR(sequences.executor().Launch(sequences.Decode(at + i + 1, true)));
    AS_RETURN_IF_ERROR(sequences.executor().Wait(&out));
    const base::TimeNs now = clock.Now();
    ms->push_back(base::ToMs(now - last));
    last = now;
  }
  return absl::OkStatus();
}

absl::Status MeasureDecode(Model& model, const SweepOptions& options, DecodeFigures* f) {
  const uint32_t total = 2 * kWarmSteps + options.steps;
  if (f->context <= total) {
    f->skipped = StrCat("a context must be longer than the ", total, " steps of a case");
    return absl::OkStatus();
  }
  auto made = Sequences::Make(model, f->batch, f->context, options.block_tokens);
  if (absl::IsResourceExhausted(made.status())) {
    f->skipped = base::MessageOf(made.status());
    return absl::OkStatus();
  }
  AS_RETURN_IF_ERROR(made.status());
  Sequences& sequences = **made;
  const bool pipelined = sequences.executor().depth() > 1;
  std::vector<double> warm, alone, served;
  // The last steps end at the wanted context.
  const uint32_t at = f->context - total, half = pipelined ? options.steps / 2 : options.steps;
  AS_RETURN_IF_ERROR(DecodeAlone(sequences, at, kWarmSteps, &warm));
  AS_RETURN_IF_ERROR(DecodeAlone(sequences, at + kWarmSteps, half, &alone));
  f->alone_ms = f->ms = SpreadOf(alone);
  if (pipelined) {
    AS_RETURN_IF_ERROR(DecodePipelined(sequences, at + kWarmSteps + half, kWarmSteps, &warm));
    AS_RETURN_IF_ERROR(DecodePipelined(sequences, at + 2 * kWarmSteps + half, options.steps - half, &served));
    // The first interval has no step before it to hide behind.
    served.erase(served.begin());
    f->ms = SpreadOf(served);
  }
  const double kv = static_cast<double>(model.layout(options.block_tokens).BytesPerToken()) * f->context * f->batch;
  f->step_gb = (static_cast<double>(model.weight_bytes()) + kv) / 1e9;
  return absl::OkStatus();
}

// Matrices of all layers for every token, causal attention, and the head for one token.
double PrefillTflop(const ModelConfig& c, double tokens) {
  const double h = c.hidden_size;
  const double layer = h * (2.0 * c.q_size() + 2.0 * c.kv_size()) + 3.0 * h * c.intermediate_size;
  const double matrices = 2.0 * c.num_layers * layer * tokens + 2.0 * h * c.vocab_size;
  const double attention = 4.0 * c.num_layers * c.q_size() * tokens * (tokens + 1) / 2;
  return (matrices + attention) / 1e12;
}

absl::StatusOr<double> PromptOnce(Sequences& sequences, uint32_t prompt, uint32_t chunk) {
  const base::MonotonicClock clock;
  engine::Executor& executor = sequences.executor();
  const bool pipelined = executor.depth() > 1;
  engine::StepOutput out;
  uint32_t in_flight = 0;
  const base::TimeNs began = clock.Now();
  for (uint32_t at = 0; at < prompt; at += chunk) {
    const uint32_t n = std::min(chunk, prompt - at);
    const engine::StepPlan& plan = sequences.Chunk(at, n, at + n == prompt);
    if (!pipelined) {
      AS_RETURN_IF_ERROR(executor.Run(plan, nullptr, &out));
      continue;
    }
    AS_RETURN_IF_ERROR(executor.Launch(plan));
    if (++in_flight < 2) continue;
    AS_RETURN_IF_ERROR(executor.Wait(&out));
    --in_flight;
  }
  for (; in_flight > 0; --in_flight) AS_RETURN_IF_ERROR(executor.Wait(&out));
  return base::ToMs(clock.Now() - began);
}

absl::Status MeasurePrefill(Model& model, const SweepOptions& options, PrefillFigures* f) {
  if (f->prompt >= model.config().max_position) {
    f->skipped = StrCat("the model's context is ", model.config().max_position);
    return absl::OkStatus();
  }
  auto made = Sequences::Make(model, 1, f->prompt, options.block_tokens);
  if (absl::IsResourceExhausted(made.status())) {
    f->skipped = base::MessageOf(made.status());
    return absl::OkStatus();
  }
  AS_RETURN_IF_ERROR(made.status());
  std::vector<double> ms;
  const bool gpu = (*made)->executor().depth() > 1;
  for (uint32_t i = 0; i < options.repeats + (gpu ? 2 : 0); ++i) {
    AS_ASSIGN_OR_RETURN(const double once, PromptOnce(**made, f->prompt, options.chunk_tokens));
    if (!gpu || i >= 2) ms.push_back(once);  // the first runs load kernels
  }
  f->ms = SpreadOf(std::move(ms));
  f->tflop = PrefillTflop(model.config(), f->prompt);
  return absl::OkStatus();
}

double Percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

// "-" where there is nothing to compare with.
std::string PercentText(double part, double whole) {
  if (whole <= 0) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", Percent(part, whole));
  return text;
}

}  // namespace

Spread SpreadOf(std::vector<double> ms) {
  if (ms.empty()) return {};
  std::sort(ms.begin(), ms.end());
  return {ms[ms.size() / 2], ms[std::min(ms.size() - 1, ms.size() * 95 / 100)]};
}

absl::StatusOr<std::vector<DecodeFigures>> SweepDecode(Model& model, const SweepOptions& options) {
  if (options.steps < 4) return absl::InvalidArgumentError("a decode case needs at least 4 steps");
  std::vector<DecodeFigures> all;
  for (const uint32_t context : options.contexts) {
    for (const uint32_t batch : options.batches) {
      DecodeFigures& f = all.emplace_back();
      f.batch = batch;
      f.context = context;
      AS_RETURN_IF_ERROR(MeasureDecode(model, options, &f));
    }
  }
  return all;
}

absl::StatusOr<std::vector<PrefillFigures>> SweepPrefill(Model& model, const SweepOptions& options) {
  if (options.repeats < 1 || options.chunk_tokens < 1) {
    return absl::InvalidArgumentError("repeats and chunk_tokens must be at least 1");
  }
  std::vector<PrefillFigures> all;
  for (const uint32_t prompt : options.prompts) {
    PrefillFigures& f = all.emplace_back();
    f.prompt = prompt;
    AS_RETURN_IF_ERROR(MeasurePrefill(model, options, &f));
  }
  return all;
}

std::string DecodeTable(const std::vector<DecodeFigures>& figures, const Ceilings& c) {
  char line[256];
  std::snprintf(line, sizeof(line), "%6s %8s %9s %9s %11s %11s %9s %11s %8s\n", "batch", "context", "ms/step", "p95",
                "one by one", "tokens/s", "GB/s", "% measured", "% sheet");
  std::string out = line;
  for (const DecodeFigures& f : figures) {
    if (!f.skipped.empty()) {
      std::snprintf(line, sizeof(line), "%6u %8u  skipped: %.200s\n", f.batch, f.context, f.skipped.c_str());
    } else {
      std::snprintf(line, sizeof(line), "%6u %8u %9.3f %9.3f %11.3f %11.0f %9.0f %11s %8s\n", f.batch, f.context,
                    f.ms.median, f.ms.p95, f.alone_ms.median, f.tokens_per_second(), f.gb_per_second(),
                    PercentText(f.gb_per_second(), c.read_gb_per_second).c_str(),
                    PercentText(f.gb_per_second(), c.sheet_gb_per_second).c_str());
    }
    out += line;
  }
  return out;
}

std::string PrefillTable(const std::vector<PrefillFigures>& figures, const Ceilings& c) {
  char line[256];
  std::snprintf(line, sizeof(line), "%8s %10s %10s %11s %10s %11s %8s\n", "prompt", "ms", "p95", "tokens/s", "TFLOP/s",
                "% measured", "% sheet");
  std::string out = line;
  for (const PrefillFigures& f : figures) {
    if (!f.skipped.empty()) {
      std::snprintf(line, sizeof(line), "%8u  skipped: %.200s\n", f.prompt, f.skipped.c_str());
    } else {
      std::snprintf(line, sizeof(line), "%8u %10.3f %10.3f %11.0f %10.3f %11s %8s\n", f.prompt, f.ms.median, f.ms.p95,
                    f.tokens_per_second(), f.tflops(), PercentText(f.tflops(), c.bf16_tflops).c_str(),
                    PercentText(f.tflops(), c.sheet_bf16_tflops).c_str());
    }
    out += line;
  }
  return out;
}

std::string DecodeJson(const std::vector<DecodeFigures>& figures, const Ceilings& c) {
  std::string out;
  for (const DecodeFigures& f : figures) {
    nlohmann::json j = {{"bench", "decode"}, {"batch", f.batch}, {"context", f.context}};
    if (!f.skipped.empty()) {
      j["skipped"] = f.skipped;
    } else {
      j.update({{"ms_median", f.ms.median},
                {"ms_p95", f.ms.p95},
                {"one_by_one_ms_median", f.alone_ms.median},
                {"one_by_one_ms_p95", f.alone_ms.p95},
                {"tokens_per_second", f.tokens_per_second()},
                {"step_gb", f.step_gb},
                {"gb_per_second", f.gb_per_second()},
                {"percent_of_measured", Percent(f.gb_per_second(), c.read_gb_per_second)},
                {"percent_of_sheet", Percent(f.gb_per_second(), c.sheet_gb_per_second)}});
    }
    out += j.dump() + "\n";
  }
  return out;
}

std::string PrefillJson(const std::vector<PrefillFigures>& figures, const Ceilings& c) {
  std::string out;
  for (const PrefillFigures& f : figures) {
    nlohmann::json j = {{"bench", "prefill"}, {"prompt_tokens", f.prompt}};
    if (!f.skipped.empty()) {
      j["skipped"] = f.skipped;
    } else {
      j.update({{"ms_median", f.ms.median},
                {"ms_p95", f.ms.p95},
                {"tokens_per_second", f.tokens_per_second()},
                {"tflops", f.tflops()},
                {"percent_of_measured", Percent(f.tflops(), c.bf16_tflops)},
                {"percent_of_sheet", Percent(f.tflops(), c.sheet_bf16_tflops)}});
    }
    out += j.dump() + "\n";
  }
  return out;
}

}  // namespace agentserve::model
