// Builders shared by the core's tests.
#pragma once

#include <string>
#include <vector>

#include "kvstore/core/kv_store_core.h"

namespace agentserve::kvstore {

inline PoolSpec Spec(const std::string& id, uint64_t incarnation, uint32_t blocks = 16) {
  return {id, incarnation, "/run/" + id, "127.0.0.1:1", 4, 2, 16, 16, "bf16", 99, blocks};
}
inline Hash128 H(uint64_t n) { return {n * 0x9e3779b97f4a7c15ull + 1, n + 1}; }
inline SealedBlock Sealed(uint32_t index, uint32_t epoch, uint64_t hash) {
  return {H(hash), {index, epoch, 16, hash + 1000}};
}
inline BlockRef Dropped(uint32_t index, uint32_t epoch) { return {index, epoch, 0, 0}; }
inline std::vector<Hash128> Chain(std::initializer_list<uint64_t> hashes) {
  std::vector<Hash128> chain;
  for (uint64_t h : hashes) chain.push_back(H(h));
  return chain;
}

}  // namespace agentserve::kvstore
