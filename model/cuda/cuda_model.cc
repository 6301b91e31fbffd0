#include "model/cuda/cuda_model.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/cuda/launch.h"
#include "kernels/gemm/cublaslt.h"
#include "model/cuda/init_kernels.h"
#include "model/fingerprint.h"
#include "model/weights.h"

namespace agentserve::model::cuda {
namespace {

using base::Field;
using base::StrCat;
using kernels::cuda::ToStatus;

// What the GPU kernels were written for.
absl::Status CheckSupported(const ModelConfig& c) {
  const auto no = [](const char* field, uint32_t value, const char* want) {
    return absl::UnimplementedError(StrCat("config.json: field \"", field, "\" = ", value,
                                           " is not supported on the GPU, which needs ", want, "; use --device cpu"));
  };
  if (c.head_dim != 64 && c.head_dim != 128) return no("head_dim", c.head_dim, "64 or 128");
  if (c.hidden_size % 64 != 0) return no("hidden_size", c.hidden_size, "a multiple of 64");
  if (c.hidden_size > 16384) return no("hidden_size", c.hidden_size, "at most 16384");
  if (c.intermediate_size % 64 != 0) return no("intermediate_size", c.intermediate_size, "a multiple of 64");
  if (c.vocab_size % 16 != 0) return no("vocab_size", c.vocab_size, "a multiple of 16");
  return absl::OkStatus();
}

absl::StatusOr<int> MultiprocessorCount(int ordinal) {
  int sms = 0;
  AS_RETURN_IF_ERROR(ToStatus(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, ordinal), "GPU properties"));
  return sms;
}

}  // namespace

CudaModel::CudaModel(int ordinal, ModelConfig config, const LoadOptions& options, const CudaOptions& cuda, int num_sms)
    : ordinal_(ordinal), config_(std::move(config)) {
  executor_options_.limits = options.limits;
  executor_options_.forward.step.batch_invariant = options.batch_invariant;
  executor_options_.forward.step.num_sms = num_sms;
  set_cuda_options(cuda);
}

void CudaModel::set_cuda_options(const CudaOptions& cuda) {
  executor_options_.forward.fuse_norm_rows = cuda.fuse_norm_rows;
  executor_options_.forward.prefetch_bytes = cuda.prefetch_bytes;
  executor_options_.forward.whole_step_rows = cuda.whole_step_rows;
  executor_options_.forward.skip = cuda.skip;
  executor_options_.graphs = cuda.graphs;
  executor_options_.warm_up = cuda.warm_up;
  executor_options_.pdl = cuda.pdl;
  executor_options_.keep_logits = cuda.keep_logits;
}

absl::StatusOr<std::unique_ptr<CudaModel>> CudaModel::Load(const std::string& dir, const LoadOptions& options,
                                                           int ordinal, const CudaOptions& cuda) {
  AS_RETURN_IF_ERROR(CheckDevice(ordinal));
  AS_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  AS_RETURN_IF_ERROR(CheckSupported(config));
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal), "choosing the GPU"));
  AS_ASSIGN_OR_RETURN(const int sms, MultiprocessorCount(ordinal));
  // The files are read by the upload, piece by piece; here only headers and samples for the fingerprint.
  AS_ASSIGN_OR_RETURN(const std::unique_ptr<Weights> weights, LoadWeights(dir, config, nullptr, ReadFiles::kLater));
  std::unique_ptr<CudaModel> model(new CudaModel(ordinal, std::move(config), options, cuda, sms));
  model->fingerprint_ = ModelFingerprint(model->config_, *weights);
  AS_ASSIGN_OR_RETURN(model->weights_, UploadWeights(*weights, model->config_, options.threads, options.progress,
                                                     &model->upload_times_));
  const UploadTimes& t = model->upload_times_;
  if (!kernels::cuda::CublasLtAvailable()) {
    AS_LOG(kWarn, "cublaslt.missing") << Field("effect", "our own kernels run where cublasLt would be faster")
                                      << Field("fix", "put the folder of libcublasLt.so.13 into LD_LIBRARY_PATH");
  }
  AS_LOG(kInfo, "model.on_gpu") << Field("device", StrCat("cuda:", ordinal)) << Field("mib", t.bytes >> 20)
                                << Field("allocate_s", t.allocate) << Field("copy_s", t.copy)
                                << Field("copy_gb_per_s", static_cast<double>(t.bytes) / 1e9 / t.copy)
                                << Field("tables_s", t.tables) << Field("threads", t.threads);
  return model;
}

absl::StatusOr<std::unique_ptr<CudaModel>> CudaModel::Random(const ModelConfig& config, const LoadOptions& options,
                                                             int ordinal, const CudaOptions& cuda) {
  AS_RETURN_IF_ERROR(CheckDevice(ordinal));
  AS_RETURN_IF_ERROR(CheckSupported(config));
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal), "choosing the GPU"));
  AS_ASSIGN_OR_RETURN(const int sms, MultiprocessorCount(ordinal));
  std::unique_ptr<CudaModel> model(new CudaModel(ordinal, config, options, cuda, sms));
  constexpr uint64_t kSeed = 1;
  AS_ASSIGN_OR_RETURN(model->weights_, RandomWeights(model->config_, kSeed));
  model->fingerprint_ = kSeed;
  return model;
}

uint64_t CudaModel::weight_bytes() const {
  const uint64_t embedding = uint64_t{config_.vocab_size} * config_.hidden_size;
  return 2 * (config_.num_parameters() - (config_.tie_word_embeddings ? 0 : embedding));
}

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaModel::CreateCudaExecutor(engine::KvPoolView pool) {
  AS_CHECK(pool.layout == layout(pool.layout.block_tokens)) << "the KV pool has another model's layout";
  AS_CHECK(pool.base != nullptr || pool.num_blocks == 0);
  if (pool.layout.block_tokens % 16 != 0) {
    return absl::InvalidArgumentError(
        StrCat("--block-tokens ", pool.layout.block_tokens, " must be a multiple of 16 on the GPU"));
  }
  return CudaExecutor::Create(ordinal_, config_, weights_, pool, executor_options_);
}

absl::StatusOr<std::unique_ptr<engine::Executor>> CudaModel::CreateExecutor(engine::KvPoolView pool) {
  AS_ASSIGN_OR_RETURN(std::unique_ptr<CudaExecutor> executor, CreateCudaExecutor(pool));
  return std::unique_ptr<engine::Executor>(std::move(executor));
}

absl::StatusOr<DeviceMemory> CudaModel::device_memory() const {
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal_), "choosing the GPU"));
  cudaDeviceProp properties;
  AS_RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&properties, ordinal_), "GPU properties"));
  size_t free = 0, total = 0;
  AS_RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&free, &total), "asking for free device memory"));
  DeviceMemory out;
  out.cuda_device = ordinal_;
  out.name = properties.name;
  out.total_bytes = total;
  out.free_bytes = free;
  out.weight_bytes = DeviceWeightBytes(config_);
  out.executor_bytes = CudaExecutor::DeviceBytes(config_, executor_options_);
  return out;
}

// Over the weights themselves, and so mostly not from the L2.
absl::StatusOr<double> CudaModel::MeasureReadBandwidth(int /*threads*/) const {
  constexpr int kPasses = 7;
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal_), "choosing the GPU"));
  AS_ASSIGN_OR_RETURN(const Stream stream, Stream::Create());
  AS_ASSIGN_OR_RETURN(const DeviceBuffer sink, DeviceBuffer::Allocate(sizeof(uint32_t), "a word"));
  kernels::cuda::LaunchContext context;
  context.stream = stream.get();
  context.num_sms = executor_options_.forward.step.num_sms;
  cudaEvent_t events[kPasses + 1] = {};
  absl::Status status;
  for (int i = 0; i <= kPasses && status.ok(); ++i) {
    if (i > 0) {
      status =
          ReadAll(weights_.memory.data(), weights_.memory.size(), reinterpret_cast<uint32_t*>(sink.data()), context);
    }
    if (status.ok()) status = ToStatus(cudaEventCreate(&events[i]), "creating an event");
    if (status.ok()) status = ToStatus(cudaEventRecord(events[i], stream.get()), "timing a read");
  }
  if (status.ok()) status = ToStatus(cudaStreamSynchronize(stream.get()), "timing a read");
  float best_ms = 1e30f;
  for (int i = 0; i < kPasses && status.ok(); ++i) {
    float ms = 0;
    status = ToStatus(cudaEventElapsedTime(&ms, events[i], events[i + 1]), "timing a read");
    best_ms = std::min(best_ms, ms);
  }
  for (const cudaEvent_t e : events) {
    if (e != nullptr) cudaEventDestroy(e);
  }
  AS_RETURN_IF_ERROR(status);
  return static_cast<double>(weights_.memory.size()) / 1e6 / static_cast<double>(best_ms);
}

absl::StatusOr<KvMemory> CudaModel::AllocateKv(size_t bytes) const {
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal_), "choosing the GPU"));
  AS_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(std::max<size_t>(bytes, 1), "the KV pool"));
  auto owner = std::make_shared<DeviceBuffer>(std::move(buffer));
  std::byte* data = owner->data();
  return KvMemory(data, [owner](std::byte*) mutable { owner.reset(); });
}

}  // namespace agentserve::model::cuda
