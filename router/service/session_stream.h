// Many generations over one gRPC stream: their events are gathered while a message is being written and leave together
// with the next one, so that a step of a worker costs one message, not one for each of its sequences.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "router/service/reply_stream.h"

namespace agentserve::router {

struct SessionLimits {
  size_t call_bytes = 256 << 10;  // waiting for one generation: as for a Generate call
  // Waiting in all: a reader this far behind does not read, whatever it asked for.
  size_t session_bytes = 64 << 20;
};

// Thread-safe. Lives until gRPC is done with it and no generation of it is left.
class SessionStream final : public grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>,
                            public std::enable_shared_from_this<SessionStream> {
 public:
  // Begins one generation; it ends with ReplyStream::End. `request` is only lent. Called on gRPC threads, in order.
  using Begin = std::function<void(std::shared_ptr<ReplyStream> to, const v1::GenerateRequest& request)>;

  // `context` outlives the stream (until OnDone).
  SessionStream(grpc::CallbackServerContext* context, SessionLimits limits, Begin begin)
      : limits_(limits), begin_(std::move(begin)), context_(context) {}
  // Keeps the object alive until OnDone and reads the first command. Call right after construction.
  void Start();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class Call;
  struct Waiting {
    std::shared_ptr<Call> call;
    v1::SessionEvent event;
    size_t weight = 0;
  };

  // False: the command is not allowed and the session ends.
  bool OnGenerate(uint64_t id, const v1::GenerateRequest& request);
  void OnCancelCommand(uint64_t id);
  void QueueLocked(const std::shared_ptr<Call>& call, v1::SessionEvent event, size_t weight);
  void NextLocked();
  void CancelAll();
  void Refuse(const std::string& why);

  const SessionLimits limits_;
  const Begin begin_;
  v1::SessionRequest reading_;  // owned by the read in flight
  std::mutex mu_;
  // All below guarded by mu_, the fields of calls too.
  grpc::CallbackServerContext* context_;  // null once done
  std::unordered_map<uint64_t, std::shared_ptr<Call>> open_;
  std::deque<Waiting> waiting_;
  uint64_t first_waiting_ = 0;  // number of waiting_.front(), counted from the session's start
  size_t waiting_bytes_ = 0;
  v1::SessionResponse writing_;
  bool busy_ = false, broken_ = false, half_closed_ = false, finished_ = false;
  grpc::Status status_;
  std::shared_ptr<SessionStream> self_;
};

}  // namespace agentserve::router
