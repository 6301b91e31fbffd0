#include "kvstore/client/kv_store_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "agentserve/kvstore/v1/kvstore.grpc.pb.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/client/channel.h"
#include "kvstore/convert.h"

namespace agentserve::kvstore {

using base::Field;
using SteadyClock = std::chrono::steady_clock;

namespace {

// Changes in one Publish message; half of what the server takes.
constexpr size_t kBatch = 2048;

bool Newer(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

absl::Status FromGrpc(const grpc::Status& s) {
  return absl::Status(static_cast<absl::StatusCode>(s.error_code()), s.error_message());
}

}  // namespace

// Calls to the kvstore, each with a deadline, so that the thread never hangs on a silent peer.
class KvStoreClient::Link {
 public:
  explicit Link(const KvStoreClientOptions& options)
      : options_(options), stub_(v1::KvStoreService::NewStub(LinkChannel(options.address))) {}

  absl::Status Register(uint32_t* lease_ms) {
    v1::RegisterPoolRequest request;
    v1::RegisterPoolResponse response;
    SpecToProto(options_.pool, request.mutable_endpoint());
    AS_RETURN_IF_ERROR(Call([&](auto* context) { return stub_->RegisterPool(context, request, &response); }));
    *lease_ms = std::max(response.lease_ms(), 30u);
    return absl::OkStatus();
  }
  absl::Status Renew() {
    v1::RenewRequest request;
    v1::RenewResponse response;
    request.set_worker_id(options_.pool.worker_id);
    request.set_incarnation(options_.pool.incarnation);
    return Call([&](auto* context) { return stub_->Renew(context, request, &response); });
  }
  void Release() {
    v1::ReleaseRequest request;
    v1::ReleaseResponse response;
    request.set_worker_id(options_.pool.worker_id);
    request.set_incarnation(options_.pool.incarnation);
    (void)Call([&](auto* context) { return stub_->Release(context, request, &response); }, 200);
  }
  absl::Status Publish(const PendingMap& changes) {
    return Call([&](auto* context) {
      v1::PublishResponse response;
      const auto writer = stub_->Publish(context, &response);
      v1::PublishRequest request;
      size_t filled = 0;
      for (auto it = changes.begin(); it != changes.end();) {
        const auto& [index, change] = *it;
        if (change.sealed) {
          SealedToProto(*change.sealed, request.add_sealed());
        } else {
          RefToProto({index, change.dropped_epoch, 0, 0}, request.add_dropped());
        }
        ++it;
        if (++filled < kBatch && it != changes.end()) continue;
        request.set_worker_id(options_.pool.worker_id);
        request.set_incarnation(options_.pool.incarnation);
        if (!writer->Write(request)) break;  // Finish says why
        request.Clear();
        filled = 0;
      }
      writer->WritesDone();
      return writer->Finish();
    });
  }
  // Ends the running call, if any. From any thread.
  void Cancel() {
    std::lock_guard lock(mu_);
    cancelled_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }

 private:
  template <typename Fn>
  absl::Status Call(const Fn& fn, int timeout_ms = 0) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(timeout_ms != 0 ? timeout_ms : options_.rpc_timeout_ms));
    {
      std::lock_guard lock(mu_);
      if (cancelled_ && timeout_ms == 0) return absl::CancelledError("the client stops");
      context_ = &context;
    }
    const grpc::Status status = fn(&context);
    std::lock_guard lock(mu_);
    context_ = nullptr;
    return FromGrpc(status);
  }

  const KvStoreClientOptions& options_;
  const std::unique_ptr<v1::KvStoreService::Stub> stub_;
  std::mutex mu_;  // guards below
  grpc::ClientContext* context_ = nullptr;
  bool cancelled_ = false;
};

std::unique_ptr<KvStoreClient> KvStoreClient::Start(const KvStoreClientOptions& options) {
  std::unique_ptr<KvStoreClient> client(new KvStoreClient(options));
  client->thread_ = std::thread([c = client.get()] { c->Run(); });
  return client;
}

KvStoreClient::KvStoreClient(const KvStoreClientOptions& options)
    : options_(options), link_(std::make_unique<Link>(options_)) {}

KvStoreClient::~KvStoreClient() {
  bool connected = false;
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
    connected = stats_.connected;
  }
  wake_.notify_all();
  link_->Cancel();
  thread_.join();
  if (connected) link_->Release();
}

void KvStoreClient::AddPending(uint32_t index, Pending pending) {
  const auto it = pending_.find(index);
  if (it == pending_.end()) {
    pending_.emplace(index, std::move(pending));
  } else if (!Newer(it->second.epoch(), pending.epoch())) {
    it->second = std::move(pending);
  }
  stats_.pending = pending_.size() + in_flight_.size();
}

void KvStoreClient::Seal(const SealedBlock& block) {
  std::lock_guard lock(mu_);
  if (block.ref.index >= options_.pool.indices()) return;
  const auto it = live_.find(block.ref.index);
  if (it != live_.end() && !Newer(block.ref.epoch, it->second.ref.epoch)) return;
  live_[block.ref.index] = block;
  stats_.sealed = live_.size();
  AddPending(block.ref.index, {block, 0});
  wake_.notify_one();
}

void KvStoreClient::Drop(uint32_t index, uint32_t epoch) {
  std::lock_guard lock(mu_);
  const auto it = live_.find(index);
  // Never sealed here, or sealed again since: nobody was told of that epoch, or the new seal tells them.
  if (it == live_.end() || Newer(it->second.ref.epoch, epoch)) return;
  live_.erase(it);
  stats_.sealed = live_.size();
  AddPending(index, {std::nullopt, epoch});
  wake_.notify_one();
}

KvStoreClientStats KvStoreClient::stats() const {
  std::lock_guard lock(mu_);
  return stats_;
}

bool KvStoreClient::Flush(int timeout_ms) {
  std::unique_lock lock(mu_);
  return flushed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [this] { return stats_.connected && pending_.empty() && in_flight_.empty(); });
}

bool KvStoreClient::Sleep(int64_t ms) {
  std::unique_lock lock(mu_);
  return !wake_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return stopping_; });
}

void KvStoreClient::SetConnected(bool connected) {
  {
    std::lock_guard lock(mu_);
    if (stats_.connected == connected) return;
    stats_.connected = connected;
    stats_.registrations += connected;
  }
  AS_LOG(kInfo, "kvstore.link") << Field("connected", connected) << Field("address", options_.address);
  flushed_.notify_all();
  if (options_.on_state) options_.on_state(connected);
}

absl::Status KvStoreClient::FlushPending(Link* link) {
  {
    std::lock_guard lock(mu_);
    if (pending_.empty()) return absl::OkStatus();
    in_flight_ = std::exchange(pending_, {});
  }
  // in_flight_ is only changed by this thread, so it may be read without the lock.
  absl::Status status = link->Publish(in_flight_);
  if (absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status)) {
    // The directory is full, or the kvstore refuses an entry. Sending it again changes nothing; others find less.
    AS_LOG(kWarn, "kvstore.publish_refused") << Field("error", base::MessageOf(status));
    status = absl::OkStatus();
  }
  std::lock_guard lock(mu_);
  const PendingMap sent = std::exchange(in_flight_, {});
  if (status.ok()) {
    stats_.published += sent.size();
  } else {
    ++stats_.failures;
    // Back in the queue, unless newer changes of the same block came meanwhile.
    pending_.insert(sent.begin(), sent.end());
  }
  stats_.pending = pending_.size();
  flushed_.notify_all();
  return status;
}

void KvStoreClient::RunConnected(Link* link) {
  uint32_t lease_ms = 0;
  if (const absl::Status s = link->Register(&lease_ms); !s.ok()) {
    std::lock_guard lock(mu_);
    ++stats_.failures;
    if (stats_.failures % 64 == 1 && !stopping_) {
      AS_LOG(kWarn, "kvstore.register_failed")
          << Field("address", options_.address) << Field("error", base::MessageOf(s));
    }
    return;
  }
  {
    // The kvstore may know nothing: everything that is sealed is pending again. Drops that are still pending stay.
    std::lock_guard lock(mu_);
    for (const auto& [index, block] : live_) AddPending(index, {block, 0});
  }
  SetConnected(true);
  const auto renew_every = std::chrono::milliseconds(lease_ms / 3);
  auto renew_at = SteadyClock::now() + renew_every;
  for (;;) {
    absl::Status status = FlushPending(link);
    if (status.ok() && SteadyClock::now() >= renew_at) {
      status = link->Renew();
      renew_at = SteadyClock::now() + renew_every;
    }
    if (!status.ok()) {
      AS_LOG(kWarn, "kvstore.link_lost") << Field("error", base::MessageOf(status));
      return;
    }
    {
      std::unique_lock lock(mu_);
      wake_.wait_until(lock, renew_at, [this] { return stopping_ || !pending_.empty(); });
      if (stopping_) return;
    }
    // Gather what else comes in the next moments.
    if (!Sleep(std::min<int64_t>(options_.flush_ms, lease_ms / 6))) return;
  }
}

void KvStoreClient::Run() {
  base::SplitMix64 jitter(base::EntropyUint64());
  int64_t backoff = options_.backoff_least_ms;
  for (;;) {
    RunConnected(link_.get());
    bool was_connected = false;
    {
      std::lock_guard lock(mu_);
      if (stopping_) return;
      was_connected = stats_.connected;
    }
    SetConnected(false);
    backoff = was_connected ? options_.backoff_least_ms : std::min<int64_t>(backoff * 2, options_.backoff_most_ms);
    if (!Sleep(backoff / 2 + static_cast<int64_t>(jitter.Below(static_cast<uint64_t>(backoff))))) return;
  }
}

}  // namespace agentserve::kvstore
