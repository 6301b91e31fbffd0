#include "worker/host_store.h"

#include <cstring>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvstore/transport/digest.h"

namespace agentserve::worker {

using base::Field;

absl::StatusOr<std::unique_ptr<HostStore>> HostStore::Create(kvstore::KvPool* pool, uint32_t slots) {
  AS_ASSIGN_OR_RETURN(std::unique_ptr<kvstore::HostBuffer> memory,
                      pool->memory().NewHostBuffer(size_t{slots} * pool->layout().BlockBytes()));
  return std::unique_ptr<HostStore>(new HostStore(pool, slots, std::move(memory)));
}

HostStore::~HostStore() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  cv_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void HostStore::Start(std::function<void(engine::CopyEnded)> on_ended) {
  on_ended_ = std::move(on_ended);
  thread_ = std::thread([this] { Run(); });
}

void HostStore::Post(engine::HostCopy copy) {
  {
    const std::lock_guard lock(mu_);
    copies_.push_back(std::move(copy));
  }
  cv_.notify_one();
}

void HostStore::Run() {
  for (;;) {
    engine::HostCopy copy;
    {
      std::unique_lock lock(mu_);
      cv_.wait(lock, [&] { return stop_ || !copies_.empty(); });
      if (stop_) return;
      // A sequence waits for a load; nobody waits for a store.
      auto next = copies_.begin();
      while (next != copies_.end() && next->to_host) ++next;
      if (next == copies_.end()) next = copies_.begin();
      copy = std::move(*next);
      copies_.erase(next);
    }
    on_ended_(Carry(copy));
  }
}

engine::CopyEnded HostStore::Carry(const engine::HostCopy& copy) {
  engine::CopyEnded ended;
  ended.job = copy.job;
  const base::MonotonicClock clock;
  const base::TimeNs started = clock.Now();
  absl::Status status = copy.to_host ? Out(copy) : In(copy);
  ended.copy_ns = clock.Now() - started;
  if (status.ok() && copy.to_host) ended.good = static_cast<uint32_t>(copy.blocks.size());
  if (status.ok() && !copy.to_host) status = Check(copy, &ended);
  if (!status.ok()) {
    AS_LOG(kWarn, "host_kv.copy_failed") << Field("to_host", copy.to_host) << Field("blocks", copy.blocks.size())
                                         << Field("error", base::MessageOf(status)) << Field("then", "recompute");
  }
  return ended;
}

absl::Status HostStore::Out(const engine::HostCopy& copy) {
  std::vector<kvstore::PieceOut> pieces;
  pieces.reserve(copy.blocks.size());
  for (size_t i = 0; i < copy.blocks.size(); ++i) {
    pieces.push_back({copy.blocks[i].value, 0, pool_->layout().BlockBytes(), Slot(copy.slots[i])});
  }
  AS_RETURN_IF_ERROR(pool_->memory().CopyOut(pieces));
  if (base::FailpointFires("hk.corrupt")) *Slot(copy.slots[0]) ^= std::byte{1};
  return absl::OkStatus();
}

absl::Status HostStore::In(const engine::HostCopy& copy) {
  std::vector<kvstore::PieceIn> pieces;
  pieces.reserve(copy.blocks.size());
  for (size_t i = 0; i < copy.blocks.size(); ++i) {
    pieces.push_back({copy.blocks[i].value, 0, pool_->layout().BlockBytes(), Slot(copy.slots[i])});
  }
  return pool_->memory().CopyIn(pieces);
}

absl::Status HostStore::Check(const engine::HostCopy& copy, engine::CopyEnded* ended) {
  std::vector<kvstore::DigestItem> items;
  for (size_t i = 0; i < copy.blocks.size(); ++i) items.push_back({copy.blocks[i].value, copy.tokens[i]});
  std::vector<uint64_t> sums(items.size());
  AS_RETURN_IF_ERROR(pool_->memory().Sums(items, 0, pool_->layout().num_layers, sums));
  const auto good = [&](size_t i) { return kvstore::DigestOfSum(sums[i], copy.tokens[i]) == copy.digests[i]; };
  while (ended->good < sums.size() && good(ended->good)) ++ended->good;
  ended->corrupt = ended->good < sums.size();
  if (ended->corrupt) {
    AS_LOG(kWarn, "host_kv.corrupt") << Field("slot", copy.slots[ended->good].value)
                                     << Field("good_blocks", ended->good) << Field("then", "recompute");
  }
  return absl::OkStatus();
}

}  // namespace agentserve::worker
