// Widens one row of a bf16 embedding table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::kernels {

struct EmbeddingParams {
  const uint16_t* table = nullptr;  // [vocab][n] bf16
  const uint32_t* ids = nullptr;    // [rows], all below vocab
  float* y = nullptr;               // [rows][n]
  size_t rows = 0;
  size_t n = 0;
};

void Embedding(const EmbeddingParams& params);

}  // namespace agentserve::kernels
