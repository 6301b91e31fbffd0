// Chooses tokens on the GPU from bf16 logits, with the meaning and order of operations of model/sampler.h: repetition,
// presence and frequency penalties, logit bias, masked ids, temperature, top-k, top-p, min-p, one draw from Philox
// (seed, position). Candidates are ordered by logit descending, id ascending; the draw walks that order. Deterministic.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

// One change of one logit; those of a row are consecutive and their ids ascend without repeats.
struct LogitEdit {
  int32_t token;
  float bias;       // added last
  uint32_t output;  // times the token occurs in the output (frequency and presence penalties)
  uint32_t flags;   // kEditSeen: in prompt or output (repetition penalty); kEditMasked: never chosen
};
inline constexpr uint32_t kEditSeen = 1, kEditMasked = 2;

struct SamplingRow {
  float temperature;  // 0 = greedy
  uint32_t top_k;     // 0 = all
  float top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t top_logprobs;  // -1 = none, 0..20
  uint64_t seed;
  uint64_t position;               // of the token being sampled
  int32_t edits_begin, edits_end;  // into SampleParams::edits
};

// Result of one row, copied to the host by the caller.
inline constexpr int kMaxTopLogprobs = 20;
struct SampledRow {
  int32_t token;  // -1: no logit is a finite number
  float logprob;  // of the raw softmax; valid if asked for
  int32_t top_tokens[kMaxTopLogprobs];
  float top_logprobs[kMaxTopLogprobs];
};

struct SampleParams {
  const __nv_bfloat16* logits = nullptr;  // [rows][vocab]
  int rows = 0, vocab = 0;
  const SamplingRow* settings = nullptr;  // [rows]
  const LogitEdit* edits = nullptr;
  SampledRow* out = nullptr;  // [rows]
  int32_t* tokens = nullptr;  // [rows], the chosen ids again, contiguous (input of the next step)
  void* workspace = nullptr;  // SampleWorkspaceBytes
  size_t workspace_bytes = 0;
};
size_t SampleWorkspaceBytes(int max_rows, int vocab);
absl::Status Sample(const SampleParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
