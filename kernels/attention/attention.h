// Causal grouped-query attention over a paged KV pool; prefill chunks and decode are one code path.
//
// The row at position p attends to [0, p]. Keys are processed in tiles of kAttentionTile positions that start at
// multiples of kAttentionTile, with a running maximum and sum; the work for a row depends only on p and on the stored K
// and V. Hence the same bits for any chunking of the prompt, any batch, any block size and any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/paged_kv.h"
#include "kernels/parallel/thread_pool.h"

namespace agentserve::kernels {

inline constexpr uint32_t kAttentionTile = 64;

// New rows of one sequence.
struct AttentionSeq {
  const float* q = nullptr;  // [rows][heads][head_dim], row stride ld
  float* out = nullptr;      // same shape and stride
  size_t rows = 0;
  uint32_t start = 0;                // position of row 0
  const uint32_t* blocks = nullptr;  // block table covering [0, start + rows); K and V of all of it are written
};

struct AttentionParams {
  PagedKv kv;
  uint32_t heads = 0;  // multiple of kv.kv_heads; kv.head_dim is a multiple of 16, at most 256
  size_t ld = 0;
  std::span<const AttentionSeq> seqs;
};

struct AttentionWorkspace {
  struct Task {
    uint32_t seq, head, row, rows;
  };
  std::vector<Task> tasks;
  std::vector<std::vector<float>> scratch;  // one per thread
};

// Scores are scaled by 1/sqrt(head_dim).
void Attention(const AttentionParams& params, ThreadPool& pool, AttentionWorkspace& workspace);
void AttentionReference(const AttentionParams& params);  // plain softmax in double, for tests

}  // namespace agentserve::kernels
