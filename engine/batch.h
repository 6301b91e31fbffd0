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
  // True: the one entry of `tokens` is a placeholder for the token that the step launched right before this one samples
  // for the same sequence (not known to the host yet). Only in steps given to Launch while that step is in flight.
  bool input_pending = false;
  uint32_t start = 0;
  // Block table covering positions [0, start + tokens.size()).
  std::span<const BlockId> blocks;
  // True: sample the token that follows the last one of this slice.
  bool sample = false;
  // Below only if `sample`.
  const SamplingParams* sampling = nullptr;
  // All tokens of the sequence so far, including this slice; the first `prompt_tokens` are prompt. For penalties. Its
  // last entry is the placeholder if `input_pending`; planners do not plan ahead for sequences whose sampling reads the
  // history.
  std::span<const TokenId> history;
  uint32_t prompt_tokens = 0;
};

struct StepPlan {
  std::vector<SeqSlice> slices;
  uint64_t number = 0;  // of the step, for the observer of its layers
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

  // Pipelining: most steps that may be launched and not yet waited for. 1: use Run only.
  virtual int depth() const { return 1; }
  // Starts a step and returns; everything the plan points to is copied before. At most depth() steps may be in flight;
  // with a step in flight the plan may have slices with input_pending. An error means that nothing was started.
  virtual absl::Status Launch(const StepPlan& plan);
  // The result of the oldest step in flight. An error is this step's, as for Run; later steps in flight are then lost
  // too: they have no result, and nothing of them touches the pool any more.
  virtual absl::Status Wait(StepOutput* out);
  // Who hears of the layers of launched steps, before Wait for the step returns and on any thread; null = nobody. An
  // executor that cannot tell ignores it. The plan it gets names the same slices (`seq`, `start`, number of tokens).
  virtual void ObserveLaunches(LayerObserver*) {}
};

}  // namespace agentserve::engine
