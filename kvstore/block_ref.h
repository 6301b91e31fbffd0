// A reference to one block of some pool; the wire form is agentserve.common.v1.KvBlockRef.
#pragma once

#include <cstdint>

namespace agentserve::kvstore {

struct BlockRef {
  uint32_t index = 0;
  uint32_t epoch = 0;
  uint32_t tokens = 0;
  uint64_t digest = 0;  // 0 = not known yet
  bool operator==(const BlockRef&) const = default;
};

}  // namespace agentserve::kvstore
