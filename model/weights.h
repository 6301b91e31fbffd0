// The tensors of a Llama checkpoint as bf16 matrices, used straight from the mapped files where they are bf16.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/file_io.h"
#include "model/model.h"

namespace agentserve::model {

// Row-major [out][in] bf16, as in the checkpoint.
struct LayerWeights {
  const uint16_t* input_norm = nullptr;  // [hidden]
  const uint16_t* q = nullptr;           // [heads * head_dim][hidden]
  const uint16_t* k = nullptr;           // [kv_heads * head_dim][hidden]
  const uint16_t* v = nullptr;
  const uint16_t* o = nullptr;          // [hidden][heads * head_dim]
  const uint16_t* post_norm = nullptr;  // [hidden]
  const uint16_t* gate = nullptr;       // [intermediate][hidden]
  const uint16_t* up = nullptr;
  const uint16_t* down = nullptr;  // [hidden][intermediate]
};

// Immutable after loading. Owns the mappings and the converted copies that the pointers lead into.
struct Weights {
  const uint16_t* embedding = nullptr;  // [vocab][hidden]
  const uint16_t* lm_head = nullptr;    // [vocab][hidden]; equals `embedding` if tied
  const uint16_t* final_norm = nullptr;
  std::vector<LayerWeights> layers;
  uint64_t sample_hash = 0;  // over names, shapes and sampled bytes of all tensors

  std::vector<MappedFile> files;
  std::vector<std::vector<uint16_t>> converted;
};

// Whether the files' pages are brought into memory at once, or left to whoever touches them.
enum class ReadFiles { kNow, kLater };

// Reads DIR/model.safetensors, else the shards of DIR/model.safetensors.index.json, else the only *.safetensors in DIR.
// bf16 tensors are used in place; f16 and f32 ones are rounded to bf16 in memory. Missing, unexpected and wrongly
// shaped tensors are INVALID_ARGUMENT with their names.
absl::StatusOr<std::unique_ptr<Weights>> LoadWeights(const std::string& dir, const ModelConfig& config,
                                                     const std::function<void(const LoadProgress&)>& progress,
                                                     ReadFiles read = ReadFiles::kNow);

}  // namespace agentserve::model
