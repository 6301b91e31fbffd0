// One generation by the router, as seen by its owner: events gathered on gRPC threads and taken in batches.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agentserve/router/v1/router.grpc.pb.h"

namespace agentserve::gateway {

namespace pb = ::agentserve::router::v1;
using Metadata = std::vector<std::pair<std::string, std::string>>;

// Sets the deadline, from now, and the metadata of a call.
void PrepareContext(grpc::ClientContext& context, const Metadata& metadata, int64_t deadline_ms);

// Counts calls under way, so that the process can end cleanly.
class CallCounter {
 public:
  void Begin();
  void End();
  // False if calls are still open after `ms`.
  bool WaitIdle(int64_t ms);

 private:
  std::mutex mutex_;
  std::condition_variable idle_;
  int open_ = 0;
};

// Thread-safe. Lives until its owner has let it go and the call has ended.
class GenerateCall {
 public:
  struct Batch {
    std::vector<pb::GenerateResponse> events;
    bool read_ended = false;             // no more events; the status follows at once unless an event was unreadable
    std::optional<grpc::Status> status;  // set once, when the call is over and all events were taken
  };

  virtual ~GenerateCall() = default;
  // Ends the call as soon as possible; notify is not called any more.
  void Cancel();
  Batch Take();

 protected:
  // `notify` runs on a gRPC thread when there is something to take, at most once per Take.
  explicit GenerateCall(std::function<void()> notify) : notify_(std::move(notify)) {}

  // False: the inbox holds as much as it may; Resume follows once it was taken.
  bool Deliver(pb::GenerateResponse event, size_t most);
  void ReadEnded();
  void Close(const grpc::Status& status);

 private:
  virtual void CancelTransport() = 0;
  virtual void Resume() = 0;

  std::mutex mutex_;  // guards all below
  std::function<void()> notify_;
  Batch inbox_;
  bool notified_ = false;
  bool paused_ = false;
  bool cancelled_ = false;
};

// A generation by a Generate call of its own. Stops reading while its inbox is full.
class StreamedCall final : public GenerateCall,
                           public grpc::ClientReadReactor<pb::GenerateResponse>,
                           public std::enable_shared_from_this<StreamedCall> {
 public:
  StreamedCall(std::shared_ptr<CallCounter> counter, std::function<void()> notify)
      : GenerateCall(std::move(notify)), counter_(std::move(counter)) {}
  // Keeps itself alive until the call has ended.
  void Start(pb::RouterService::Stub* stub, const pb::GenerateRequest& request, const Metadata& metadata,
             int64_t deadline_ms);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  static constexpr size_t kMaxInbox = 1024;

  void CancelTransport() override { context_.TryCancel(); }
  void Resume() override { StartRead(&incoming_); }

  std::shared_ptr<CallCounter> counter_;
  grpc::ClientContext context_;
  pb::GenerateRequest request_;
  pb::GenerateResponse incoming_;  // owned by gRPC between StartRead and OnReadDone
  std::shared_ptr<StreamedCall> self_;
};

}  // namespace agentserve::gateway
