// Hashes: SHA-256 where an adversary may choose the input (block chains, model identity), XXH3 where only accidents
// matter (block digests).
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace agentserve::base {

// 128 bits; the first half of a SHA-256.
struct Hash128 {
  uint64_t hi = 0;
  uint64_t lo = 0;
  auto operator<=>(const Hash128&) const = default;
  bool zero() const { return hi == 0 && lo == 0; }
  std::string Hex() const;
};

// First 128 bits (big-endian) of SHA-256 over `data`.
Hash128 Sha256Prefix(std::span<const std::byte> data);
// Lower-case hex of the whole SHA-256.
std::string Sha256Hex(std::string_view data);
// XXH3-64 with seed 0. `state` chains pieces: pass the previous result as `seed`.
uint64_t Xxh3(std::span<const std::byte> data, uint64_t seed = 0);

struct Hash128Hasher {
  size_t operator()(const Hash128& h) const { return h.lo; }
};

}  // namespace agentserve::base
