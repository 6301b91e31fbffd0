// The one bidirectional stream to a worker. Commands go down in order, messages come up to the loop.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <variant>

#include "agentserve/common/v1/common.pb.h"
#include "agentserve/decode/v1/decode.pb.h"
#include "agentserve/prefill/v1/prefill.pb.h"
#include "router/core/types.h"

namespace agentserve::router {

// A KV handle on its way from a prefill to a decode worker.
struct KvBox final : Opaque {
  common::v1::KvHandle value;
};

using WorkerMessage = std::variant<prefill::v1::RunResponse, decode::v1::RunResponse>;

struct LinkCallbacks {
  // On a gRPC thread; at most 64 messages are outstanding until Processed is called for them.
  std::function<void(std::shared_ptr<WorkerMessage>)> on_message;
  // Once, last. The stream is over.
  std::function<void(grpc::Status)> on_down;
};

// Thread-safe.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  // Opens the stream to `address` and says Hello.
  static std::shared_ptr<WorkerLink> Open(Role role, const std::string& address, uint64_t router_incarnation,
                                          uint64_t worker_incarnation, LinkCallbacks callbacks);
  // `peer` only for kConnectPeer.
  virtual void Send(const Command& command, const common::v1::KvEndpoint* peer) = 0;
  // The loop is done with one message.
  virtual void Processed() = 0;
  // Ends the stream; on_down still comes.
  virtual void Close() = 0;
};

}  // namespace agentserve::router
