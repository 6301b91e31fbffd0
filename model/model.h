// A loaded Llama model and the executors that run it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/batch.h"
#include "engine/ids.h"
#include "engine/kv_layout.h"
#include "model/config.h"

namespace agentserve::model {

// State of a load; sent about every 200 ms and once at the end.
struct LoadProgress {
  std::string file;         // being read now
  uint64_t bytes_done = 0;  // of all weight files
  uint64_t bytes_total = 0;
  double seconds = 0;  // since the load began
  double bytes_per_second = 0;
  double eta_seconds = 0;  // 0 when done
  bool done() const { return bytes_done >= bytes_total; }
};

struct LoadOptions {
  std::string device = "cpu";                         // only "cpu" is built in
  int threads = 0;                                    // compute threads; 0 = one per available core
  std::function<void(const LoadProgress&)> progress;  // called on the loading thread; may be empty
};

// Weights and configuration. Immutable after loading; thread-safe. Must outlive its executors.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // 64-bit identity of configuration and weights; equal on every worker that loaded the same folder.
  virtual uint64_t fingerprint() const = 0;
  // fingerprint() as 16 lower-case hex digits.
  virtual std::string fingerprint_hex() const;
  // Bytes of weights read each decode step (embedding row lookups not counted).
  virtual uint64_t weight_bytes() const = 0;
  // Shape of this model's KV blocks.
  engine::KvLayout layout(uint32_t block_tokens) const;
  // End tokens of config.json and generation_config.json.
  std::vector<engine::TokenId> end_tokens() const { return config().eos_token_ids; }
  // An executor over `pool`, whose layout must equal layout(pool.layout.block_tokens). The pool's memory must outlive
  // it. Executors of one model may run on different threads at the same time; each is single-threaded by itself.
  virtual std::unique_ptr<engine::Executor> NewExecutor(engine::KvPoolView pool) = 0;
};

// Loads a Hugging Face folder (config.json, *.safetensors). Errors name file, tensor and field.
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const std::string& dir, const LoadOptions& options);

}  // namespace agentserve::model
