// Generations that share one stream to the router (RouterService.Session).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "gateway/generate_call.h"

namespace agentserve::gateway {

// Thread-safe. Keeps itself alive until the stream has ended; all of its generations end with it, with UNAVAILABLE and
// no details, as calls do whose connection broke.
class RouterSession final : public grpc::ClientBidiReactor<pb::SessionRequest, pb::SessionResponse>,
                            public std::enable_shared_from_this<RouterSession> {
 public:
  // `calls` counts generations, `sessions` this stream.
  RouterSession(std::shared_ptr<CallCounter> calls, std::shared_ptr<CallCounter> sessions)
      : calls_counter_(std::move(calls)), sessions_counter_(std::move(sessions)) {}
  void Start(pb::RouterService::Stub* stub);
  // Null if the session is over.
  std::shared_ptr<GenerateCall> Generate(const pb::GenerateRequest& request, std::function<void()> notify);
  void Close() { context_.TryCancel(); }

  void OnWriteDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  class Call;

  void CancelCall(uint64_t id);
  void NextLocked();
  void Take(pb::SessionEvent* event);

  const std::shared_ptr<CallCounter> calls_counter_, sessions_counter_;
  grpc::ClientContext context_;
  pb::SessionResponse incoming_;                           // owned by gRPC between StartRead and OnReadDone
  std::mutex mutex_;                                       // guards all below
  std::deque<std::unique_ptr<pb::SessionRequest>> queue_;  // bounded by the gateway's requests: one or two of each
  std::unique_ptr<pb::SessionRequest> writing_;
  std::unordered_map<uint64_t, std::shared_ptr<Call>> open_;
  uint64_t next_id_ = 1;
  bool over_ = false;
  std::shared_ptr<RouterSession> self_;
};

}  // namespace agentserve::gateway
