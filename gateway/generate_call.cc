#include "gateway/generate_call.h"

#include <chrono>

namespace agentserve::gateway {

void PrepareContext(grpc::ClientContext& context, const Metadata& metadata, int64_t deadline_ms) {
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
}

void CallCounter::Begin() {
  std::lock_guard lock(mutex_);
  ++open_;
}

void CallCounter::End() {
  std::lock_guard lock(mutex_);
  if (--open_ == 0) idle_.notify_all();
}

bool CallCounter::WaitIdle(int64_t ms) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return open_ == 0; });
}

bool GenerateCall::Deliver(pb::GenerateResponse event, size_t most) {
  std::function<void()> notify;
  bool room = true;
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return true;
    inbox_.events.push_back(std::move(event));
    if (!std::exchange(notified_, true)) notify = notify_;
    room = inbox_.events.size() < most;
    paused_ = !room;
  }
  if (notify) notify();
  return room;
}

void GenerateCall::ReadEnded() {
  std::function<void()> notify;
  {
    std::lock_guard lock(mutex_);
    inbox_.read_ended = true;
    if (!std::exchange(notified_, true)) notify = notify_;
  }
  if (notify) notify();
}

void GenerateCall::Close(const grpc::Status& status) {
  std::function<void()> notify;
  {
    std::lock_guard lock(mutex_);
    inbox_.status = status;
    if (!std::exchange(notified_, true) && !cancelled_) notify = notify_;
    notify_ = nullptr;
  }
  if (notify) notify();
}

void GenerateCall::Cancel() {
  bool resume = false;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(cancelled_, true)) return;
    notify_ = nullptr;
    inbox_.events.clear();
    resume = std::exchange(paused_, false);
  }
  CancelTransport();
  if (resume) Resume();  // runs into the end of the call
}

GenerateCall::Batch GenerateCall::Take() {
  Batch out;
  bool resume = false;
  {
    std::lock_guard lock(mutex_);
    std::swap(out, inbox_);
    notified_ = false;
    resume = std::exchange(paused_, false);
  }
  if (resume) Resume();
  return out;
}

void StreamedCall::Start(pb::RouterService::Stub* stub, const pb::GenerateRequest& request, const Metadata& metadata,
                         int64_t deadline_ms) {
  self_ = shared_from_this();
  counter_->Begin();
  request_ = request;
  PrepareContext(context_, metadata, deadline_ms);
  stub->async()->Generate(&context_, &request_, this);
  AddHold();  // while reading is paused nothing else keeps the call open
  StartRead(&incoming_);
  StartCall();
}

void StreamedCall::OnReadDone(bool ok) {
  if (!ok) {
    ReadEnded();
    return RemoveHold();
  }
  pb::GenerateResponse event;
  event.Swap(&incoming_);
  if (Deliver(std::move(event), kMaxInbox)) StartRead(&incoming_);
}

void StreamedCall::OnDone(const grpc::Status& status) {
  Close(status);
  counter_->End();
  self_.reset();  // may delete this
}

}  // namespace agentserve::gateway
