#include "model/cuda/whole_step.h"

#include "base/status_macros.h"
#include "kernels/cuda/launch.h"

namespace agentserve::model::cuda {
namespace {

using kernels::cuda::DecodeStep;
using kernels::cuda::DecodeStepModel;
using kernels::cuda::ToStatus;

DecodeStepModel ShapeOf(const ModelConfig& c) {
  DecodeStepModel m;
  m.hidden = static_cast<int>(c.hidden_size);
  m.ffn = static_cast<int>(c.intermediate_size);
  m.q_heads = static_cast<int>(c.num_heads);
  m.kv_heads = static_cast<int>(c.num_kv_heads);
  m.head_dim = static_cast<int>(c.head_dim);
  m.vocab = static_cast<int>(c.vocab_size);
  m.norm_eps = c.rms_norm_eps;
  m.layers.resize(c.num_layers);
  m.num_blocks = 1;
  m.block_tokens = 16;
  return m;
}

// Whether this process has all multiprocessors to itself while its kernels run.
absl::StatusOr<bool> HasWholeGpu(int num_sms) {
  int device = 0, sms = 0, mps = 0;
  AS_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "asking for the GPU"));
  AS_RETURN_IF_ERROR(
      ToStatus(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "asking for multiprocessors"));
  // Unknown to drivers before CUDA 13: as if shared.
  if (cudaDeviceGetAttribute(&mps, cudaDevAttrMpsEnabled, device) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    mps = 1;
  }
  return mps == 0 && sms == num_sms;
}

}  // namespace

size_t WholeStepBytes(const ModelConfig& config, int num_sms) {
  const DecodeStepModel m = ShapeOf(config);
  return DecodeStep::Supports(m, num_sms) ? DecodeStep::WorkspaceBytes(m, num_sms) : 0;
}

absl::StatusOr<std::unique_ptr<DecodeStep>> MakeWholeStep(const ModelConfig& config, const DeviceWeights& weights,
                                                          const engine::KvPoolView& pool, std::byte* memory,
                                                          int num_sms, cudaStream_t stream) {
  DecodeStepModel m = ShapeOf(config);
  m.embedding = weights.embedding;
  m.lm_head = weights.lm_head;
  m.final_norm = weights.final_norm;
  m.cos = weights.cos;
  m.sin = weights.sin;
  for (size_t i = 0; i < m.layers.size(); ++i) {
    const DeviceLayer& l = weights.layers[i];
    m.layers[i] = {l.input_norm, l.qkv, l.o, l.post_norm, l.gate_up, l.down};
  }
  m.pool = pool.base;
  m.num_blocks = pool.num_blocks;
  m.block_tokens = pool.layout.block_tokens;
  if (!DecodeStep::Supports(m, num_sms)) return nullptr;
  AS_ASSIGN_OR_RETURN(const bool whole, HasWholeGpu(num_sms));
  if (!whole) return nullptr;
  return DecodeStep::Create(m, memory, num_sms, stream);
}

}  // namespace agentserve::model::cuda
