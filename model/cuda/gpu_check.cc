#include "model/cuda/gpu_check.h"

#include <algorithm>
#include <cstdio>

#include "base/clock.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/cuda/launch.h"
#include "model/cuda/init_kernels.h"

namespace agentserve::model::cuda {
namespace {

using base::StrCat;
using engine::SeqSlice;
using engine::StepOutput;
using engine::StepPlan;

}  // namespace

absl::StatusOr<std::unique_ptr<CheckBatch>> CheckBatch::Create(CudaModel& model, const std::vector<uint32_t>& prompts,
                                                               uint32_t room, uint32_t block_tokens, uint64_t seed) {
  auto batch = std::make_unique<CheckBatch>();
  const engine::KvLayout layout = model.layout(block_tokens);
  uint32_t blocks = 0;
  for (const uint32_t n : prompts) blocks += layout.BlocksFor(n + room);
  AS_ASSIGN_OR_RETURN(batch->memory_, model.AllocateKv(size_t{blocks} * layout.BlockBytes()));
  batch->pool_ = {batch->memory_.get(), blocks, layout};
  // Unused rows of blocks hold NaN: nothing may read them.
  AS_RETURN_IF_ERROR(kernels::cuda::ToStatus(
      cudaMemset(batch->memory_.get(), 0xff, size_t{blocks} * layout.BlockBytes()), "poisoning the pool"));
  base::SplitMix64 rng(seed);
  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; ++i) order[i] = i;
  for (uint32_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[rng.Below(i)]);
  size_t next = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    CheckSequence s;
    s.id = engine::SeqId(100 + i);
    s.prompt = prompts[i];
    s.tokens.reserve(prompts[i] + room + 1);
    for (uint32_t t = 0; t < prompts[i]; ++t) {
      s.tokens.push_back(static_cast<engine::TokenId>(rng.Below(model.config().vocab_size)));
    }
    for (uint32_t b = 0; b < layout.BlocksFor(prompts[i] + room); ++b) s.blocks.emplace_back(order[next++]);
    batch->sequences_.push_back(std::move(s));
  }
  batch->sampling_.temperature = 0;
  return batch;
}

SeqSlice CheckBatch::Slice(const CheckSequence& s, uint32_t start, uint32_t n, bool sample) const {
  SeqSlice out;
  out.seq = s.id;
  out.tokens = std::span(s.tokens).subspan(start, n);
  out.start = start;
  out.blocks = s.blocks;
  out.sample = sample;
  out.sampling = &sampling_;
  out.history = std::span(s.tokens).first(start + n);
  out.prompt_tokens = s.prompt;
  return out;
}

absl::Status CheckBatch::FillPool() {
  const size_t n = size_t{pool_.num_blocks} * pool_.layout.BlockBytes() / 2;
  return FillRandom(reinterpret_cast<__nv_bfloat16*>(memory_.get()), n, 2.0f, 0.0f, 99, {});
}

namespace {

// One run over all sequences: step by step, every sequence either prefills its next chunk or decodes. Sequence i starts
// once i - 1 has begun to decode, so steps are mixed.
absl::Status GenerateMixed(CheckBatch& batch, CudaExecutor& executor, const ForcedOptions& o,
                           std::vector<std::vector<uint16_t>>* logits, size_t vocab) {
  std::vector<CheckSequence>& all = batch.sequences();
  std::vector<uint32_t> at(all.size(), 0);  // tokens whose KV is written
  logits->assign(all.size(), {});
  StepPlan plan;
  StepOutput out;
  while (true) {
    plan.slices.clear();
    std::vector<size_t> sampling;
    bool prefilling = false;
    for (size_t i = 0; i < all.size(); ++i) {
      CheckSequence& s = all[i];
      if (s.tokens.size() >= s.prompt + o.steps) continue;
      const bool decoding = at[i] >= s.prompt;
      if (!decoding && prefilling) continue;  // one prompt at a time
      prefilling = prefilling || !decoding;
      const uint32_t n = std::min(o.chunk, static_cast<uint32_t>(s.tokens.size()) - at[i]);
      const bool sample = at[i] + n == s.tokens.size();
      plan.slices.push_back(batch.Slice(s, at[i], n, sample));
      at[i] += n;
      if (sample) sampling.push_back(i);
    }
    if (plan.slices.empty()) return absl::OkStatus();
    AS_RETURN_IF_ERROR(executor.Run(plan, nullptr, &out));
    if (sampling.empty()) continue;
    AS_ASSIGN_OR_RETURN(const std::vector<uint16_t> rows, executor.CopyLogits());
    for (size_t r = 0; r < sampling.size(); ++r) {
      const auto first = rows.begin() + static_cast<std::ptrdiff_t>(r * vocab);
      std::vector<uint16_t>& to = (*logits)[sampling[r]];
      to.insert(to.end(), first, first + static_cast<std::ptrdiff_t>(vocab));
      all[sampling[r]].tokens.push_back(out.tokens[r].token);
    }
  }
}

// int32: sequences, vocab, steps; then per sequence int32 prompt, tokens; then the logits as bf16, sequence by
// sequence.
absl::Status Dump(const std::string& path, const std::vector<CheckSequence>& all, uint32_t vocab, uint32_t steps,
                  const std::vector<std::vector<uint16_t>>& logits) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return absl::UnavailableError(StrCat(path, ": cannot write"));
  const uint32_t header[] = {static_cast<uint32_t>(all.size()), vocab, steps};
  std::fwrite(header, sizeof(header), 1, file);
  for (const CheckSequence& s : all) {
    std::fwrite(&s.prompt, sizeof(s.prompt), 1, file);
    std::fwrite(s.tokens.data(), sizeof(engine::TokenId), s.tokens.size(), file);
  }
  for (const std::vector<uint16_t>& rows : logits) std::fwrite(rows.data(), 2, rows.size(), file);
  const bool bad = std::ferror(file) != 0;
  return std::fclose(file) == 0 && !bad ? absl::OkStatus() : absl::UnavailableError(StrCat(path, ": cannot write"));
}

}  // namespace

absl::Status GeneratePipelined(CheckBatch& batch, CudaExecutor& executor, uint32_t steps, uint32_t chunk) {
  std::vector<CheckSequence>& all = batch.sequences();
  StepPlan plan;
  StepOutput out;
  for (CheckSequence& s : all) {
    for (uint32_t at = 0; at < s.prompt; at += chunk) {
      const uint32_t n = std::min(chunk, s.prompt - at);
      plan.slices = {batch.Slice(s, at, n, at + n == s.prompt)};
      AS_RETURN_IF_ERROR(executor.Run(plan, nullptr, &out));
    }
    s.tokens.push_back(out.tokens.at(0).token);
  }
  // In step k the newest token is a placeholder until step k - 1 was waited for.
  const auto collect = [&]() -> absl::Status {
    AS_RETURN_IF_ERROR(executor.Wait(&out));
    for (size_t i = 0; i < all.size(); ++i) {
      CheckSequence& s = all[i];
      const size_t place = s.tokens.size() - (executor.in_flight() > 0 ? 1 : 0);
      if (place == s.tokens.size()) {
        s.tokens.push_back(out.tokens[i].token);
      } else {
        s.tokens[place] = out.tokens[i].token;
      }
    }
    return absl::OkStatus();
  };
  for (uint32_t step = 1; step < steps; ++step) {
    plan.slices.clear();
    for (CheckSequence& s : all) {
      if (step > 1) s.tokens.push_back(0);
      SeqSlice slice = batch.Slice(s, static_cast<uint32_t>(s.tokens.size()) - 1, 1, true);
      slice.input_pending = step > 1;
      plan.slices.push_back(slice);
    }
    AS_RETURN_IF_ERROR(executor.Launch(plan));
    if (step > 1) AS_RETURN_IF_ERROR(collect());
  }
  return steps > 1 ? collect() : absl::OkStatus();
}

absl::Status RunForced(CudaModel& with_logits, CudaModel& serving, const ForcedOptions& o) {
  const uint32_t vocab = with_logits.config().vocab_size;
  AS_ASSIGN_OR_RETURN(auto batch, CheckBatch::Create(with_logits, o.prompts, o.steps, o.block_tokens, o.seed));
  AS_ASSIGN_OR_RETURN(auto executor, with_logits.CreateCudaExecutor(batch->pool()));
  std::vector<std::vector<uint16_t>> logits;
  AS_RETURN_IF_ERROR(GenerateMixed(*batch, *executor, o, &logits, vocab));
  if (!o.dump.empty()) AS_RETURN_IF_ERROR(Dump(o.dump, batch->sequences(), vocab, o.steps, logits));
  executor.reset();
  AS_ASSIGN_OR_RETURN(auto again, CheckBatch::Create(serving, o.prompts, o.steps, o.block_tokens, o.seed));
  AS_ASSIGN_OR_RETURN(auto fast, serving.CreateCudaExecutor(again->pool()));
  AS_RETURN_IF_ERROR(GeneratePipelined(*again, *fast, o.steps, o.chunk));
  size_t positions = 0, equal_prefix = 0, same = 0;
  for (size_t i = 0; i < o.prompts.size(); ++i) {
    const CheckSequence &a = batch->sequences()[i], &b = again->sequences()[i];
    const auto first = std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin()).first - a.tokens.begin();
    positions += o.steps;
    equal_prefix += static_cast<size_t>(first) - a.prompt;
    same += static_cast<size_t>(first) == a.tokens.size() ? 1 : 0;
  }
  std::printf("mixed vs pipelined: %zu of %zu sequences equal, %zu of %zu tokens before the first difference\n", same,
              o.prompts.size(), equal_prefix, positions);
  return absl::OkStatus();
}

absl::Status RunRepeated(CudaModel& with_logits, CudaModel& serving, const ForcedOptions& o, uint32_t runs) {
  const uint32_t vocab = with_logits.config().vocab_size;
  std::vector<std::vector<uint16_t>> first_logits;
  std::vector<std::vector<engine::TokenId>> first_tokens;
  size_t differing_logits = 0, differing_tokens = 0;
  for (uint32_t run = 0; run < runs; ++run) {
    AS_ASSIGN_OR_RETURN(auto batch, CheckBatch::Create(with_logits, o.prompts, o.steps, o.block_tokens, o.seed));
    AS_ASSIGN_OR_RETURN(auto executor, with_logits.CreateCudaExecutor(batch->pool()));
    std::vector<std::vector<uint16_t>> logits;
    AS_RETURN_IF_ERROR(GenerateMixed(*batch, *executor, o, &logits, vocab));
    executor.reset();
    AS_ASSIGN_OR_RETURN(auto again, CheckBatch::Create(serving, o.prompts, o.steps, o.block_tokens, o.seed));
    AS_ASSIGN_OR_RETURN(auto fast, serving.CreateCudaExecutor(again->pool()));
    AS_RETURN_IF_ERROR(GeneratePipelined(*again, *fast, o.steps, o.chunk));
    std::vector<std::vector<engine::TokenId>> tokens;
    for (const CheckSequence& s : again->sequences()) tokens.push_back(s.tokens);
    if (run == 0) {
      first_logits = std::move(logits);
      first_tokens = std::move(tokens);
      continue;
    }
    differing_logits += logits != first_logits ? 1 : 0;
    differing_tokens += tokens != first_tokens ? 1 : 0;
  }
  std::printf(
      "%u runs of %zu prompts and %u tokens each: logits of %zu runs and tokens of %zu runs differ from the first\n",
      runs, o.prompts.size(), o.steps, differing_logits, differing_tokens);
  if (differing_logits + differing_tokens == 0) return absl::OkStatus();
  return absl::InternalError("equal runs gave different bits");
}

namespace {

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

struct DecodeTimes {
  double wall_ms = 0, gpu_ms = 0, launch_ms = 0, floor_ms = 0;  // medians; floor: bytes at 4.53 TB/s
};

absl::StatusOr<DecodeTimes> TimeDecode(CudaModel& model, const BenchOptions& o, uint32_t rows, uint32_t context) {
  constexpr uint32_t kWarmUp = 6;  // the first ones load kernels and capture
  AS_ASSIGN_OR_RETURN(auto batch,
                      CheckBatch::Create(model, std::vector<uint32_t>(rows, context), o.steps + 2, o.block_tokens, 1));
  AS_RETURN_IF_ERROR(batch->FillPool());
  AS_ASSIGN_OR_RETURN(auto executor, model.CreateCudaExecutor(batch->pool()));
  StepPlan plan;
  StepOutput out;
  std::vector<double> gpu, wall, launch;
  const base::MonotonicClock clock;
  base::TimeNs last = clock.Now();
  for (uint32_t step = 0; step < o.steps; ++step) {
    plan.slices.clear();
    for (CheckSequence& s : batch->sequences()) {
      if (step > 0) s.tokens.push_back(0);
      SeqSlice slice = batch->Slice(s, static_cast<uint32_t>(s.tokens.size()) - 1, 1, true);
      slice.input_pending = step > 0;
      plan.slices.push_back(slice);
    }
    const base::TimeNs before = clock.Now();
    AS_RETURN_IF_ERROR(executor->Launch(plan));
    launch.push_back(base::ToMs(clock.Now() - before));
    if (step == 0) continue;
    AS_RETURN_IF_ERROR(executor->Wait(&out));
    const base::TimeNs now = clock.Now();
    if (step > kWarmUp) {
      wall.push_back(base::ToMs(now - last));
      gpu.push_back(executor->last_gpu_ms());
    }
    last = now;
  }
  AS_RETURN_IF_ERROR(executor->Wait(&out));
  const double kv = static_cast<double>(batch->pool().layout.BytesPerToken()) * context * rows;
  DecodeTimes t;
  t.wall_ms = Median(wall);
  t.gpu_ms = Median(gpu);
  t.launch_ms = Median(launch);
  t.floor_ms = (static_cast<double>(model.weight_bytes()) + kv) / 4.53e9;
  return t;
}

absl::Status BenchDecode(CudaModel& model, const BenchOptions& o, uint32_t rows, uint32_t context) {
  AS_ASSIGN_OR_RETURN(const DecodeTimes t, TimeDecode(model, o, rows, context));
  std::printf("decode B=%-4u ctx=%-6u step %.4f ms (wall), gpu %.4f, launch call %.4f; floor %.4f, %.1f %%\n", rows,
              context, t.wall_ms, t.gpu_ms, t.launch_ms, t.floor_ms, 100 * t.floor_ms / t.wall_ms);
  std::fflush(stdout);
  return absl::OkStatus();
}

struct PrefillTimes {
  double wall_ms = 0, gpu_ms = 0;  // medians
};

absl::StatusOr<PrefillTimes> TimePrefill(CudaModel& model, const BenchOptions& o, uint32_t tokens) {
  AS_ASSIGN_OR_RETURN(auto batch, CheckBatch::Create(model, {tokens}, 1, o.block_tokens, 1));
  AS_ASSIGN_OR_RETURN(auto executor, model.CreateCudaExecutor(batch->pool()));
  std::vector<double> wall, gpu;
  const base::MonotonicClock clock;
  StepPlan plan;
  StepOutput out;
  const int turns = tokens > 2048 ? 6 : 21;  // the first warms up
  for (int turn = 0; turn < turns; ++turn) {
    const base::TimeNs began = clock.Now();
    double gpu_ms = 0;
    for (uint32_t at = 0; at < tokens; at += o.chunk) {
      const uint32_t n = std::min(o.chunk, tokens - at);
      plan.slices = {batch->Slice(batch->sequences()[0], at, n, at + n == tokens)};
      const absl::Status status = executor->Run(plan, nullptr, &out);
      // A pass with a part left out may end in logits that are not finite.
      if (!status.ok() && status.code() != absl::StatusCode::kDataLoss) return status;
      gpu_ms += executor->last_gpu_ms();
    }
    if (turn > 0) wall.push_back(base::ToMs(clock.Now() - began));
    if (turn > 0) gpu.push_back(gpu_ms);
  }
  return PrefillTimes{Median(wall), Median(gpu)};
}

absl::Status BenchPrefill(CudaModel& model, const BenchOptions& o, uint32_t tokens) {
  AS_ASSIGN_OR_RETURN(const PrefillTimes t, TimePrefill(model, o, tokens));
  std::printf("prefill T=%-6u chunk=%-5u %.3f ms (wall median), gpu %.3f ms\n", tokens, o.chunk, t.wall_ms, t.gpu_ms);
  std::fflush(stdout);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunBench(CudaModel& model, const BenchOptions& o) {
  AS_ASSIGN_OR_RETURN(const double read, model.MeasureReadBandwidth(0));
  std::printf("plain reading of the weights: %.0f GB/s\n", read);
  for (const uint32_t context : o.contexts) {
    for (const uint32_t rows : o.batches) AS_RETURN_IF_ERROR(BenchDecode(model, o, rows, context));
  }
  for (const uint32_t tokens : o.prefills) AS_RETURN_IF_ERROR(BenchPrefill(model, o, tokens));
  return absl::OkStatus();
}

absl::Status RunParts(CudaModel& model, const BenchOptions& o, const CudaOptions& base) {
  struct Variant {
    const char* name;
    CudaOptions options;
  };
  std::vector<Variant> variants;
  const auto add = [&](const char* name, auto change) {
    CudaOptions c = base;
    c.whole_step_rows = 0;
    change(&c);
    variants.push_back({name, c});
  };
  add("separate kernels", [](CudaOptions*) {});
  add("as served", [&](CudaOptions* c) { c->whole_step_rows = base.whole_step_rows; });
  add("no PDL", [](CudaOptions* c) { c->pdl = false; });
  add("norms fused", [](CudaOptions* c) { c->fuse_norm_rows = kernels::cuda::kMaxFusedNormRows; });
  add("prefetch 4 MiB", [](CudaOptions* c) { c->prefetch_bytes = size_t{4} << 20; });
  add("prefetch 12 MiB", [](CudaOptions* c) { c->prefetch_bytes = size_t{12} << 20; });
  add("prefetch 20 MiB", [](CudaOptions* c) { c->prefetch_bytes = size_t{20} << 20; });
  constexpr const char* kNames[] = {"without norms",   "without qkv",  "without attention", "without o",
                                    "without gate-up", "without down", "without head"};
  for (uint32_t i = 0; i < std::size(kNames); ++i) add(kNames[i], [i](CudaOptions* c) { c->skip = 1u << i; });
  for (const uint32_t context : o.contexts) {
    for (const uint32_t rows : o.batches) {
      double served = 0;
      for (const Variant& v : variants) {
        model.set_cuda_options(v.options);
        AS_ASSIGN_OR_RETURN(const DecodeTimes t, TimeDecode(model, o, rows, context));
        if (served == 0) served = t.gpu_ms;
        std::printf("B=%-4u ctx=%-6u %-20s %.4f ms  %+.1f us\n", rows, context, v.name, t.gpu_ms,
                    1e3 * (t.gpu_ms - served));
      }
      std::fflush(stdout);
    }
  }
  for (const uint32_t tokens : o.prefills) {
    double served = 0;
    for (const Variant& v : variants) {
      if (v.options.prefetch_bytes != base.prefetch_bytes) continue;  // decode only
      model.set_cuda_options(v.options);
      AS_ASSIGN_OR_RETURN(const PrefillTimes t, TimePrefill(model, o, tokens));
      if (served == 0) served = t.gpu_ms;
      std::printf("T=%-6u %-20s %.4f ms  %+.1f us (wall %.4f ms)\n", tokens, v.name, t.gpu_ms,
                  1e3 * (t.gpu_ms - served), t.wall_ms);
    }
    std::fflush(stdout);
  }
  model.set_cuda_options(base);
  return absl::OkStatus();
}

}  // namespace agentserve::model::cuda
