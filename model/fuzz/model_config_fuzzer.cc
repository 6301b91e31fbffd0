// Any text: a configuration within the stated limits, or an error.
#include <cmath>

#include "base/check.h"
#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace agentserve::model;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // The part after a NUL, if any, is generation_config.json.
  const size_t cut = std::min(text.find('\0'), text.size());
  const auto c = ParseModelConfig(text.substr(0, cut), cut < text.size() ? text.substr(cut + 1) : "", "fuzz");
  if (!c.ok()) return 0;
  AS_CHECK(c->vocab_size >= 1 && c->vocab_size <= kMaxVocab);
  AS_CHECK(c->hidden_size >= 16 && c->hidden_size <= kMaxHidden && c->hidden_size % 16 == 0);
  AS_CHECK(c->head_dim >= 16 && c->head_dim <= kMaxHeadDim && c->head_dim % 16 == 0);
  AS_CHECK_EQ(c->num_heads % c->num_kv_heads, 0u);
  AS_CHECK(c->num_layers >= 1 && c->num_layers <= kMaxLayers);
  AS_CHECK(std::isfinite(c->rope_theta) && std::isfinite(c->rope_scaling.factor) && std::isfinite(c->rms_norm_eps));
  for (const uint32_t id : c->eos_token_ids) AS_CHECK_LT(id, c->vocab_size);
  return 0;
}
