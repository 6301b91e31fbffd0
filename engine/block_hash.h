// Names of KV blocks by content: a chained 128-bit hash over token ids.
//
//   root   = H(tag, layout fingerprint, salt)            H = first 128 bits of SHA-256
//   hash_0 = H(root,   ids of block 0)
//   hash_i = H(hash_i-1, ids of block i)
//
// Two blocks have one name only if layout (so also model), salt and *all* tokens up to their end are equal. Only full
// blocks have names. All integers are little-endian. Pure and thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "engine/ids.h"

namespace agentserve::engine {

// Start of all chains of one (salt, layout).
base::Hash128 ChainRoot(std::string_view salt, uint64_t layout_fingerprint);
// Name of the block holding `ids`, which follows the block named `parent` (or the root).
base::Hash128 ChainNext(const base::Hash128& parent, std::span<const TokenId> ids);
// Appends names of full blocks of `tokens` until `chain` covers all of them. `chain` may hold a correct beginning.
void ExtendChain(const base::Hash128& root, std::span<const TokenId> tokens, uint32_t block_tokens,
                 std::vector<base::Hash128>* chain);

}  // namespace agentserve::engine
