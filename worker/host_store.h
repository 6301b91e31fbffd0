// Memory of this host for the KV blocks of engine/host_tier.h, and the thread that copies between it and the pool
// beside the steps. On a GPU the memory is pinned and the copies run on a stream of their own (kvstore/transport/cuda).
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/statusor.h"
#include "engine/kv_tiers.h"
#include "kvstore/transport/kv_pool.h"

namespace agentserve::worker {

class HostStore {
 public:
  // Room for `slots` blocks. `pool` outlives it. RESOURCE_EXHAUSTED: there is not so much memory.
  static absl::StatusOr<std::unique_ptr<HostStore>> Create(kvstore::KvPool* pool, uint32_t slots);
  // What runs is finished; what waits is not, and has no answer.
  ~HostStore();

  // Where answers go, on the store's thread: one for each Post. Set once, before the first Post.
  void Start(std::function<void(engine::CopyEnded)> on_ended);
  // From any thread; carried out in order.
  void Post(engine::HostCopy copy);

  uint32_t slots() const { return slots_; }

 private:
  HostStore(kvstore::KvPool* pool, uint32_t slots, std::unique_ptr<kvstore::HostBuffer> memory)
      : pool_(pool), slots_(slots), memory_(std::move(memory)) {}
  void Run();
  engine::CopyEnded Carry(const engine::HostCopy& copy);
  absl::Status Out(const engine::HostCopy& copy);
  absl::Status In(const engine::HostCopy& copy);
  // Sets how many leading blocks are what had been stored.
  absl::Status Check(const engine::HostCopy& copy, engine::CopyEnded* ended);
  std::byte* Slot(engine::SlotId slot) const { return memory_->data() + slot.value * pool_->layout().BlockBytes(); }

  kvstore::KvPool* const pool_;
  const uint32_t slots_;
  const std::unique_ptr<kvstore::HostBuffer> memory_;
  std::function<void(engine::CopyEnded)> on_ended_;

  std::mutex mu_;  // guards below
  std::condition_variable cv_;
  bool stop_ = false;
  std::deque<engine::HostCopy> copies_;  // bounded by the core: two stores, two prefetches, one load per sequence
  std::thread thread_;
};

}  // namespace agentserve::worker
