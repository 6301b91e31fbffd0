// Random numbers: a counter-based generator for sampling, a small sequential one for tests and jitter, and entropy for
// incarnations and ids.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace agentserve::base {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): four 32-bit words that depend
// only on (key, counter). The same on every worker and, later, on GPUs.
std::array<uint32_t, 4> Philox4x32(uint64_t key, uint64_t counter_lo, uint64_t counter_hi = 0);

// Uniform in [0, 1) with 53 bits for sampling the token at `position` (0-based index in the sequence) of a request
// seeded with `seed`.
double UniformAt(uint64_t seed, uint64_t position);

// SplitMix64. Sequential, not thread-safe, deterministic.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  // Uniform in [0, n); n > 0. Bias below 2^-32 for n < 2^32.
  uint64_t Below(uint64_t n) { return n == 0 ? 0 : Next() % n; }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_;
};

// From the operating system. Shells only.
uint64_t EntropyUint64();
// 128 bits as 32 lower-case hex digits.
std::string RandomHex128();

}  // namespace agentserve::base
