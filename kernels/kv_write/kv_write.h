// Stores new K and V rows, rounded to bf16, into a paged pool. See attention/paged_kv.h for the layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_kv.h"

namespace agentserve::kernels {

struct KvWriteParams {
  PagedKv kv;                // of one layer
  const float* k = nullptr;  // [rows][kv_heads][head_dim], row stride ld; already rotated
  const float* v = nullptr;
  size_t ld = 0;
  size_t rows = 0;
  uint32_t start = 0;                // position of row 0
  const uint32_t* blocks = nullptr;  // block table covering [0, start + rows)
};

void KvWrite(const KvWriteParams& params);

}  // namespace agentserve::kernels
