// Shape of a paged KV block in memory; see docs/kv_block_format.md.
//
// One block holds `block_tokens` tokens of *all* layers, contiguous:  [layer][K|V][kv_head][token][head_dim].
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::engine {

enum class KvDtype : uint8_t { kBf16, kFp32 };

struct KvLayout {
  uint32_t num_layers = 0;
  uint32_t num_kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t block_tokens = 16;
  KvDtype dtype = KvDtype::kBf16;
  // 64-bit hash of the model's identity (weights, config); blocks of different models never mix.
  uint64_t model_fingerprint = 0;

  bool operator==(const KvLayout&) const = default;

  size_t ElementBytes() const { return dtype == KvDtype::kBf16 ? 2 : 4; }
  // One (layer, K|V, head) piece: `block_tokens` rows of head_dim.
  size_t HeadBytes() const { return size_t{block_tokens} * head_dim * ElementBytes(); }
  // K and V of one layer.
  size_t LayerBytes() const { return 2 * num_kv_heads * HeadBytes(); }
  size_t BlockBytes() const { return num_layers * LayerBytes(); }
  size_t BytesPerToken() const { return BlockBytes() / block_tokens; }
  // Byte offset of row (token 0) of a piece inside a block. kv: 0 = K, 1 = V.
  size_t Offset(uint32_t layer, uint32_t kv, uint32_t head) const {
    return layer * LayerBytes() + (size_t{kv} * num_kv_heads + head) * HeadBytes();
  }
  uint32_t BlocksFor(uint64_t tokens) const {
    return static_cast<uint32_t>((tokens + block_tokens - 1) / block_tokens);
  }

  // Over all fields and the format version; equal fingerprints <=> blocks may be exchanged.
  uint64_t Fingerprint() const;
};

// The pool's memory as kernels see it: `num_blocks` blocks of layout.BlockBytes() from `base`.
struct KvPoolView {
  std::byte* base = nullptr;
  uint32_t num_blocks = 0;
  KvLayout layout;

  std::byte* Block(uint32_t index) const { return base + size_t{index} * layout.BlockBytes(); }
};

// Progress of a prompt inside a prefill worker, packed in one 64-bit word so that one atomic store publishes it:
// every layer of tokens [0, complete) is written, and of tokens [complete, chunk_end) layers [0, layers).
struct PrefillProgress {
  uint32_t complete = 0;   // 24 bits
  uint32_t chunk_end = 0;  // 24 bits
  uint32_t layers = 0;     // 16 bits
  bool operator==(const PrefillProgress&) const = default;
  uint64_t Pack() const {
    return (uint64_t{complete} << 40) | (uint64_t{chunk_end & 0xffffff} << 16) | (layers & 0xffff);
  }
  static PrefillProgress Unpack(uint64_t w) {
    return {static_cast<uint32_t>(w >> 40), static_cast<uint32_t>((w >> 16) & 0xffffff),
            static_cast<uint32_t>(w & 0xffff)};
  }
};

}  // namespace agentserve::engine
