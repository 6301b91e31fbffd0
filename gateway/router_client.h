// Calls to the router. Callback API throughout: nothing blocks, callbacks run on gRPC threads.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
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

// One Generate stream. Events are gathered on gRPC threads and taken in batches by the owner, which is told through
// `notify` when there is something to take. Holds at most kMaxInbox events; then it stops reading until they are taken.
// Thread-safe. Keeps itself alive until the call has ended.
class GenerateCall final : public grpc::ClientReadReactor<pb::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  struct Batch {
    std::vector<pb::GenerateResponse> events;
    bool read_ended = false;             // no more events; the status follows at once unless an event was unreadable
    std::optional<grpc::Status> status;  // set once, when the call is over and all events were taken
  };

  explicit GenerateCall(std::shared_ptr<CallCounter> counter) : counter_(std::move(counter)) {}
  // `notify` runs on a gRPC thread, at most once per Take. `request` is copied by gRPC before Start returns.
  void Start(pb::RouterService::Stub* stub, const pb::GenerateRequest& request, const Metadata& metadata,
             int64_t deadline_ms, std::function<void()> notify);
  // Ends the call as soon as possible; notify is not called any more.
  void Cancel();
  Batch Take();

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  static constexpr size_t kMaxInbox = 1024;

  std::shared_ptr<CallCounter> counter_;
  grpc::ClientContext context_;
  pb::GenerateRequest request_;
  pb::GenerateResponse incoming_;  // owned by gRPC between StartRead and OnReadDone
  std::shared_ptr<GenerateCall> self_;

  std::mutex mutex_;  // guards all below
  std::function<void()> notify_;
  Batch inbox_;
  bool notified_ = false;
  bool paused_ = false;
  bool cancelled_ = false;
};

// A unary call that can be cancelled.
class UnaryHandle {
 public:
  virtual ~UnaryHandle() = default;
  virtual void Cancel() = 0;
};

// Thread-safe.
class RouterClient {
 public:
  RouterClient(const std::string& target, int channels);
  ~RouterClient();

  // `deadline_ms` from now.
  std::shared_ptr<GenerateCall> Generate(const pb::GenerateRequest& request, const Metadata& metadata,
                                         int64_t deadline_ms, std::function<void()> notify);

  template <typename Response>
  using Callback = std::function<void(const grpc::Status&, const Response&)>;
  // Callbacks run once, on a gRPC thread.
  std::shared_ptr<UnaryHandle> Tokenize(const pb::TokenizeRequest& request, const Metadata& metadata,
                                        int64_t deadline_ms, Callback<pb::TokenizeResponse> done);
  std::shared_ptr<UnaryHandle> Detokenize(const pb::DetokenizeRequest& request, const Metadata& metadata,
                                          int64_t deadline_ms, Callback<pb::DetokenizeResponse> done);
  std::shared_ptr<UnaryHandle> GetModel(int64_t deadline_ms, Callback<pb::GetModelResponse> done);

  // Starts to connect if idle; true if a connection is up.
  bool Connected();
  // Waits for all calls to end.
  bool WaitIdle(int64_t ms) { return counter_->WaitIdle(ms); }

 private:
  pb::RouterService::Stub* NextStub();

  std::shared_ptr<CallCounter> counter_ = std::make_shared<CallCounter>();
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
  std::vector<std::unique_ptr<pb::RouterService::Stub>> stubs_;
  std::atomic<size_t> next_{0};
};

}  // namespace agentserve::gateway
