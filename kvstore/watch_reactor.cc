#include "kvstore/watch_reactor.h"

#include "base/strings.h"
#include "kvstore/convert.h"

namespace agentserve::kvstore {

void KvStoreServiceImpl::WatchReactor::Open(std::optional<grpc::Status> refusal) {
  self_ = shared_from_this();
  if (refusal) {
    End(*refusal);
  } else {
    Poke();
  }
}

void KvStoreServiceImpl::WatchReactor::Poke() {
  std::unique_lock lock(mu_);
  if (finished_ || writing_) return;  // the write's completion pokes again
  if (!ending_ && FillNext()) {
    writing_ = true;
    lock.unlock();
    StartWrite(&response_);
    return;
  }
  if (!ending_) return;
  finished_ = true;
  const grpc::Status status = *ending_;
  lock.unlock();
  service_->Count("Watch", absl::Status(static_cast<absl::StatusCode>(status.error_code()), ""));
  Finish(status);
}

void KvStoreServiceImpl::WatchReactor::End(grpc::Status status) {
  {
    std::lock_guard lock(mu_);
    if (!ending_) ending_ = std::move(status);
  }
  Poke();
}

void KvStoreServiceImpl::WatchReactor::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mu_);
    writing_ = false;
    if (!ok && !ending_) ending_ = grpc::Status(grpc::StatusCode::CANCELLED, "the watcher went away");
  }
  Poke();
}

void KvStoreServiceImpl::WatchReactor::OnCancel() { End({grpc::StatusCode::CANCELLED, "cancelled by the watcher"}); }

void KvStoreServiceImpl::WatchReactor::OnDone() {
  const std::shared_ptr<WatchReactor> last = std::move(self_);
  std::lock_guard lock(service_->watch_mu_);
  std::erase(service_->watches_, last);
  service_->watch_ended_.notify_all();
}

void KvStoreServiceImpl::WatchReactor::Begin(const KvStoreCore& core) {
  begun_ = true;
  if (request_.from_sequence() == 0) {
    snapshot_ = true;
    sequence_ = core.log().last_sequence();
  } else if (request_.kvstore_incarnation() != service_->options_.incarnation) {
    ending_ = grpc::Status(grpc::StatusCode::OUT_OF_RANGE,
                           "the sequence belongs to another kvstore incarnation; start over with a snapshot");
  } else {
    sequence_ = request_.from_sequence();
  }
}

bool KvStoreServiceImpl::WatchReactor::FillNext() {
  response_.Clear();
  response_.set_kvstore_incarnation(service_->options_.incarnation);
  std::lock_guard lock(service_->core_mu_);
  const KvStoreCore& core = service_->core_;
  if (!begun_) Begin(core);
  if (ending_) return false;
  return snapshot_ ? FillSnapshot(core) : FillDelta(core);
}

bool KvStoreServiceImpl::WatchReactor::FillSnapshot(const KvStoreCore& core) {
  const SnapshotPart part = core.Snapshot(&cursor_, service_->options_.watch_batch);
  response_.set_sequence(sequence_);
  if (part.pool != nullptr) {
    response_.set_kind(v1::WatchResponse::KIND_SNAPSHOT);
    response_.set_worker_id(part.pool->worker_id);
    response_.set_incarnation(part.pool->incarnation);
    for (const SealedBlock& b : part.sealed) SealedToProto(b, response_.add_sealed());
    return true;
  }
  snapshot_ = false;
  response_.set_kind(v1::WatchResponse::KIND_SNAPSHOT_END);
  return true;
}

bool KvStoreServiceImpl::WatchReactor::FillDelta(const KvStoreCore& core) {
  const auto changes = core.log().Read(sequence_, service_->options_.watch_batch);
  if (!changes.ok()) {
    ending_ = ToGrpc(changes.status());
    return false;
  }
  if (changes->empty()) return false;
  // As many as belong to one pool. Order inside the message is lost, which is fine: epochs order them.
  const PoolIdentPtr& pool = changes->front().pool;
  response_.set_worker_id(pool->worker_id);
  response_.set_incarnation(pool->incarnation);
  response_.set_kind(v1::WatchResponse::KIND_DELTA);
  for (const Change& c : *changes) {
    if (c.kind == Change::Kind::kPoolGone || c.pool != pool) {
      if (c.sequence != changes->front().sequence) break;
      response_.set_kind(v1::WatchResponse::KIND_POOL_GONE);
      sequence_ = c.sequence;
      break;
    }
    if (c.kind == Change::Kind::kSealed) SealedToProto(c.block, response_.add_sealed());
    if (c.kind == Change::Kind::kDropped) RefToProto(c.block.ref, response_.add_dropped());
    sequence_ = c.sequence;
  }
  response_.set_sequence(sequence_);
  return true;
}

}  // namespace agentserve::kvstore
