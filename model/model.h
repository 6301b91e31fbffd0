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

// The largest step an executor takes; GPU executors allocate for it when they are made. Steps beyond are
// INVALID_ARGUMENT. The defaults are 330 MiB of activations and 62 MiB of logits for the 3B shape.
struct ExecutorLimits {
  uint32_t max_step_tokens = 8192;  // over all slices
  uint32_t max_sequences = 256;     // slices
};

struct LoadOptions {
  // "cpu"; "cuda" (device 0), "cuda:N"; "auto" = cuda if this program has the backend and the machine a usable GPU,
  // else cpu.
  std::string device = "cpu";
  int threads = 0;                                    // compute threads; 0 = one per available core
  std::function<void(const LoadProgress&)> progress;  // called on one thread at a time; may be empty
  // A sequence's logits do not depend on what shares its steps, bit for bit. Always so on the CPU; on the GPU it costs
  // some speed, so it is a choice there.
  bool batch_invariant = false;
  ExecutorLimits limits = {};  // of each executor; the CPU backend has its own
};

// Where a model computes and what is left there for KV pools.
struct DeviceMemory {
  int cuda_device = -1;         // -1: the host. Else the ordinal; pools must be memory of that device
  std::string name;             // "cpu" or the GPU's name
  uint64_t total_bytes = 0;     // of the GPU; 0 on the host
  uint64_t free_bytes = 0;      // now, weights already placed
  uint64_t weight_bytes = 0;    // held by this model
  uint64_t executor_bytes = 0;  // what the next executor will allocate, graphs included
  bool on_gpu() const { return cuda_device >= 0; }
  // What a pool may take if one executor is still to be made: free - executor_bytes - a margin for other allocations.
  uint64_t PoolBytes() const;
};

// Memory for a private KV pool; freed when it goes.
using KvMemory = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

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
  // An executor over `pool`, whose layout must equal layout(pool.layout.block_tokens) and whose memory must be of this
  // model's device and outlive it. Executors of one model may run on different threads at the same time; each is
  // single-threaded by itself. RESOURCE_EXHAUSTED says how much device memory is missing.
  virtual absl::StatusOr<std::unique_ptr<engine::Executor>> CreateExecutor(engine::KvPoolView pool) = 0;
  // The same, where failing is not planned for: an executor that could not be made fails each step with the reason.
  std::unique_ptr<engine::Executor> NewExecutor(engine::KvPoolView pool);
  // The host's or GPU's memory as of now.
  virtual absl::StatusOr<DeviceMemory> device_memory() const;
  // What plain reading of this model's memory reaches now, GB/s: the yardstick of decode steps.
  virtual absl::StatusOr<double> MeasureReadBandwidth(int threads) const;
  // Memory that executors of this model can use as a pool; contents undefined. RESOURCE_EXHAUSTED if there is none.
  virtual absl::StatusOr<KvMemory> AllocateKv(size_t bytes) const;
};

// Loads a Hugging Face folder (config.json, *.safetensors). Errors name file, tensor and field.
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const std::string& dir, const LoadOptions& options);

}  // namespace agentserve::model
