// First and only message on a pool's unix socket; docs/kv_block_format.md section 6.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kvstore/transport/block_memory.h"

namespace agentserve::kvstore {

inline constexpr uint64_t kHandshakeMagic = 0x31304f4c4c45484b;
inline constexpr uint32_t kHandshakeVersion = 2;

struct PoolHello {
  std::string worker_id;
  uint64_t incarnation = 0;
  uint64_t layout_fingerprint = 0;
  uint64_t file_bytes = 0;
  // Of the blocks. A second descriptor comes with the message unless they are in the file.
  MemoryFacts memory;
};

std::string EncodeHello(const PoolHello& hello);
// DATA_LOSS: not a hello; FAILED_PRECONDITION: another version.
absl::StatusOr<PoolHello> DecodeHello(std::string_view payload);

}  // namespace agentserve::kvstore
