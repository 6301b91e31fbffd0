#include "kernels/kv_copy/kv_digest.h"

#include <cstring>

namespace agentserve::kernels {
namespace {

// High xor low half of the 128-bit product.
uint64_t MultiplyFold(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t KvDigestSum(const std::byte* block, const KvDigestShape& shape, KvRange range, uint32_t tokens) {
  uint64_t sum = 0;
  const size_t valid = size_t{tokens} * shape.row_bytes;
  for (size_t piece = range.offset; piece < range.offset + range.bytes; piece += shape.piece_bytes) {
    for (size_t at = piece; at < piece + valid; at += 16) {
      uint64_t words[2];
      std::memcpy(words, block + at, sizeof(words));
      const uint64_t i = at / 16 + 1;
      sum += MultiplyFold(words[0] ^ (i * kKvDigestKeyA), words[1] ^ (i * kKvDigestKeyB));
    }
  }
  return sum;
}

uint64_t KvDigestFinish(uint64_t sum, uint32_t tokens) {
  uint64_t z = sum ^ ((uint64_t{tokens} + 1) * kKvDigestKeyTokens);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return z == 0 ? 1 : z;
}

}  // namespace agentserve::kernels
