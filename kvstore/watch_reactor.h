// One Watch stream: a snapshot in parts, then the log. Private to the service.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "kvstore/service.h"

namespace agentserve::kvstore {

class KvStoreServiceImpl::WatchReactor final : public grpc::ServerWriteReactor<v1::WatchResponse>,
                                               public std::enable_shared_from_this<WatchReactor> {
 public:
  WatchReactor(KvStoreServiceImpl* service, const v1::WatchRequest& request) : service_(service), request_(request) {}

  // Starts sending, or ends with `refusal`. The reactor keeps itself alive until OnDone.
  void Open(std::optional<grpc::Status> refusal);
  // Sends the next message if there is one and none is in flight.
  void Poke();
  // Ends the stream after the message in flight.
  void End(grpc::Status status);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // Fills response_ with the next message. False: nothing to send now. May set ending_. Requires mu_.
  bool FillNext();
  bool FillSnapshot(const KvStoreCore& core);
  bool FillDelta(const KvStoreCore& core);
  // Decides where to start, at the first message.
  void Begin(const KvStoreCore& core);

  KvStoreServiceImpl* const service_;
  const v1::WatchRequest request_;
  std::shared_ptr<WatchReactor> self_;

  std::mutex mu_;  // guards below; taken before the service's core_mu_
  bool begun_ = false, writing_ = false, finished_ = false;
  bool snapshot_ = false;
  SnapshotCursor cursor_;
  uint64_t sequence_ = 0;
  std::optional<grpc::Status> ending_;
  v1::WatchResponse response_;
};

}  // namespace agentserve::kvstore
