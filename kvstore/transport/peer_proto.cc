#include "kvstore/transport/peer_proto.h"

namespace agentserve::kvstore {

PeerEndpoint FromProto(const common::v1::KvEndpoint& proto) {
  return {proto.worker_id(),    proto.incarnation(),          proto.unix_socket(),
          proto.grpc_address(), proto.layout().fingerprint(), proto.num_blocks()};
}

BlockRef FromProto(const common::v1::KvBlockRef& proto) {
  return {proto.index(), proto.epoch(), proto.tokens(), proto.digest()};
}

std::vector<BlockRef> FromProto(const common::v1::KvHandle& proto) {
  std::vector<BlockRef> refs;
  refs.reserve(static_cast<size_t>(proto.blocks_size()));
  for (const auto& b : proto.blocks()) refs.push_back(FromProto(b));
  return refs;
}

void ToProto(const BlockRef& ref, common::v1::KvBlockRef* proto) {
  proto->set_index(ref.index);
  proto->set_epoch(ref.epoch);
  proto->set_tokens(ref.tokens);
  proto->set_digest(ref.digest);
}

void ToProto(const engine::KvLayout& layout, common::v1::KvLayout* proto) {
  proto->set_num_layers(layout.num_layers);
  proto->set_num_kv_heads(layout.num_kv_heads);
  proto->set_head_dim(layout.head_dim);
  proto->set_block_tokens(layout.block_tokens);
  proto->set_dtype(layout.dtype == engine::KvDtype::kBf16 ? "bf16" : "fp32");
  proto->set_fingerprint(layout.Fingerprint());
}

}  // namespace agentserve::kvstore
