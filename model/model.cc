#include "model/model.h"

#include <algorithm>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/parallel/thread_pool.h"
#include "kernels/read_words/read_words.h"
#include "kernels/rope/rope.h"
#include "model/cpu_executor.h"
#include "model/fingerprint.h"
#include "model/weights.h"
#ifdef AGENTSERVE_HAS_CUDA
#include "model/cuda/cuda_model.h"
#include "model/cuda/device.h"
#endif

namespace agentserve::model {
namespace {

std::vector<float> FrequenciesOf(const ModelConfig& c) {
  kernels::RopeFrequencyParams p;
  p.head_dim = c.head_dim;
  p.theta = c.rope_theta;
  p.llama3 = c.rope_scaling.type == RopeScaling::Type::kLlama3;
  p.factor = c.rope_scaling.factor;
  p.low_freq_factor = c.rope_scaling.low_freq_factor;
  p.high_freq_factor = c.rope_scaling.high_freq_factor;
  p.original_max_position = c.rope_scaling.original_max_position;
  return kernels::RopeFrequencies(p);
}

class CpuModel final : public Model {
 public:
  CpuModel(ModelConfig config, std::unique_ptr<Weights> weights, int threads)
      : config_(std::move(config)),
        weights_(std::move(weights)),
        rope_frequencies_(FrequenciesOf(config_)),
        threads_(threads) {
    fingerprint_ = ModelFingerprint(config_, *weights_);
  }
  const ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return fingerprint_; }
  uint64_t weight_bytes() const override {
    const uint64_t embedding = uint64_t{config_.vocab_size} * config_.hidden_size;
    return 2 * (config_.num_parameters() - (config_.tie_word_embeddings ? 0 : embedding));
  }
  absl::StatusOr<std::unique_ptr<engine::Executor>> CreateExecutor(engine::KvPoolView pool) override {
    AS_CHECK(pool.layout == layout(pool.layout.block_tokens)) << "the KV pool has another model's layout";
    AS_CHECK(pool.base != nullptr || pool.num_blocks == 0);
    return std::make_unique<CpuExecutor>(config_, *weights_, rope_frequencies_, threads_, pool);
  }

 private:
  const ModelConfig config_;
  const std::unique_ptr<Weights> weights_;
  const std::vector<float> rope_frequencies_;
  kernels::ThreadPool threads_;
  uint64_t fingerprint_ = 0;
};

// Stands in for an executor that could not be made.
class FailedExecutor final : public engine::Executor {
 public:
  explicit FailedExecutor(absl::Status status) : status_(std::move(status)) {}
  absl::Status Run(const engine::StepPlan&, engine::LayerObserver*, engine::StepOutput*) override { return status_; }

 private:
  const absl::Status status_;
};

}  // namespace

std::unique_ptr<engine::Executor> Model::NewExecutor(engine::KvPoolView pool) {
  absl::StatusOr<std::unique_ptr<engine::Executor>> executor = CreateExecutor(pool);
  if (executor.ok()) return *std::move(executor);
  return std::make_unique<FailedExecutor>(
      absl::InternalError(base::StrCat("no executor: ", base::MessageOf(executor.status()))));
}

uint64_t DeviceMemory::PoolBytes() const {
  // The runtime's own needs (local memory, lazily loaded kernels, peers' mappings), seen at up to a few hundred MiB.
  constexpr uint64_t kMargin = uint64_t{1} << 30;
  const uint64_t taken = executor_bytes + kMargin;
  return free_bytes > taken ? free_bytes - taken : 0;
}

absl::StatusOr<DeviceMemory> Model::device_memory() const {
  DeviceMemory memory;
  memory.name = "cpu";
  memory.weight_bytes = weight_bytes();
  return memory;
}

absl::StatusOr<KvMemory> Model::AllocateKv(size_t bytes) const {
  constexpr size_t kAlign = 64;
  void* memory = std::aligned_alloc(kAlign, (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign);
  if (memory == nullptr)
    return absl::ResourceExhaustedError(base::StrCat("no memory for a KV pool of ", bytes, " bytes"));
  return KvMemory(static_cast<std::byte*>(memory), [](std::byte* p) { std::free(p); });
}

// Best of several passes in which each thread sums its share of a buffer far beyond the caches.
absl::StatusOr<double> Model::MeasureReadBandwidth(int threads) const {
  constexpr size_t kWords = (size_t{512} << 20) / sizeof(uint64_t);
  constexpr int kPasses = 5;
  std::vector<uint64_t> buffer(kWords, 1);
  kernels::ThreadPool pool(threads);
  std::vector<uint64_t> sums(static_cast<size_t>(pool.threads()));
  constexpr size_t kTasks = 64;
  const base::MonotonicClock clock;
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const base::TimeNs began = clock.Now();
    pool.Run(kTasks, [&](size_t task, int thread) {
      const uint64_t* from = buffer.data() + task * (kWords / kTasks);
      sums[static_cast<size_t>(thread)] += kernels::SumWords(from, kWords / kTasks);
    });
    const double seconds = static_cast<double>(clock.Now() - began) / 1e9;
    best = std::max(best, static_cast<double>(kWords * sizeof(uint64_t)) / 1e9 / seconds);
  }
  // Uses the sums, so that the loop cannot be dropped.
  const uint64_t total = std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  return total == uint64_t{kPasses} * kWords ? best : 0.0;
}

std::string Model::fingerprint_hex() const {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, fingerprint());
  return text;
}

engine::KvLayout Model::layout(uint32_t block_tokens) const {
  const ModelConfig& c = config();
  engine::KvLayout l;
  l.num_layers = c.num_layers;
  l.num_kv_heads = c.num_kv_heads;
  l.head_dim = c.head_dim;
  l.block_tokens = block_tokens;
  l.dtype = engine::KvDtype::kBf16;
  l.model_fingerprint = fingerprint();
  return l;
}

namespace {

// The ordinal of "cuda" or "cuda:N"; -1 for "cpu". "auto" takes device 0 if it can be used.
absl::StatusOr<int> DeviceOrdinal(const std::string& device) {
  if (device == "cpu") return -1;
#ifdef AGENTSERVE_HAS_CUDA
  if (device == "auto") return cuda::CheckDevice(0).ok() ? 0 : -1;
#else
  if (device == "auto") return -1;
#endif
  int ordinal = 0;
  const std::string_view number = std::string_view(device).substr(std::min<size_t>(device.size(), 5));
  const bool numbered = device.starts_with("cuda:") &&
                        std::from_chars(number.data(), number.data() + number.size(), ordinal).ec == std::errc() &&
                        ordinal >= 0 && std::to_string(ordinal) == number;
  if (device != "cuda" && !numbered) {
    return absl::InvalidArgumentError(
        base::StrCat("--device \"", device, "\" is not known; use cpu, cuda, cuda:N or auto"));
  }
  return ordinal;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const std::string& dir, const LoadOptions& options) {
  AS_ASSIGN_OR_RETURN(const int ordinal, DeviceOrdinal(options.device));
  if (options.threads < 0 || options.threads > kernels::ThreadPool::kMaxThreads) {
    return absl::InvalidArgumentError(
        base::StrCat("threads = ", options.threads, " must be 0 (all CPUs) to ", kernels::ThreadPool::kMaxThreads));
  }
  if (ordinal >= 0) {
#ifdef AGENTSERVE_HAS_CUDA
    AS_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, cuda::CudaModel::Load(dir, options, ordinal, {}));
    return model;
#else
    return absl::UnimplementedError(
        base::StrCat("--device ", options.device,
                     ": this program was built without CUDA. Build it where nvcc 12.4 or newer is installed "
                     "(cmake -DAGENTSERVE_CUDA=ON), or use --device cpu"));
#endif
  }
  AS_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  AS_ASSIGN_OR_RETURN(std::unique_ptr<Weights> weights, LoadWeights(dir, config, options.progress));
  return std::make_unique<CpuModel>(std::move(config), std::move(weights), options.threads);
}

}  // namespace agentserve::model
