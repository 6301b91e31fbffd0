// The CUDA backend's models. Included only where the program is built with CUDA.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/executor.h"
#include "model/model.h"

namespace agentserve::model::cuda {

// Switches for tests and measurements; the defaults are what serves.
struct CudaOptions {
  bool graphs = true;
  bool warm_up = true;
  bool pdl = true;
  int fuse_norm_rows = ForwardOptions().fuse_norm_rows;
  size_t prefetch_bytes = ForwardOptions().prefetch_bytes;
  int whole_step_rows = ForwardOptions().whole_step_rows;
  bool keep_logits = false;
  uint32_t skip = 0;  // SkipPart
};

class CudaModel final : public Model {
 public:
  // Loads DIR onto device `ordinal`.
  static absl::StatusOr<std::unique_ptr<CudaModel>> Load(const std::string& dir, const LoadOptions& options,
                                                         int ordinal, const CudaOptions& cuda);
  // A model of this shape with random weights.
  static absl::StatusOr<std::unique_ptr<CudaModel>> Random(const ModelConfig& config, const LoadOptions& options,
                                                           int ordinal, const CudaOptions& cuda);

  const ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return fingerprint_; }
  uint64_t weight_bytes() const override;
  absl::StatusOr<std::unique_ptr<engine::Executor>> CreateExecutor(engine::KvPoolView pool) override;
  absl::StatusOr<DeviceMemory> device_memory() const override;
  absl::StatusOr<double> MeasureReadBandwidth(int threads) const override;
  absl::StatusOr<KvMemory> AllocateKv(size_t bytes) const override;

  absl::StatusOr<std::unique_ptr<CudaExecutor>> CreateCudaExecutor(engine::KvPoolView pool);
  // For executors made from now on.
  void set_cuda_options(const CudaOptions& cuda);
  const UploadTimes& upload_times() const { return upload_times_; }

 private:
  CudaModel(int ordinal, ModelConfig config, const LoadOptions& options, const CudaOptions& cuda, int num_sms);

  const int ordinal_;
  const ModelConfig config_;
  ExecutorOptions executor_options_;
  DeviceWeights weights_;
  UploadTimes upload_times_;
  uint64_t fingerprint_ = 0;
};

}  // namespace agentserve::model::cuda
