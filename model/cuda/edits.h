// Penalties, biases and masks of sampling rows as sparse lists for the GPU sampler.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/batch.h"
#include "kernels/sampling/sampling_cuda.h"

namespace agentserve::model::cuda {

// True if a row's logits are changed before the choice.
bool NeedsEdits(const engine::SeqSlice& slice);

// Builds the lists of one step; owns scratch memory that grows to the vocabulary.
class EditBuilder {
 public:
  explicit EditBuilder(uint32_t vocab_size) : vocab_size_(vocab_size) {}
  // Appends the row's edits, ids ascending without repeats. Same meaning as model/sampler.cc.
  void Append(const engine::SeqSlice& slice, const std::vector<engine::TokenId>& end_tokens,
              std::vector<kernels::cuda::LogitEdit>* edits);

 private:
  kernels::cuda::LogitEdit& At(engine::TokenId id);

  const uint32_t vocab_size_;
  std::vector<kernels::cuda::LogitEdit> row_;
  std::vector<uint32_t> index_;  // per token id: 1 + place in row_, 0 = none; zero between calls
};

}  // namespace agentserve::model::cuda
