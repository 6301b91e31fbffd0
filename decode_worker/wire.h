// Messages of the wire as the core's types. Pure; values are not checked here.
#pragma once

#include "agentserve/common/v1/common.pb.h"
#include "agentserve/decode/v1/decode.pb.h"
#include "decode_worker/core/core.h"

namespace agentserve::decode_worker {

RemoteKv FromWire(const agentserve::common::v1::KvHandle& handle);
// `worth` is clamped to 1/64..64 times that of an ordinary block.
engine::KvTiers::Keep FromWire(const agentserve::decode::v1::Retain& retain);

}  // namespace agentserve::decode_worker
