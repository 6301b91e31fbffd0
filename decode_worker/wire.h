// Handles of the wire as the core's type. Pure; values are not checked here.
#pragma once

#include "agentserve/common/v1/common.pb.h"
#include "decode_worker/core/core.h"

namespace agentserve::decode_worker {

RemoteKv FromWire(const agentserve::common::v1::KvHandle& handle);

}  // namespace agentserve::decode_worker
