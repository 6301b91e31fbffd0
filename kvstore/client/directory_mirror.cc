#include "kvstore/client/directory_mirror.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/client/channel.h"
#include "kvstore/convert.h"

namespace agentserve::kvstore {

using base::Field;

std::unique_ptr<DirectoryMirror> DirectoryMirror::Start(const DirectoryMirrorOptions& options) {
  std::unique_ptr<DirectoryMirror> mirror(new DirectoryMirror(options));
  mirror->thread_ = std::thread([m = mirror.get()] { m->Run(); });
  return mirror;
}

DirectoryMirror::~DirectoryMirror() {
  {
    std::lock_guard lock(run_mu_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  wake_.notify_all();
  thread_.join();
}

std::vector<PrefixMatch> DirectoryMirror::Lookup(std::span<const Hash128> chain) const {
  std::shared_lock lock(table_mu_);
  return table_.Lookup(chain);
}

DirectoryMirrorStats DirectoryMirror::stats() const {
  std::shared_lock lock(table_mu_);
  DirectoryMirrorStats stats = stats_;
  stats.blocks = table_.blocks();
  stats.pools = table_.pools();
  return stats;
}

bool DirectoryMirror::WaitFor(uint64_t sequence, int timeout_ms) {
  std::unique_lock lock(table_mu_);
  return applied_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [&] { return stats_.complete && stats_.sequence >= sequence; });
}

void DirectoryMirror::Empty() {
  bool was_complete = false;
  {
    std::unique_lock lock(table_mu_);
    was_complete = std::exchange(stats_.complete, false);
    table_.Clear();
  }
  if (was_complete && options_.on_state) options_.on_state(false);
}

void DirectoryMirror::Apply(const v1::WatchResponse& message) {
  const PoolIdent pool{message.worker_id(), message.incarnation()};
  bool became_complete = false;
  {
    std::unique_lock lock(table_mu_);
    for (const auto& b : message.sealed()) table_.Seal(pool, SealedFromProto(b));
    for (const auto& b : message.dropped()) table_.Drop(pool, RefFromProto(b));
    if (message.kind() == v1::WatchResponse::KIND_POOL_GONE) table_.PoolGone(pool);
    if (message.kind() == v1::WatchResponse::KIND_SNAPSHOT_END) {
      became_complete = true;
      stats_.complete = true;
      ++stats_.snapshots;
    }
    stats_.sequence = message.sequence();
  }
  applied_.notify_all();
  if (!became_complete) return;
  AS_LOG(kInfo, "kvstore.mirror.complete") << Field("sequence", message.sequence());
  if (options_.on_state) options_.on_state(true);
}

absl::Status DirectoryMirror::Follow(v1::KvStoreService::Stub* stub) {
  // No deadline: the stream lives as long as both ends; keepalive notices a silent one.
  grpc::ClientContext context;
  {
    std::lock_guard lock(run_mu_);
    if (stopping_) return absl::CancelledError("the mirror stops");
    context_ = &context;
  }
  const auto reader = stub->Watch(&context, v1::WatchRequest());
  v1::WatchResponse message;
  while (reader->Read(&message)) Apply(message);
  const grpc::Status status = reader->Finish();
  std::lock_guard lock(run_mu_);
  context_ = nullptr;
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void DirectoryMirror::Run() {
  const auto stub = v1::KvStoreService::NewStub(LinkChannel(options_.address));
  base::SplitMix64 jitter(base::EntropyUint64());
  int64_t backoff = options_.backoff_least_ms;
  for (;;) {
    const absl::Status ended = Follow(stub.get());
    const bool was_complete = stats().complete;
    Empty();
    std::unique_lock lock(run_mu_);
    if (stopping_) return;
    if (was_complete) {
      AS_LOG(kWarn, "kvstore.mirror.lost") << Field("error", base::MessageOf(ended));
      backoff = options_.backoff_least_ms;
    } else {
      backoff = std::min<int64_t>(backoff * 2, options_.backoff_most_ms);
    }
    const auto wait = backoff / 2 + static_cast<int64_t>(jitter.Below(static_cast<uint64_t>(backoff)));
    if (wake_.wait_for(lock, std::chrono::milliseconds(wait), [this] { return stopping_; })) return;
  }
}

}  // namespace agentserve::kvstore
