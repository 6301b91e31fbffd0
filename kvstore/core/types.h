// Plain data of the block manager's core; docs/kv_block_format.md defines hashes, epochs and digests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "kvstore/block_ref.h"

namespace agentserve::kvstore {

using base::Hash128;
using base::TimeNs;

// How to reach a pool. The core compares and returns it, and only looks at ids, `num_blocks` and the layout
// fingerprint.
struct PoolSpec {
  std::string worker_id;  // 1..63 bytes
  uint64_t incarnation = 0;
  std::string unix_socket;
  std::string grpc_address;
  uint32_t num_layers = 0, num_kv_heads = 0, head_dim = 0, block_tokens = 0;
  std::string dtype;
  uint64_t layout_fingerprint = 0;
  uint32_t num_blocks = 0;
  // Slots of host memory below the pool. In the directory they follow the pool's blocks: slot s has index num_blocks +
  // s.
  uint32_t host_blocks = 0;
  uint32_t indices() const { return num_blocks + host_blocks; }
  bool operator==(const PoolSpec&) const = default;
};

// Whose pool, in which life. Shared by the log entries of that pool.
struct PoolIdent {
  std::string worker_id;
  uint64_t incarnation = 0;
  bool operator==(const PoolIdent&) const = default;
};
using PoolIdentPtr = std::shared_ptr<const PoolIdent>;

struct SealedBlock {
  Hash128 hash;
  BlockRef ref;
  bool operator==(const SealedBlock&) const = default;
};

// One numbered change of the directory.
struct Change {
  enum class Kind : uint8_t { kSealed, kDropped, kPoolGone };
  uint64_t sequence = 0;
  Kind kind = Kind::kSealed;
  PoolIdentPtr pool;
  SealedBlock block;  // kDropped: only ref.index and ref.epoch; kPoolGone: empty
};

// What the longest prefix lookup found in one pool.
struct Place {
  PoolSpec pool;
  std::vector<BlockRef> blocks;
};

// Maxima of the block manager. Each is a refusal (RESOURCE_EXHAUSTED or INVALID_ARGUMENT), never growth.
struct CoreLimits {
  // Workers of one cell: designed for 1,000.
  uint32_t max_pools = 1024;
  // About 120 bytes each here: 4 Mi blocks = 512 MB of directory for 2 TB of KV (1B) and 7 TB (3B).
  uint64_t max_blocks = 4u << 20;
  // A prompt of 131,072 tokens in blocks of 16 is 8,192; twice that for smaller blocks.
  uint32_t max_chain = 16384;
  // Changes in one Publish message: 4096 x 48 bytes is a 200 KB message.
  uint32_t max_publish = 4096;
  // A prompt each: far more than all workers of a cell batch together.
  uint32_t max_tickets = 65536;
  // One reader must not use up the table: sixteen of them fit.
  uint32_t max_tickets_per_reader = 4096;
  uint32_t max_blocks_per_ticket = 16384;
  // 32 MB of references.
  uint64_t max_ticket_blocks = 2u << 20;
  // Changes kept for watchers: some seconds of a busy cell; 65,536 x 80 bytes = 5 MB. A slower reader starts over.
  uint32_t max_log = 65536;
  // Replaced incarnations that are remembered so that their late messages stay refused.
  uint32_t max_retired = 4096;
  // Places returned by Locate.
  uint32_t max_places = 16;

  TimeNs lease = 3 * base::kNsPerSecond;
  TimeNs default_ticket_ttl = 10 * base::kNsPerSecond;
  TimeNs max_ticket_ttl = 60 * base::kNsPerSecond;
};

}  // namespace agentserve::kvstore
