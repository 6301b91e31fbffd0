#include "router/service/session_stream.h"

#include <utility>

namespace agentserve::router {
namespace {

// Of one message: small against the receiver's limit of 8 MiB, large against a step's tokens.
constexpr size_t kMessageBytes = 1 << 20;

}  // namespace

// One generation. All fields are guarded by the session's mutex.
class SessionStream::Call final : public ReplyStream, public std::enable_shared_from_this<SessionStream::Call> {
 public:
  Call(std::shared_ptr<SessionStream> of, uint64_t number) : session(std::move(of)), id(number) {}

  bool Write(v1::GenerateResponse event) override {
    SessionStream& s = *session;
    std::lock_guard lock(s.mu_);
    if (ended || cancelled || dropped || s.broken_) return true;  // nobody reads; the cancel is on its way
    size_t weight = QueuedWeight(event);
    if (last >= s.first_waiting_ && last < s.first_waiting_ + s.waiting_.size()) {
      Waiting& w = s.waiting_[last - s.first_waiting_];
      if (w.call.get() == this && w.event.has_response() && JoinDeltas(event, w.event.mutable_response())) {
        weight -= kEventBytes;
        w.weight += weight;
        s.waiting_bytes_ += weight;
        bytes += weight;
        return bytes <= s.limits_.call_bytes && s.waiting_bytes_ <= s.limits_.session_bytes;
      }
    }
    v1::SessionEvent e;
    e.set_call(id);
    *e.mutable_response() = std::move(event);
    s.QueueLocked(shared_from_this(), std::move(e), weight);
    return bytes <= s.limits_.call_bytes && s.waiting_bytes_ <= s.limits_.session_bytes;
  }

  void Flush() override {
    std::lock_guard lock(session->mu_);
    session->NextLocked();
  }

  void End(grpc::Status status) override {
    SessionStream& s = *session;
    std::lock_guard lock(s.mu_);
    if (std::exchange(ended, true)) return;
    s.open_.erase(id);
    v1::SessionEvent e;
    e.set_call(id);
    e.mutable_end()->set_code(static_cast<uint32_t>(status.error_code()));
    e.mutable_end()->set_message(status.error_message());
    e.mutable_end()->set_details(status.error_details());
    s.QueueLocked(shared_from_this(), std::move(e), 64 + status.error_message().size());
    s.NextLocked();
  }

  void DropQueued() override {
    SessionStream& s = *session;
    std::lock_guard lock(s.mu_);
    dropped = true;
    for (Waiting& w : s.waiting_) {
      if (w.call.get() != this || w.event.has_end()) continue;
      s.waiting_bytes_ -= w.weight;
      bytes -= w.weight;
      w.weight = 0;
      w.call = nullptr;  // its place stays, so that numbers do; it is not sent
    }
  }

  void Abort() override {
    SessionStream& s = *session;
    std::lock_guard lock(s.mu_);
    if (bytes > 0 && s.context_ != nullptr) s.context_->TryCancel();
  }

  void OnCancelled(std::function<void()> f) override {
    {
      std::lock_guard lock(session->mu_);
      if (!cancelled && !session->broken_) {
        on_cancelled = std::move(f);
        return;
      }
    }
    f();
  }

  const std::shared_ptr<SessionStream> session;
  const uint64_t id;
  size_t bytes = 0;       // of its events in `waiting_`
  uint64_t last = ~0ull;  // number of its last event there
  bool ended = false;
  bool cancelled = false;
  bool dropped = false;  // too slow: only its end is still sent
  std::function<void()> on_cancelled;
};

void SessionStream::Start() {
  self_ = shared_from_this();
  StartRead(&reading_);
}

void SessionStream::QueueLocked(const std::shared_ptr<Call>& call, v1::SessionEvent event, size_t weight) {
  if (broken_) return;
  call->last = first_waiting_ + waiting_.size();
  call->bytes += weight;
  waiting_bytes_ += weight;
  waiting_.push_back({call, std::move(event), weight});
}

// Starts the next operation, if none is running and there is something to do.
void SessionStream::NextLocked() {
  if (busy_ || finished_) return;
  if (broken_) {
    first_waiting_ += waiting_.size();
    waiting_.clear();
    waiting_bytes_ = 0;
  }
  size_t message = 0;
  writing_.Clear();
  while (!waiting_.empty() && message < kMessageBytes) {
    Waiting& w = waiting_.front();
    if (w.call != nullptr) {
      writing_.mutable_events()->Add(std::move(w.event));
      w.call->bytes -= w.weight;
      waiting_bytes_ -= w.weight;
      message += w.weight;
    }
    waiting_.pop_front();
    ++first_waiting_;
  }
  if (writing_.events_size() > 0) {
    busy_ = true;
    StartWrite(&writing_);
  } else if (half_closed_ && (open_.empty() || broken_)) {
    finished_ = busy_ = true;
    Finish(status_);
  }
}

bool SessionStream::OnGenerate(uint64_t id, const v1::GenerateRequest& request) {
  std::shared_ptr<Call> call;
  {
    std::lock_guard lock(mu_);
    if (id == 0 || open_.count(id) != 0) return false;
    call = std::make_shared<Call>(shared_from_this(), id);
    open_.emplace(id, call);
  }
  begin_(std::move(call), request);
  return true;
}

void SessionStream::OnCancelCommand(uint64_t id) {
  std::function<void()> f;
  {
    std::lock_guard lock(mu_);
    auto it = open_.find(id);
    if (it == open_.end()) return;
    it->second->cancelled = true;
    f = std::exchange(it->second->on_cancelled, nullptr);
  }
  if (f) f();
}

void SessionStream::CancelAll() {
  std::vector<std::function<void()>> todo;
  {
    std::lock_guard lock(mu_);
    broken_ = true;
    for (auto& [id, call] : open_) {
      call->cancelled = true;
      if (call->on_cancelled) todo.push_back(std::exchange(call->on_cancelled, nullptr));
    }
  }
  for (auto& f : todo) f();
}

// The peer broke the rules: everything of it ends.
void SessionStream::Refuse(const std::string& why) {
  CancelAll();
  std::lock_guard lock(mu_);
  status_ = grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, why);
  half_closed_ = true;
  NextLocked();
}

void SessionStream::OnReadDone(bool ok) {
  if (!ok) {  // no more commands; what is open goes on, unless the stream broke
    std::lock_guard lock(mu_);
    half_closed_ = true;
    NextLocked();
    return;
  }
  const uint64_t id = reading_.call();
  switch (reading_.action_case()) {
    case v1::SessionRequest::kGenerate:
      if (!OnGenerate(id, reading_.generate())) {
        return Refuse("SessionRequest.call must not be 0 nor that of an open generation");
      }
      break;
    case v1::SessionRequest::kCancel:
      OnCancelCommand(id);
      break;
    case v1::SessionRequest::ACTION_NOT_SET:
      return Refuse("SessionRequest without an action");
  }
  reading_.Clear();
  StartRead(&reading_);
}

void SessionStream::OnWriteDone(bool ok) {
  std::lock_guard lock(mu_);
  busy_ = false;
  if (!ok) broken_ = true;
  NextLocked();
}

void SessionStream::OnCancel() {
  CancelAll();
  std::lock_guard lock(mu_);
  NextLocked();
}

void SessionStream::OnDone() {
  std::shared_ptr<SessionStream> last;
  std::lock_guard lock(mu_);
  open_.clear();
  waiting_.clear();
  context_ = nullptr;
  last = std::move(self_);
}

}  // namespace agentserve::router
