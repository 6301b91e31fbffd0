// One Generate call on the gRPC side: a bounded buffer of messages written in order, then the status.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "router/service/reply_stream.h"

namespace agentserve::router {

// Thread-safe. Lives until gRPC is done with it *and* nobody else holds it.
class GenerateStream final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                             public ReplyStream,
                             public std::enable_shared_from_this<GenerateStream> {
 public:
  // `context` outlives the call (until OnDone).
  GenerateStream(grpc::CallbackServerContext* context, size_t max_buffered_bytes)
      : max_buffered_(max_buffered_bytes), context_(context) {}
  // Keeps the object alive until OnDone. Call right after construction.
  void HoldUntilDone() { self_ = shared_from_this(); }

  bool Write(v1::GenerateResponse event) override;
  void Flush() override {}  // Write begins at once
  void End(grpc::Status status) override;
  void DropQueued() override;
  void Abort() override;
  void OnCancelled(std::function<void()> f) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void NextLocked();

  const size_t max_buffered_;
  std::mutex mu_;
  // All below guarded by mu_.
  grpc::CallbackServerContext* context_;  // null once done
  std::deque<std::pair<v1::GenerateResponse, size_t>> waiting_;
  v1::GenerateResponse writing_;
  size_t buffered_ = 0;
  bool busy_ = false, broken_ = false, ended_ = false, finished_ = false, cancelled_ = false, dropped_ = false;
  grpc::Status status_;
  std::function<void()> on_cancelled_;
  std::shared_ptr<GenerateStream> self_;
};

}  // namespace agentserve::router
