#include "engine/kv_layout.h"

#include <array>
#include <span>

#include "base/hash.h"

namespace agentserve::engine {

uint64_t KvLayout::Fingerprint() const {
  constexpr uint64_t kFormatVersion = 1;
  const std::array<uint64_t, 7> fields = {kFormatVersion,   num_layers,   num_kv_heads,
                                          head_dim,         block_tokens, static_cast<uint64_t>(dtype),
                                          model_fingerprint};
  return base::Xxh3(std::as_bytes(std::span(fields)));
}

}  // namespace agentserve::engine
