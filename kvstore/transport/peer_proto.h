// Between the transport's types and the wire's.
#pragma once

#include <vector>

#include "agentserve/common/v1/common.pb.h"
#include "kvstore/transport/peer_pool.h"

namespace agentserve::kvstore {

PeerEndpoint FromProto(const agentserve::common::v1::KvEndpoint& proto);
BlockRef FromProto(const agentserve::common::v1::KvBlockRef& proto);
std::vector<BlockRef> FromProto(const agentserve::common::v1::KvHandle& proto);
void ToProto(const BlockRef& ref, agentserve::common::v1::KvBlockRef* proto);
// Shape fields and fingerprint of `layout`.
void ToProto(const engine::KvLayout& layout, agentserve::common::v1::KvLayout* proto);

}  // namespace agentserve::kvstore
