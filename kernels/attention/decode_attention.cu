#include <string>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/decode_kernel.cuh"

namespace agentserve::kernels::cuda {
namespace {

// Both: 8 KiB x kWarps / 16 a position tile, 96 KiB of ring, two blocks an SM.
using Config64 = DecodeConfig<64, 8, 3>;
using Config128 = DecodeConfig<128, 4, 3>;

const char* WhatIsWrong(const DecodeAttentionParams& p) {
  const auto& kv = p.kv;
  if (kv.head_dim != 64 && kv.head_dim != 128) return "head_dim is neither 64 nor 128";
  if (kv.block_tokens == 0 || kv.block_tokens % 16 != 0) return "block_tokens is no multiple of 16";
  if (kv.head_bytes != size_t{kv.block_tokens} * kv.head_dim * 2) return "head_bytes is not one head's of a block";
  if ((kv.k_offset | kv.v_offset | kv.block_bytes | reinterpret_cast<size_t>(kv.base)) % 16 != 0) {
    return "the pool is not 16-byte aligned";
  }
  const int kv_heads = static_cast<int>(kv.kv_heads);
  if (kv_heads == 0 || p.q_heads % kv_heads != 0) return "q_heads is no multiple of kv_heads";
  if (p.q_heads / kv_heads > Config64::kMaxGroup) return "more than 8 q heads a KV head";
  if (static_cast<size_t>(p.rows) * kv_heads * sizeof(int) > kWorkspaceZeroBytes) return "too many rows";
  if (p.cluster < 1 || p.cluster > 8 || (p.cluster & (p.cluster - 1)) != 0) return "cluster is not 1, 2, 4 or 8";
  const int warps = kv.head_dim == 64 ? Config64::kWarps : Config128::kWarps;
  if (p.heads < 1 || warps % p.heads != 0 || kv_heads % p.heads != 0 || (p.heads > 1 && p.cluster > 1)) {
    return "heads divides neither the warps of a block nor kv_heads, or there are clusters too";
  }
  DecodePlanLimits limits;
  limits.max_units = p.max_units;
  if (p.workspace_bytes < DecodeWorkspaceBytes(limits, p.q_heads, static_cast<int>(kv.head_dim))) {
    return "workspace too small";
  }
  return nullptr;
}

}  // namespace

size_t DecodeWorkspaceBytes(const DecodePlanLimits& limits, int q_heads, int head_dim) {
  const DecodeWorkspace w = CarveDecodeWorkspace(nullptr, limits.max_units, q_heads);
  return reinterpret_cast<size_t>(w.o) + static_cast<size_t>(limits.max_units) * q_heads * head_dim * sizeof(float);
}

absl::Status DecodeAttention(const DecodeAttentionParams& params, const LaunchContext& context) {
  if (const char* wrong = WhatIsWrong(params)) {
    return absl::InvalidArgumentError(std::string("decode attention: ") + wrong);
  }
  if (params.rows == 0 || params.max_units == 0) return absl::OkStatus();
  const cudaError_t error = params.kv.head_dim == 64 ? LaunchDecodeAttention<Config64>(params, context)
                                                     : LaunchDecodeAttention<Config128>(params, context);
  return ToStatus(error, "decode attention");
}

}  // namespace agentserve::kernels::cuda
