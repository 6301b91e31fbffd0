#include "gateway/router_session.h"

#include <utility>

#include "base/strings.h"

namespace agentserve::gateway {
namespace {

// Events that an owner may leave untaken. It takes them within milliseconds, whatever its own reader does (that
// one's backlog is bounded in bytes), so this many steps behind it is stuck.
constexpr size_t kMaxInbox = 16'384;

}  // namespace

class RouterSession::Call final : public GenerateCall {
 public:
  Call(std::shared_ptr<RouterSession> session, uint64_t id, std::function<void()> notify)
      : GenerateCall(std::move(notify)), session_(std::move(session)), id_(id) {}

  // False: too far behind.
  bool OnEvent(pb::GenerateResponse event) { return Deliver(std::move(event), kMaxInbox); }
  void OnEnd(const grpc::Status& status) {
    ReadEnded();
    Close(status);
  }

 private:
  void CancelTransport() override { session_->CancelCall(id_); }
  void Resume() override {}  // the session reads on for the others

  const std::shared_ptr<RouterSession> session_;
  const uint64_t id_;
};

void RouterSession::Start(pb::RouterService::Stub* stub) {
  self_ = shared_from_this();
  sessions_counter_->Begin();
  stub->async()->Session(&context_, this);
  AddHold();  // for writes, which start outside of reactions; dropped when reading ends
  StartRead(&incoming_);
  StartCall();
}

std::shared_ptr<GenerateCall> RouterSession::Generate(const pb::GenerateRequest& request,
                                                      std::function<void()> notify) {
  auto message = std::make_unique<pb::SessionRequest>();
  *message->mutable_generate() = request;
  std::lock_guard lock(mutex_);
  if (over_) return nullptr;
  const uint64_t id = next_id_++;
  auto call = std::make_shared<Call>(shared_from_this(), id, std::move(notify));
  open_.emplace(id, call);
  calls_counter_->Begin();
  message->set_call(id);
  queue_.push_back(std::move(message));
  NextLocked();
  return call;
}

void RouterSession::CancelCall(uint64_t id) {
  std::lock_guard lock(mutex_);
  if (over_ || open_.count(id) == 0) return;
  auto message = std::make_unique<pb::SessionRequest>();
  message->set_call(id);
  message->mutable_cancel();
  queue_.push_back(std::move(message));
  NextLocked();
}

void RouterSession::NextLocked() {
  if (writing_ != nullptr || queue_.empty() || over_) return;
  writing_ = std::move(queue_.front());
  queue_.pop_front();
  StartWrite(writing_.get());
}

void RouterSession::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  writing_.reset();
  if (ok) NextLocked();  // else the reads end too
}

void RouterSession::Take(pb::SessionEvent* event) {
  std::shared_ptr<Call> call;
  {
    std::lock_guard lock(mutex_);
    auto it = open_.find(event->call());
    if (it == open_.end()) return;
    call = it->second;
    if (event->has_end()) open_.erase(it);
  }
  if (event->has_end()) {
    const pb::SessionEnd& end = event->end();
    call->OnEnd(grpc::Status(static_cast<grpc::StatusCode>(end.code()), end.message(), end.details()));
    calls_counter_->End();
  } else if (!call->OnEvent(std::move(*event->mutable_response()))) {
    {
      std::lock_guard lock(mutex_);
      if (open_.erase(event->call()) == 0) return;
    }
    CancelCall(event->call());
    call->OnEnd(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the reader of this stream does not keep up"));
    calls_counter_->End();
  }
}

void RouterSession::OnReadDone(bool ok) {
  if (!ok) {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
      queue_.clear();
    }
    return RemoveHold();
  }
  for (pb::SessionEvent& event : *incoming_.mutable_events()) Take(&event);
  incoming_.Clear();
  StartRead(&incoming_);
}

void RouterSession::OnDone(const grpc::Status& status) {
  std::shared_ptr<RouterSession> last;
  std::unordered_map<uint64_t, std::shared_ptr<Call>> lost;
  {
    std::lock_guard lock(mutex_);
    over_ = true;
    lost.swap(open_);
    last = std::move(self_);
  }
  for (auto& [id, call] : lost) {
    call->OnEnd(grpc::Status(grpc::StatusCode::UNAVAILABLE,
                             base::StrCat("the session with the router ended: ", status.error_message())));
    calls_counter_->End();
  }
  sessions_counter_->End();
}

}  // namespace agentserve::gateway
