// One layer of a paged KV pool: blocks of all layers, each [layer][K|V][kv_head][token][head_dim] in bf16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::kernels {

struct PagedKv {
  std::byte* base = nullptr;  // block 0
  size_t block_bytes = 0;
  size_t k_offset = 0;  // of this layer's K of head 0 inside a block
  size_t v_offset = 0;
  size_t head_bytes = 0;  // block_tokens * head_dim * 2
  uint32_t block_tokens = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;

  // Row of `position` of a sequence whose block table is `blocks`.
  uint16_t* Row(const uint32_t* blocks, uint32_t position, size_t offset, uint32_t head) const {
    std::byte* block = base + size_t{blocks[position / block_tokens]} * block_bytes;
    return reinterpret_cast<uint16_t*>(block + offset + head * head_bytes) + size_t{position % block_tokens} * head_dim;
  }
};

}  // namespace agentserve::kernels
