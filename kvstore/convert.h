// Wire messages <-> the core's types, in one place.
#pragma once

#include <grpcpp/support/status.h>

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "agentserve/kvstore/v1/kvstore.pb.h"
#include "kvstore/core/types.h"

namespace agentserve::kvstore {

PoolSpec SpecFromProto(const common::v1::KvEndpoint& proto);
void SpecToProto(const PoolSpec& spec, common::v1::KvEndpoint* proto);
Hash128 HashFromProto(const v1::BlockHash& proto);
void HashToProto(const Hash128& hash, v1::BlockHash* proto);
BlockRef RefFromProto(const common::v1::KvBlockRef& proto);
void RefToProto(const BlockRef& ref, common::v1::KvBlockRef* proto);
SealedBlock SealedFromProto(const v1::SealedBlock& proto);
void SealedToProto(const SealedBlock& block, v1::SealedBlock* proto);

template <typename Repeated>
std::vector<Hash128> HashesFromProto(const Repeated& protos) {
  std::vector<Hash128> out;
  out.reserve(static_cast<size_t>(protos.size()));
  for (const auto& p : protos) out.push_back(HashFromProto(p));
  return out;
}
template <typename Repeated>
std::vector<BlockRef> RefsFromProto(const Repeated& protos) {
  std::vector<BlockRef> out;
  out.reserve(static_cast<size_t>(protos.size()));
  for (const auto& p : protos) out.push_back(RefFromProto(p));
  return out;
}
template <typename Repeated>
std::vector<SealedBlock> SealedListFromProto(const Repeated& protos) {
  std::vector<SealedBlock> out;
  out.reserve(static_cast<size_t>(protos.size()));
  for (const auto& p : protos) out.push_back(SealedFromProto(p));
  return out;
}

// 16 bytes, hi then lo, big-endian. A ticket of another length is the zero hash (which no ticket has).
std::string TicketToBytes(const Hash128& ticket);
Hash128 TicketFromBytes(const std::string& bytes);

// Milliseconds of the wire to TimeNs, saturating.
TimeNs MsToNs(uint64_t ms);

grpc::Status ToGrpc(const absl::Status& status);

}  // namespace agentserve::kvstore
