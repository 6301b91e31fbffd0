// Runs a GPU executor without services, over a private pool: to compare its logits with a reference and to time it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/rng.h"
#include "engine/batch.h"
#include "model/cuda/cuda_model.h"

namespace agentserve::model::cuda {

struct CheckSequence {
  std::vector<engine::TokenId> tokens;  // prompt, then what was generated
  uint32_t prompt = 0;
  std::vector<engine::BlockId> blocks;
  engine::SeqId id;
};

// Sequences with random prompts over a pool of their own, blocks in shuffled order.
class CheckBatch {
 public:
  // Prompts of the given lengths; room for `room` more tokens each.
  static absl::StatusOr<std::unique_ptr<CheckBatch>> Create(CudaModel& model, const std::vector<uint32_t>& prompts,
                                                            uint32_t room, uint32_t block_tokens, uint64_t seed);
  engine::KvPoolView pool() const { return pool_; }
  std::vector<CheckSequence>& sequences() { return sequences_; }
  // Tokens [start, start + n) of a sequence. Pointers stay valid as long as nothing is appended.
  engine::SeqSlice Slice(const CheckSequence& s, uint32_t start, uint32_t n, bool sample) const;
  engine::SamplingParams& sampling() { return sampling_; }
  // Random finite values everywhere: for timing decodes without a prefill.
  absl::Status FillPool();

 private:
  KvMemory memory_;
  engine::KvPoolView pool_;
  std::vector<CheckSequence> sequences_;
  engine::SamplingParams sampling_;
};

// Prompts one by one in chunks, then `steps` tokens for each: all decode together, two steps in flight, tokens passed
// on the device.
absl::Status GeneratePipelined(CheckBatch& batch, CudaExecutor& executor, uint32_t steps, uint32_t chunk);

struct ForcedOptions {
  std::vector<uint32_t> prompts;
  uint32_t steps = 64;
  uint32_t chunk = 512;
  uint32_t block_tokens = 16;
  uint64_t seed = 1;
  std::string dump;  // file for tokens and logits; "" = none
};
// Prefills in chunks beside the decodes of the sequences before (mixed steps), generates greedily, and dumps tokens and
// logits of every generated position. Then generates again with graphs and two steps in flight and compares the tokens.
absl::Status RunForced(CudaModel& with_logits, CudaModel& serving, const ForcedOptions& options);

// The mixed run and the pipelined run again and again, over fresh poisoned pools: all logits and all tokens must be
// those of the first run, bit for bit. INTERNAL if not.
absl::Status RunRepeated(CudaModel& with_logits, CudaModel& serving, const ForcedOptions& options, uint32_t runs);

struct BenchOptions {
  std::vector<uint32_t> batches, contexts, prefills;
  uint32_t steps = 50;
  uint32_t block_tokens = 16;
  uint32_t chunk = 8192;
};
absl::Status RunBench(CudaModel& model, const BenchOptions& options);
// Decode steps with one switch changed or one part left out at a time, to place their time.
absl::Status RunParts(CudaModel& model, const BenchOptions& options, const CudaOptions& base);

}  // namespace agentserve::model::cuda
