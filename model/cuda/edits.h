// Penalties, biases and masks of sampling rows as sparse lists for the GPU sampler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/batch.h"
#include "kernels/sampling/sampling_cuda.h"

namespace agentserve::model::cuda {

// True if a row's logits are changed before the choice.
bool NeedsEdits(const engine::SeqSlice& slice);

// Builds the lists of one step. What a history comes to is kept per sequence, so that a step costs its new tokens and
// one copy, not the whole history: at 8k tokens of history a rebuild takes a few hundred microseconds a row.
class EditBuilder {
 public:
  // `max_sequences`: of one step; histories of up to twice as many are kept.
  EditBuilder(uint32_t vocab_size, size_t max_sequences) : vocab_size_(vocab_size), max_kept_(2 * max_sequences) {}
  // Appends the row's edits, ids ascending without repeats. Same meaning as model/sampler.cc.
  void Append(const engine::SeqSlice& slice, const std::vector<engine::TokenId>& end_tokens,
              std::vector<kernels::cuda::LogitEdit>* edits);

 private:
  struct History {
    std::vector<engine::TokenId> tokens;  // that `seen` was made from
    uint32_t prompt_tokens = 0;
    std::vector<kernels::cuda::LogitEdit> seen;  // ids ascending
    uint64_t used = 0;
  };
  const std::vector<kernels::cuda::LogitEdit>& SeenBy(const engine::SeqSlice& slice);
  void Forget();

  const uint32_t vocab_size_;
  const size_t max_kept_;
  uint64_t turn_ = 0;  // counts Append
  std::unordered_map<uint64_t, History> histories_;
};

}  // namespace agentserve::model::cuda
