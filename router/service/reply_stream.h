// Where the events of one generation go.
#pragma once

#include <grpcpp/support/status.h>

#include <functional>

#include "agentserve/router/v1/router.pb.h"

namespace agentserve::router {

// Thread-safe.
class ReplyStream {
 public:
  virtual ~ReplyStream() = default;
  // Queues `event`. Neighbouring deltas of one sequence that still wait are joined. False: the reader is too far
  // behind.
  virtual bool Write(v1::GenerateResponse event) = 0;
  // Sends what is queued, if that has not begun.
  virtual void Flush() = 0;
  // Sends what is queued, then `status`. Later calls do nothing.
  virtual void End(grpc::Status status) = 0;
  // Forgets what is queued and what comes, but for the end: the reader is too slow to get it.
  virtual void DropQueued() = 0;
  // Resets the connection's stream if the end has not left yet: the reader does not even take the status.
  virtual void Abort() = 0;
  // `f` runs once when the reader cancels (at once if it already has), on some gRPC thread.
  virtual void OnCancelled(std::function<void()> f) = 0;
};

// Of an event that waits by itself, whatever is in it.
inline constexpr size_t kEventBytes = 64;
// Roughly the memory that `event` holds while it waits; kEventBytes less if it was joined to another.
size_t QueuedWeight(const v1::GenerateResponse& event);
// Appends `event` to `last` if both are deltas of one sequence. False: they are not.
bool JoinDeltas(const v1::GenerateResponse& event, v1::GenerateResponse* last);

}  // namespace agentserve::router
