#include "engine/block_hash.h"

#include <cstddef>
#include <string>

#include "base/check.h"

namespace agentserve::engine {
namespace {

void PutLe(std::string* out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

base::Hash128 Hash(const std::string& bytes) { return base::Sha256Prefix(std::as_bytes(std::span(bytes))); }

}  // namespace

base::Hash128 ChainRoot(std::string_view salt, uint64_t layout_fingerprint) {
  std::string bytes = "agentserve.kv.1";
  PutLe(&bytes, layout_fingerprint, 8);
  bytes += salt;
  return Hash(bytes);
}

base::Hash128 ChainNext(const base::Hash128& parent, std::span<const TokenId> ids) {
  std::string bytes;
  bytes.reserve(16 + 4 * ids.size());
  PutLe(&bytes, parent.hi, 8);
  PutLe(&bytes, parent.lo, 8);
  for (TokenId id : ids) PutLe(&bytes, id, 4);
  return Hash(bytes);
}

void ExtendChain(const base::Hash128& root, std::span<const TokenId> tokens, uint32_t block_tokens,
                 std::vector<base::Hash128>* chain) {
  AS_CHECK_GT(block_tokens, 0u);
  for (size_t i = chain->size(); (i + 1) * block_tokens <= tokens.size(); ++i) {
    const base::Hash128 parent = chain->empty() ? root : chain->back();
    chain->push_back(ChainNext(parent, tokens.subspan(i * block_tokens, block_tokens)));
  }
}

}  // namespace agentserve::engine
