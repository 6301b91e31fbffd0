// One planned step: what a worker asks its model to run. Built by the planner (engine), run by an Executor (model).
//
// A step mixes decodes (one new token) and prefill chunks (many). Slices are independent: the result of a slice depends
// only on its own tokens and blocks, never on what shares the step (the CPU backend keeps this bit for bit).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/ids.h"
#include "engine/kv_layout.h"
#include "engine/sampling_params.h"

namespace agentserve::engine {

// One sequence's share of a step. Spans point into the sequence and stay valid until Run returns.
struct SeqSlice {
  SeqId seq;
  // Tokens to run, at absolute positions [start, start + tokens.size()); never empty.
  std::span<const TokenId> tokens;
  uint32_t start = 0;
  // Block table covering positions [0, start + tokens.size()).
  std::span<const BlockId> blocks;
  // True: sample the token that follows the last one of this slice.
  bool sample = false;
  // Below only if `sample`.
  const SamplingParams* sampling = nullptr;
  // All tokens of the sequence so far, including this slice; the first `prompt_tokens` are prompt. For penalties.
  std::span<const TokenId> history;
  uint32_t prompt_tokens = 0;
};

struct StepPlan {
  std::vector<SeqSlice> slices;
};

struct StepOutput {
  // One per sampling slice, in slice order.
  std::vector<SampledToken> tokens;
};

// Told about KV writes while a step runs, on the executor's thread, so that peers can pull layer by layer.
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  // KV of `layer` is written for all slices of the step.
  virtual void OnLayerWritten(const StepPlan& plan, uint32_t layer) = 0;
};

// Runs steps over one KV pool. Not thread-safe: one step at a time.
class Executor {
 public:
  virtual ~Executor() = default;
  // Writes the KV of all slices into the pool and samples. `observer` may be null. An error leaves the pool's written
  // blocks undefined (their sequences must be recomputed) but the executor usable, unless the code is INTERNAL.
  virtual absl::Status Run(const StepPlan& plan, LayerObserver* observer, StepOutput* out) = 0;
};

}  // namespace agentserve::engine
