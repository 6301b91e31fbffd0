#include "router/service/generate_stream.h"

#include <utility>

namespace agentserve::router {
bool GenerateStream::Write(v1::GenerateResponse event) {
  std::lock_guard lock(mu_);
  if (ended_ || broken_ || dropped_) return true;  // nobody reads; the cancel is on its way
  size_t weight = QueuedWeight(event);
  if (!waiting_.empty() && JoinDeltas(event, &waiting_.back().first)) {
    weight -= kEventBytes;
    waiting_.back().second += weight;
  } else {
    waiting_.emplace_back(std::move(event), weight);
  }
  buffered_ += weight;
  if (!busy_) NextLocked();
  return buffered_ <= max_buffered_;
}

void GenerateStream::End(grpc::Status status) {
  std::lock_guard lock(mu_);
  if (ended_) return;
  ended_ = true;
  status_ = std::move(status);
  if (!busy_) NextLocked();
}

void GenerateStream::DropQueued() {
  std::lock_guard lock(mu_);
  dropped_ = true;
  waiting_.clear();
  buffered_ = 0;
}

void GenerateStream::Abort() {
  std::lock_guard lock(mu_);
  if (context_ != nullptr) context_->TryCancel();
}

void GenerateStream::OnCancelled(std::function<void()> f) {
  {
    std::lock_guard lock(mu_);
    if (!cancelled_) {
      on_cancelled_ = std::move(f);
      return;
    }
  }
  f();
}

// Starts the next operation. A stream that broke, or was told to end with an error, still writes nothing after it.
void GenerateStream::NextLocked() {
  if (broken_) {
    waiting_.clear();
    buffered_ = 0;
  }
  if (!waiting_.empty()) {
    writing_ = std::move(waiting_.front().first);
    buffered_ -= waiting_.front().second;
    waiting_.pop_front();
    busy_ = true;
    StartWrite(&writing_);
    return;
  }
  if (ended_ && !finished_) {
    finished_ = true;
    busy_ = true;
    Finish(status_);
  }
}

void GenerateStream::OnWriteDone(bool ok) {
  std::lock_guard lock(mu_);
  busy_ = false;
  if (!ok) broken_ = true;
  NextLocked();
}

void GenerateStream::OnCancel() {
  std::function<void()> f;
  {
    std::lock_guard lock(mu_);
    cancelled_ = true;
    broken_ = true;
    f = std::move(on_cancelled_);
    on_cancelled_ = nullptr;
  }
  if (f) f();
}

void GenerateStream::OnDone() {
  std::shared_ptr<GenerateStream> last;
  std::lock_guard lock(mu_);
  on_cancelled_ = nullptr;
  context_ = nullptr;
  last = std::move(self_);
}

}  // namespace agentserve::router
