#include "base/rng.h"

#include <sys/random.h>

#include <cstdio>

#include "base/check.h"

namespace agentserve::base {

std::array<uint32_t, 4> Philox4x32(uint64_t key, uint64_t counter_lo, uint64_t counter_hi) {
  constexpr uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u, kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(counter_lo), static_cast<uint32_t>(counter_lo >> 32),
                               static_cast<uint32_t>(counter_hi), static_cast<uint32_t>(counter_hi >> 32)};
  auto k0 = static_cast<uint32_t>(key);
  auto k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kM0) * c[0];
    const uint64_t p1 = static_cast<uint64_t>(kM1) * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kW0;
    k1 += kW1;
  }
  return c;
}

double UniformAt(uint64_t seed, uint64_t position) {
  const auto w = Philox4x32(seed, position);
  const uint64_t bits = (static_cast<uint64_t>(w[0]) << 32) | w[1];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

uint64_t SplitMix64::Next() {
  uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

uint64_t EntropyUint64() {
  uint64_t v = 0;
  AS_CHECK_EQ(getrandom(&v, sizeof(v), 0), static_cast<ssize_t>(sizeof(v)));
  return v;
}

std::string RandomHex128() {
  char buf[33];
  std::snprintf(buf, sizeof(buf), "%016llx%016llx", static_cast<unsigned long long>(EntropyUint64()),
                static_cast<unsigned long long>(EntropyUint64()));
  return buf;
}

}  // namespace agentserve::base
