// Prometheus figures of what a worker keeps of KV, and where. Loop thread only.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "base/metrics.h"
#include "engine/kv_tiers.h"

namespace agentserve::worker {

class TierMetrics {
 public:
  // `block_bytes`: of one KV block.
  TierMetrics(base::Metrics* metrics, uint64_t block_bytes);

  // Copies the totals kept by the core.
  void Update(const engine::KvTiers& tiers, const engine::BlockPool& pool);
  // A prompt's tokens that were found: `host` of `cached` came from host memory.
  void OnHit(uint32_t cached, uint32_t host);

 private:
  const uint64_t block_bytes_;
  prometheus::Gauge& parked_;
  prometheus::Gauge& host_blocks_;
  prometheus::Gauge& host_total_;
  prometheus::Counter& store_bytes_;
  prometheus::Counter& load_bytes_;
  prometheus::Gauge& store_rate_;
  prometheus::Gauge& load_rate_;
  prometheus::Counter& device_hits_;
  prometheus::Counter& host_hits_;
  prometheus::Counter& corrupt_;
  prometheus::Counter& failed_;
  prometheus::Counter& recompute_cheaper_;
  prometheus::Counter& prefetched_;
  std::array<prometheus::Counter*, 3> retained_;
  std::array<prometheus::Counter*, engine::BlockPool::kNumReasons> evicted_;
  std::array<prometheus::Counter*, engine::HostTier::kNumReasons> host_evicted_;
  engine::TierStats last_;
  std::array<uint64_t, engine::BlockPool::kNumReasons> last_evicted_{};
  std::array<uint64_t, engine::HostTier::kNumReasons> last_host_evicted_{};
};

}  // namespace agentserve::worker
