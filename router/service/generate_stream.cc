#include "router/service/generate_stream.h"

#include <utility>

namespace agentserve::router {
namespace {

size_t Weight(const v1::GenerateResponse& e) {
  const v1::Delta& d = e.delta();
  size_t bytes = 64 + d.text().size() + 4 * static_cast<size_t>(d.token_ids_size());
  for (const auto& t : d.logprob_texts()) bytes += 16 + t.size();
  return bytes + 64 * static_cast<size_t>(d.logprobs_size());
}

}  // namespace

bool GenerateStream::Write(v1::GenerateResponse event) {
  std::lock_guard lock(mu_);
  if (ended_ || broken_) return true;  // nobody reads; the cancel is on its way
  const size_t weight = Weight(event);
  if (event.has_delta() && !waiting_.empty() && waiting_.back().first.has_delta() &&
      waiting_.back().first.delta().index() == event.delta().index()) {
    v1::Delta* to = waiting_.back().first.mutable_delta();
    to->mutable_text()->append(event.delta().text());
    to->mutable_token_ids()->MergeFrom(event.delta().token_ids());
    to->mutable_logprobs()->MergeFrom(event.delta().logprobs());
    to->mutable_logprob_texts()->MergeFrom(event.delta().logprob_texts());
    waiting_.back().second += weight - 64;
    buffered_ += weight - 64;
  } else {
    waiting_.emplace_back(std::move(event), weight);
    buffered_ += weight;
  }
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
