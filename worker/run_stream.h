// Server side of a Run stream: reads go to a handler one by one, writes are queued and sent in order.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace agentserve::worker {

// Callbacks only enqueue; they run on gRPC's threads. Send and End may be called from any thread, also after the stream
// is gone. Create with Start; the stream keeps itself alive until gRPC is done with it.
template <typename Request, typename Response>
class RunStream final : public grpc::ServerBidiReactor<Request, Response> {
 public:
  struct Handler {
    std::function<void(std::shared_ptr<RunStream>, Request)> on_request;
    // Once; nothing follows.
    std::function<void(std::shared_ptr<RunStream>)> on_closed;
  };
  // A router that does not read for that many bytes is as good as gone: 16 MiB are about 10 s of StepResults of a full
  // batch. The stream is then broken, which drops its requests.
  static constexpr size_t kMaxQueuedBytes = 16 << 20;

  static RunStream* Start(grpc::CallbackServerContext* context, Handler handler) {
    auto stream = std::shared_ptr<RunStream>(new RunStream(context, std::move(handler)));
    stream->self_ = stream;
    stream->StartRead(&stream->request_);
    return stream.get();
  }

  void Send(Response response) {
    const std::lock_guard lock(mu_);
    if (ended_) return;
    queued_bytes_ += response.ByteSizeLong();
    if (queued_bytes_ > kMaxQueuedBytes) {
      queue_.clear();
      EndLocked(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the router does not read its events"));
      context_->TryCancel();
      return;
    }
    queue_.push_back(std::move(response));
    if (!writing_) WriteNextLocked();
  }

  // Sends what is queued, then ends the stream.
  void End(grpc::Status status) {
    const std::lock_guard lock(mu_);
    EndLocked(std::move(status));
  }

  // True when everything sent so far has left this process or never will.
  bool Flushed() {
    const std::lock_guard lock(mu_);
    return finished_ || (!writing_ && queue_.empty());
  }

  std::string peer() const { return peer_; }

 private:
  RunStream(grpc::CallbackServerContext* context, Handler handler)
      : context_(context), handler_(std::move(handler)), peer_(context->peer()) {}

  void EndLocked(grpc::Status status) {
    if (ended_) return;
    ended_ = true;
    status_ = std::move(status);
    if (!writing_) FinishLocked();
  }
  void FinishLocked() {
    if (finished_) return;
    finished_ = true;
    queue_.clear();
    this->Finish(status_);
  }
  void WriteNextLocked() {
    writing_ = true;
    current_ = std::move(queue_.front());
    queue_.pop_front();
    queued_bytes_ -= current_.ByteSizeLong();
    this->StartWrite(&current_);
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      handler_.on_request(self_, std::move(request_));
      request_ = Request();
      this->StartRead(&request_);
      return;
    }
    Close();
    End(grpc::Status::OK);
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mu_);
    writing_ = false;
    if (!ok) {
      queue_.clear();
      EndLocked(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream broke"));
    }
    if (!queue_.empty()) {
      WriteNextLocked();
    } else if (ended_) {
      FinishLocked();
    }
  }
  void OnCancel() override {
    Close();
    End(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    Close();
    const auto self = std::move(self_);  // may destroy this, at the end
  }
  void Close() {
    {
      const std::lock_guard lock(mu_);
      if (closed_) return;
      closed_ = true;
    }
    handler_.on_closed(self_);
  }

  grpc::CallbackServerContext* const context_;
  const Handler handler_;
  const std::string peer_;
  std::shared_ptr<RunStream> self_;
  Request request_;

  std::mutex mu_;  // guards below
  std::deque<Response> queue_;
  Response current_;
  size_t queued_bytes_ = 0;
  bool writing_ = false, ended_ = false, finished_ = false, closed_ = false;
  grpc::Status status_;
};

}  // namespace agentserve::worker
