#include "worker/tier_metrics.h"

namespace agentserve::worker {
namespace {

constexpr const char* kPlaces[] = {"device", "host", "drop"};
constexpr const char* kReasons[] = {"final", "orphan", "value", "pinned", "inner"};
constexpr const char* kHostReasons[] = {"final", "value", "orphan", "corrupt"};

void Add(prometheus::Counter& counter, uint64_t now, uint64_t before) {
  if (now > before) counter.Increment(static_cast<double>(now - before));
}

}  // namespace

TierMetrics::TierMetrics(base::Metrics* m, uint64_t block_bytes)
    : block_bytes_(block_bytes),
      parked_(m->Gauge("agentserve_worker_kv_parked_blocks", "Blocks pinned for the next turn of a program.")),
      host_blocks_(m->Gauge("agentserve_worker_kv_host_blocks", "Blocks kept in host memory.")),
      host_total_(m->Gauge("agentserve_worker_kv_host_total_blocks", "Blocks that fit into host memory.")),
      store_bytes_(m->Counter("agentserve_worker_kv_host_bytes_total", "KV copied between the pool and host memory.",
                              {{"direction", "store"}})),
      load_bytes_(m->Counter("agentserve_worker_kv_host_bytes_total", "KV copied between the pool and host memory.",
                             {{"direction", "load"}})),
      store_rate_(m->Gauge("agentserve_worker_kv_host_gb_per_s", "Rate of the latest copies, bytes / 1e9 / second.",
                           {{"direction", "store"}})),
      load_rate_(m->Gauge("agentserve_worker_kv_host_gb_per_s", "Rate of the latest copies, bytes / 1e9 / second.",
                          {{"direction", "load"}})),
      device_hits_(m->Counter("agentserve_worker_prefix_cache_tier_hits_tokens_total",
                              "Prompt tokens whose KV was found, by where it was.", {{"tier", "device"}})),
      host_hits_(m->Counter("agentserve_worker_prefix_cache_tier_hits_tokens_total",
                            "Prompt tokens whose KV was found, by where it was.", {{"tier", "host"}})),
      corrupt_(m->Counter("agentserve_worker_kv_host_corrupt_blocks_total",
                          "Blocks in host memory that were not what had been stored; each was recomputed.")),
      failed_(m->Counter("agentserve_worker_kv_host_failed_copies_total", "Copies that did not complete.")),
      recompute_cheaper_(m->Counter("agentserve_worker_kv_host_loads_declined_total",
                                    "Prompts found in host memory that were computed again as the cheaper way.")),
      prefetched_(m->Counter("agentserve_worker_kv_prefetched_blocks_total",
                             "Blocks brought back from host memory before they were asked for.")) {
  for (size_t i = 0; i < retained_.size(); ++i) {
    retained_[i] = &m->Counter("agentserve_worker_kv_retained_total",
                               "Words of the router on where to keep a sequence's KV.", {{"where", kPlaces[i]}});
  }
  for (size_t i = 0; i < evicted_.size(); ++i) {
    evicted_[i] = &m->Counter("agentserve_worker_kv_evicted_blocks_total", "Cached blocks evicted, by tier and reason.",
                              {{"tier", "device"}, {"reason", kReasons[i]}});
  }
  for (size_t i = 0; i < host_evicted_.size(); ++i) {
    host_evicted_[i] =
        &m->Counter("agentserve_worker_kv_evicted_blocks_total", "Cached blocks evicted, by tier and reason.",
                    {{"tier", "host"}, {"reason", kHostReasons[i]}});
  }
}

void TierMetrics::Update(const engine::KvTiers& tiers, const engine::BlockPool& pool) {
  const engine::TierStats& now = tiers.stats();
  parked_.Set(pool.pinned());
  host_blocks_.Set(tiers.host().stored());
  host_total_.Set(tiers.host().total());
  const uint64_t stored = now.stored_blocks - last_.stored_blocks;
  const uint64_t loaded = now.loaded_blocks + now.prefetched_blocks - last_.loaded_blocks - last_.prefetched_blocks;
  store_bytes_.Increment(static_cast<double>(stored * block_bytes_));
  load_bytes_.Increment(static_cast<double>(loaded * block_bytes_));
  const auto rate = [&](uint64_t blocks, base::TimeNs ns) {
    return static_cast<double>(blocks * block_bytes_) / static_cast<double>(ns);
  };
  if (stored > 0 && now.store_ns > last_.store_ns) store_rate_.Set(rate(stored, now.store_ns - last_.store_ns));
  if (loaded > 0 && now.load_ns > last_.load_ns) load_rate_.Set(rate(loaded, now.load_ns - last_.load_ns));
  Add(corrupt_, now.corrupt_blocks, last_.corrupt_blocks);
  Add(failed_, now.failed_stores + now.failed_loads, last_.failed_stores + last_.failed_loads);
  Add(recompute_cheaper_, now.recompute_was_cheaper, last_.recompute_was_cheaper);
  Add(prefetched_, now.prefetched_blocks, last_.prefetched_blocks);
  for (size_t i = 0; i < retained_.size(); ++i) Add(*retained_[i], now.retained[i], last_.retained[i]);
  last_ = now;
  for (size_t i = 0; i < evicted_.size(); ++i) {
    const uint64_t total = pool.evictions(static_cast<engine::BlockPool::Reason>(i));
    Add(*evicted_[i], total, std::exchange(last_evicted_[i], total));
  }
  for (size_t i = 0; i < host_evicted_.size(); ++i) {
    const uint64_t total = tiers.host().evictions(static_cast<engine::HostTier::Reason>(i));
    Add(*host_evicted_[i], total, std::exchange(last_host_evicted_[i], total));
  }
}

void TierMetrics::OnHit(uint32_t cached, uint32_t host) {
  device_hits_.Increment(cached - std::min(cached, host));
  host_hits_.Increment(host);
}

}  // namespace agentserve::worker
