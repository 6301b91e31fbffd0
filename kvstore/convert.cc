#include "kvstore/convert.h"

#include <algorithm>

#include "base/strings.h"

namespace agentserve::kvstore {

PoolSpec SpecFromProto(const common::v1::KvEndpoint& proto) {
  const common::v1::KvLayout& l = proto.layout();
  return {proto.worker_id(), proto.incarnation(), proto.unix_socket(), proto.grpc_address(),
          l.num_layers(),    l.num_kv_heads(),    l.head_dim(),        l.block_tokens(),
          l.dtype(),         l.fingerprint(),     proto.num_blocks(),  proto.host_blocks()};
}

void SpecToProto(const PoolSpec& spec, common::v1::KvEndpoint* proto) {
  proto->set_worker_id(spec.worker_id);
  proto->set_incarnation(spec.incarnation);
  proto->set_unix_socket(spec.unix_socket);
  proto->set_grpc_address(spec.grpc_address);
  common::v1::KvLayout* l = proto->mutable_layout();
  l->set_num_layers(spec.num_layers);
  l->set_num_kv_heads(spec.num_kv_heads);
  l->set_head_dim(spec.head_dim);
  l->set_block_tokens(spec.block_tokens);
  l->set_dtype(spec.dtype);
  l->set_fingerprint(spec.layout_fingerprint);
  proto->set_num_blocks(spec.num_blocks);
  proto->set_host_blocks(spec.host_blocks);
}

Hash128 HashFromProto(const v1::BlockHash& proto) { return {proto.hi(), proto.lo()}; }

void HashToProto(const Hash128& hash, v1::BlockHash* proto) {
  proto->set_hi(hash.hi);
  proto->set_lo(hash.lo);
}

BlockRef RefFromProto(const common::v1::KvBlockRef& proto) {
  return {proto.index(), proto.epoch(), proto.tokens(), proto.digest()};
}

void RefToProto(const BlockRef& ref, common::v1::KvBlockRef* proto) {
  proto->set_index(ref.index);
  proto->set_epoch(ref.epoch);
  proto->set_tokens(ref.tokens);
  proto->set_digest(ref.digest);
}

SealedBlock SealedFromProto(const v1::SealedBlock& proto) {
  return {HashFromProto(proto.hash()), RefFromProto(proto.ref())};
}

void SealedToProto(const SealedBlock& block, v1::SealedBlock* proto) {
  HashToProto(block.hash, proto->mutable_hash());
  RefToProto(block.ref, proto->mutable_ref());
}

std::string TicketToBytes(const Hash128& ticket) {
  std::string bytes;
  for (const uint64_t word : {ticket.hi, ticket.lo}) {
    for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(word >> shift);
  }
  return bytes;
}

Hash128 TicketFromBytes(const std::string& bytes) {
  if (bytes.size() != 16) return {};
  Hash128 ticket;
  for (size_t i = 0; i < 8; ++i) {
    ticket.hi = (ticket.hi << 8) | static_cast<unsigned char>(bytes[i]);
    ticket.lo = (ticket.lo << 8) | static_cast<unsigned char>(bytes[i + 8]);
  }
  return ticket;
}

TimeNs MsToNs(uint64_t ms) {
  constexpr uint64_t kMost = 1'000'000'000'000;  // about 31 years; keeps sums of times far from overflow
  return static_cast<TimeNs>(std::min(ms, kMost)) * base::kNsPerMs;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), base::MessageOf(status)};
}

}  // namespace agentserve::kvstore
