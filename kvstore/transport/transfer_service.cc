#include "kvstore/transport/transfer_service.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "base/strings.h"

namespace agentserve::kvstore {
namespace {

constexpr size_t kMaxProbeBytes = 64 << 20;

grpc::Status Invalid(std::string what) { return {grpc::StatusCode::INVALID_ARGUMENT, std::move(what)}; }

// Checks what both calls carry.
grpc::Status CheckIncarnation(const KvPool& pool, uint64_t incarnation) {
  if (incarnation == pool.options().incarnation) return grpc::Status::OK;
  return {grpc::StatusCode::FAILED_PRECONDITION,
          base::StrCat("KV pool of ", pool.options().worker_id, ": incarnation is ", pool.options().incarnation,
                       ", not ", incarnation, " (the worker restarted; drop the reference)")};
}

grpc::Status CheckRead(const KvPool& pool, const v1::ReadRequest& r) {
  if (grpc::Status s = CheckIncarnation(pool, r.incarnation()); !s.ok()) return s;
  const engine::KvLayout& l = pool.layout();
  if (r.layout_fingerprint() != l.Fingerprint()) {
    return {grpc::StatusCode::FAILED_PRECONDITION,
            base::StrCat("KV pool of ", pool.options().worker_id, ": layout fingerprint is ", l.Fingerprint(), ", not ",
                         r.layout_fingerprint(), " (another model or block size)")};
  }
  if (r.blocks_size() > kMaxReadBlocks) {
    return Invalid(base::StrCat("read of ", r.blocks_size(), " blocks; at most ", kMaxReadBlocks, " a call"));
  }
  if (r.first_layer() >= l.num_layers || r.layer_count() > l.num_layers - r.first_layer()) {
    return Invalid(base::StrCat("layers [", r.first_layer(), ", +", r.layer_count(), ") of ", l.num_layers));
  }
  for (const auto& b : r.blocks()) {
    if (b.index() >= pool.options().num_blocks) {
      return Invalid(base::StrCat("block ", b.index(), " of a pool of ", pool.options().num_blocks));
    }
  }
  if (r.probe() && r.blocks_size() * l.BlockBytes() > kMaxProbeBytes && r.blocks_size() > 1) {
    return Invalid(base::StrCat("probe of more than ", kMaxProbeBytes, " bytes"));
  }
  return grpc::Status::OK;
}

}  // namespace

// Streams the chunks of one request. gRPC calls the reactions one at a time.
class TransferService::ReadReactor final : public grpc::ServerWriteReactor<v1::ReadResponse> {
 public:
  ReadReactor(TransferService* service, const v1::ReadRequest* request)
      : service_(service), pool_(*service->pool_), request_(request) {
    if (grpc::Status s = CheckRead(pool_, *request); !s.ok()) {
      Finish(s);
      return;
    }
    const engine::KvLayout& l = pool_.layout();
    const uint32_t layers =
        request->layer_count() == 0 ? l.num_layers - request->first_layer() : request->layer_count();
    range_begin_ = request->first_layer() * l.LayerBytes();
    range_bytes_ = layers * l.LayerBytes();
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      Next();
    } else {
      Finish({grpc::StatusCode::CANCELLED, "the reader went away"});
    }
  }
  void OnDone() override { delete this; }

 private:
  // True if the block still has the requested epoch; else the stream is finished.
  bool Fresh(const BlockMeta& meta, const common::v1::KvBlockRef& ref) {
    if (request_->probe() || (meta.epoch == ref.epoch() && meta.state != BlockState::kFree)) return true;
    Finish({grpc::StatusCode::ABORTED,
            base::StrCat("block ", ref.index(), ": epoch is ", meta.epoch, " (state ", static_cast<int>(meta.state),
                         "), not ", ref.epoch(), ": the block was reused")});
    return false;
  }

  // Fills one message with as many pieces, of this block and the next ones, as fit, and sends it.
  void Next() {
    if (block_ == request_->blocks_size()) {
      Finish(grpc::Status::OK);
      return;
    }
    response_.set_block(static_cast<uint32_t>(block_));
    response_.set_offset(static_cast<uint32_t>(offset_));
    pieces_.clear();
    size_t total = 0;
    const int first = block_;
    while (block_ < request_->blocks_size() && total < kMaxChunkBytes) {
      const auto& ref = request_->blocks(block_);
      if (!Fresh(pool_.Meta(engine::BlockId(ref.index())), ref)) return;
      const size_t n = std::min(kMaxChunkBytes - total, range_bytes_ - offset_);
      pieces_.push_back({ref.index(), range_begin_ + offset_, n, nullptr});
      total += n;
      offset_ += n;
      if (offset_ == range_bytes_) {
        offset_ = 0;
        ++block_;
      }
    }
    std::string* data = response_.mutable_data();
    data->resize(total);  // costs nothing while messages have the same size
    auto* to = reinterpret_cast<std::byte*>(data->data());
    for (PieceOut& p : pieces_) {
      p.host = to;
      to += p.bytes;
    }
    if (absl::Status s = pool_.memory().CopyOut(pieces_); !s.ok()) {
      Finish({grpc::StatusCode::INTERNAL, base::MessageOf(s)});
      return;
    }
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const auto& ref = request_->blocks(first + static_cast<int>(i));
      if (!Fresh(pool_.control().LoadMetaAfterCopy(ref.index()), ref)) return;
    }
    service_->bytes_sent_.fetch_add(total, std::memory_order_relaxed);
    StartWrite(&response_);
  }

  TransferService* const service_;
  const KvPool& pool_;
  const v1::ReadRequest* const request_;
  size_t range_begin_ = 0, range_bytes_ = 0, offset_ = 0;
  int block_ = 0;
  std::vector<PieceOut> pieces_;
  v1::ReadResponse response_;
};

// One progress stream. Poked by the pump and by its own write completions.
class TransferService::WatchReactor final : public grpc::ServerWriteReactor<v1::WatchProgressResponse>,
                                            public std::enable_shared_from_this<WatchReactor> {
 public:
  WatchReactor(TransferService* service, uint32_t slot, uint64_t tag)
      : service_(service), pool_(*service->pool_), slot_(slot), tag_(tag) {}

  // Keeps itself alive until OnDone.
  void Open() {
    self_ = shared_from_this();
    Poke();
  }
  // Sends the word if it changed; ends the stream if the slot is gone.
  void Poke() {
    const auto progress = pool_.control().LoadProgress(slot_, tag_);
    std::unique_lock lock(mu_);
    if (finished_ || writing_) return;  // the write's completion pokes again
    if (ending_.has_value() || !progress) {
      finished_ = true;
      const grpc::Status status = ending_.value_or(grpc::Status::OK);
      lock.unlock();
      Finish(status);
      return;
    }
    if (sent_ == progress) return;
    sent_ = progress;
    writing_ = true;
    response_.set_progress(progress->Pack());
    lock.unlock();
    StartWrite(&response_);
  }
  void End(grpc::Status status) {
    {
      std::lock_guard lock(mu_);
      if (!ending_) ending_ = std::move(status);
    }
    Poke();
  }
  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mu_);
      writing_ = false;
      if (!ok && !ending_) ending_ = grpc::Status(grpc::StatusCode::CANCELLED, "the reader went away");
    }
    Poke();
  }
  void OnCancel() override { End({grpc::StatusCode::CANCELLED, "cancelled by the reader"}); }
  void OnDone() override {
    std::shared_ptr<WatchReactor> last = std::move(self_);
    std::lock_guard lock(service_->mu_);
    std::erase(service_->watches_, last);
    service_->idle_.notify_all();
  }

 private:
  TransferService* const service_;
  const KvPool& pool_;
  const uint32_t slot_;
  const uint64_t tag_;
  std::shared_ptr<WatchReactor> self_;
  std::mutex mu_;  // guards below
  bool writing_ = false, finished_ = false;
  std::optional<engine::PrefillProgress> sent_;
  std::optional<grpc::Status> ending_;
  v1::WatchProgressResponse response_;
};

namespace {

// Answers a call that is wrong from the start.
class FailedWatch final : public grpc::ServerWriteReactor<v1::WatchProgressResponse> {
 public:
  explicit FailedWatch(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

TransferService::TransferService(KvPool* pool) : pool_(pool), pump_([this] { Pump(); }) {}

TransferService::~TransferService() {
  Stop();
  pump_.join();
  std::unique_lock lock(mu_);
  idle_.wait(lock, [this] { return watches_.empty(); });
}

void TransferService::Stop() {
  {
    std::lock_guard lock(mu_);
    stopped_ = true;
  }
  pool_->WakeProgressWaiters();
}

void TransferService::Pump() {
  std::vector<std::shared_ptr<WatchReactor>> watches;
  for (;;) {
    const uint32_t seen = pool_->progress_epoch();
    bool stopped = false;
    {
      std::lock_guard lock(mu_);
      watches = watches_;
      stopped = stopped_;
    }
    for (const auto& w : watches) {
      if (stopped) {
        w->End({grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"});
      } else {
        w->Poke();
      }
    }
    watches.clear();
    if (stopped) return;
    pool_->WaitAnyProgress(seen, 1'000'000);
  }
}

grpc::ServerWriteReactor<v1::ReadResponse>* TransferService::Read(grpc::CallbackServerContext*,
                                                                  const v1::ReadRequest* request) {
  return new ReadReactor(this, request);
}

grpc::ServerWriteReactor<v1::WatchProgressResponse>* TransferService::WatchProgress(
    grpc::CallbackServerContext*, const v1::WatchProgressRequest* request) {
  if (grpc::Status s = CheckIncarnation(*pool_, request->incarnation()); !s.ok()) return new FailedWatch(s);
  if (request->progress_slot() >= pool_->options().num_progress_slots || request->progress_tag() == 0) {
    return new FailedWatch(
        Invalid(base::StrCat("progress slot ", request->progress_slot(), " with tag ", request->progress_tag(),
                             "; slots are below ", pool_->options().num_progress_slots, " and tags are not 0")));
  }
  auto watch = std::make_shared<WatchReactor>(this, request->progress_slot(), request->progress_tag());
  {
    std::lock_guard lock(mu_);
    if (stopped_) return new FailedWatch({grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"});
    if (watches_.size() >= kMaxProgressWatches) {
      return new FailedWatch({grpc::StatusCode::RESOURCE_EXHAUSTED,
                              base::StrCat("more than ", kMaxProgressWatches, " progress streams; try again")});
    }
    watches_.push_back(watch);
  }
  watch->Open();
  return watch.get();
}

}  // namespace agentserve::kvstore
