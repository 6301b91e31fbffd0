#include "model/bench/calibrate.h"

#include <algorithm>
#include <memory>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "model/bench/ceilings.h"
#include "model/bench/sweep.h"

namespace agentserve::model {
namespace {

using base::StrCat;

// Steps before the first timed one: kernels are loaded, graphs captured, clocks go up.
constexpr uint32_t kWarm = 4;

// `decodes` sequences of `context` tokens, and one of `prefix` + `chunk`, over a pool with random contents.
class Bed {
 public:
  static absl::StatusOr<std::unique_ptr<Bed>> Make(Model& model, const StepPoint& p, uint32_t block_tokens) {
    std::unique_ptr<Bed> b(new Bed());
    const engine::KvLayout layout = model.layout(block_tokens);
    const uint32_t each = layout.BlocksFor(p.context + 1), last = layout.BlocksFor(p.prefix + p.chunk + 1);
    const uint32_t blocks = each * p.decodes + (p.chunk > 0 ? last : 0);
    const size_t bytes = size_t{blocks} * layout.BlockBytes();
    AS_ASSIGN_OR_RETURN(const DeviceMemory device, model.device_memory());
    if (device.on_gpu() && bytes > device.PoolBytes()) {
      return absl::ResourceExhaustedError(
          StrCat(bytes >> 20, " MiB of KV do not fit the ", device.PoolBytes() >> 20, " MiB that are free"));
    }
    AS_ASSIGN_OR_RETURN(b->memory_, model.AllocateKv(bytes));
    AS_RETURN_IF_ERROR(FillKv(model, b->memory_.get(), bytes));
    AS_ASSIGN_OR_RETURN(b->executor_, model.CreateExecutor({b->memory_.get(), blocks, layout}));
    b->sampling_.temperature = 0;
    base::SplitMix64 rng(7);
    uint32_t next = 0;
    for (uint32_t i = 0; i < p.decodes + (p.chunk > 0 ? 1 : 0); ++i) {
      const bool prompt = i == p.decodes;
      std::vector<engine::TokenId>& h = b->history_.emplace_back(prompt ? p.prefix + p.chunk : p.context);
      for (engine::TokenId& t : h) t = static_cast<engine::TokenId>(rng.Below(model.config().vocab_size));
      std::vector<engine::BlockId>& table = b->tables_.emplace_back();
      for (uint32_t k = 0; k < (prompt ? last : each); ++k) table.emplace_back(next++);
    }
    return b;
  }

  absl::StatusOr<double> Once(const StepPoint& p) {
    plan_.slices.clear();
    for (uint32_t i = 0; i < p.decodes; ++i) plan_.slices.push_back(Slice(i, p.context - 1, 1));
    if (p.chunk > 0) plan_.slices.push_back(Slice(p.decodes, p.prefix, p.chunk));
    const base::MonotonicClock clock;
    const base::TimeNs began = clock.Now();
    AS_RETURN_IF_ERROR(executor_->Run(plan_, nullptr, &out_));
    return base::ToMs(clock.Now() - began);
  }

 private:
  engine::SeqSlice Slice(uint32_t i, uint32_t at, uint32_t n) {
    engine::SeqSlice s;
    s.seq = engine::SeqId(i);
    s.tokens = std::span<const engine::TokenId>(history_[i]).subspan(at, n);
    s.start = at;
    s.blocks = tables_[i];
    s.sample = true;
    s.sampling = &sampling_;
    s.history = std::span<const engine::TokenId>(history_[i]).first(at + n);
    s.prompt_tokens = 1;
    return s;
  }

  KvMemory memory_;
  std::unique_ptr<engine::Executor> executor_;
  std::vector<std::vector<engine::TokenId>> history_;
  std::vector<std::vector<engine::BlockId>> tables_;
  engine::SamplingParams sampling_;
  engine::StepPlan plan_;
  engine::StepOutput out_;
};

absl::Status Measure(Model& model, const CalibrateOptions& o, StepPoint p, std::vector<StepPoint>* out,
                     std::vector<std::string>* skipped) {
  const std::string what =
      StrCat(p.decodes, " decodes at context ", p.context, ", chunk ", p.chunk, " after ", p.prefix);
  const uint32_t longest = std::max(p.context, p.prefix + p.chunk);
  if (longest >= model.config().max_position) {
    skipped->push_back(StrCat(what, ": the model's context is ", model.config().max_position));
    return absl::OkStatus();
  }
  auto bed = Bed::Make(model, p, o.block_tokens);
  if (absl::IsResourceExhausted(bed.status())) {
    skipped->push_back(StrCat(what, ": ", base::MessageOf(bed.status())));
    return absl::OkStatus();
  }
  AS_RETURN_IF_ERROR(bed.status());
  std::vector<double> ms;
  const uint32_t timed = p.chunk > 0 && p.decodes == 0 ? o.repeats : o.steps;
  for (uint32_t i = 0; i < timed + kWarm; ++i) {
    AS_ASSIGN_OR_RETURN(const double once, (*bed)->Once(p));
    if (i >= kWarm) ms.push_back(once);
  }
  const Spread spread = SpreadOf(std::move(ms));
  p.ms = spread.median;
  p.p95 = spread.p95;
  out->push_back(p);
  if (o.say) o.say(StrCat(what, ": ", std::to_string(p.ms), " ms"));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CalibrateFigures> MeasureSteps(Model& model, const CalibrateOptions& o) {
  CalibrateFigures f;
  for (uint32_t n : o.batches) {
    for (uint32_t c : o.contexts) AS_RETURN_IF_ERROR(Measure(model, o, {n, c, 0, 0}, &f.decode, &f.skipped));
  }
  for (uint32_t chunk : o.chunks) {
    for (uint32_t p : o.prefixes) AS_RETURN_IF_ERROR(Measure(model, o, {0, 0, chunk, p}, &f.prefill, &f.skipped));
  }
  // Some mixtures, to know how far the simulator's rule for them is off.
  for (uint32_t n : o.batches) {
    if (n < 2 || n > 64) continue;
    for (uint32_t chunk : o.chunks) {
      AS_RETURN_IF_ERROR(Measure(model, o, {n, o.contexts.front(), chunk, 0}, &f.mixed, &f.skipped));
    }
  }
  return f;
}

}  // namespace agentserve::model
