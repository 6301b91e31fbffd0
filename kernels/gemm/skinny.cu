#include <algorithm>
#include <cstdio>

#include "kernels/gemm/skinny.h"
#include "kernels/gemm/skinny_kernel.cuh"

namespace agentserve::kernels::cuda {
namespace {

// Two kernels of a chain share an SM only if both fit: 227 KiB less 1 KiB each for the system.
constexpr int kSharedPerSm = 227 * 1024;
constexpr int kSharedToOverlap = 112 * 1024;

int TokenTiles(int m) { return m <= 8 ? 1 : 2; }
int ResidentBytes(const LinearParams& p) { return p.m * (2 * p.k + 64) + (p.norm_weight != nullptr ? 2 * p.k : 0); }
int SharedBytes(const LinearParams& p, bool resident, int stages) {
  const int tiles = TokenTiles(p.m);
  return SkinnyPartialBytes(tiles) + kSkinnyWarps * stages * SkinnyStageBytes(tiles, resident) +
         (resident ? ResidentBytes(p) : 0);
}
// x stays in shared memory if it must be normalised, or if several tiles of a block use it and it is small.
bool Resident(const LinearParams& p) {
  return p.norm_weight != nullptr || (p.n > 132 * 2 * kSkinnyTileRows && SharedBytes(p, true, 3) <= kSharedToOverlap);
}

template <int kTokenTiles, bool kResident>
cudaError_t Run(const SkinnyArgs& args, int grid, int shared, const LaunchContext& context) {
  static const cudaError_t prepared = [] {
    auto* kernel = SkinnyKernel<kTokenTiles, kResident>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 226 * 1024);
    if (error != cudaSuccess) return error;
    // An SM cannot move the border between L1 and shared memory while a kernel runs: kernels overlap only if both want
    // it at the same place.
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }();
  if (prepared != cudaSuccess) return prepared;
  return Launch(context, SkinnyKernel<kTokenTiles, kResident>, dim3(grid), dim3(kSkinnyThreads), shared, 1, args);
}

}  // namespace

SkinnyTuning DefaultSkinnyTuning(const LinearParams& params) {
  SkinnyTuning tuning;
  const bool resident = Resident(params);
  int stages = 6;
  while (stages > 3 && SharedBytes(params, resident, stages) > kSharedToOverlap) --stages;
  if (SharedBytes(params, resident, stages) > kSharedToOverlap) {  // no overlap then: at least deep
    stages = 6;
    while (stages > 2 && SharedBytes(params, resident, stages) > kSharedPerSm - 2048) --stages;
  }
  tuning.stages = stages;
  tuning.trigger_lead = stages + 4;
  return tuning;
}

bool SkinnyShapeFits(const LinearParams& p) {
  if (p.m < 1 || p.m > kSkinnyMaxRows || p.n <= 0 || p.n % kSkinnyTileRows != 0 || p.k <= 0 ||
      p.k % kSkinnyChunk != 0) {
    return false;
  }
  if (p.epilogue == LinearEpilogue::kQkv) {
    const int head_dim = static_cast<int>(p.qkv.kv.head_dim);
    if (head_dim <= 0 || head_dim % kSkinnyTileRows != 0 ||
        p.n != (p.qkv.q_heads + 2 * static_cast<int>(p.qkv.kv.kv_heads)) * head_dim) {
      return false;
    }
  }
  return SharedBytes(p, Resident(p), 2) <= kSharedPerSm - 2048;
}

absl::Status LaunchSkinny(SkinnyArgs args, const LaunchContext& context) {
  const LinearParams& p = args.p;
  if (!SkinnyShapeFits(p)) return absl::InvalidArgumentError("skinny linear: unsupported shape");
  const bool resident = Resident(p);
  args.tuning.stages = std::clamp(args.tuning.stages, 2, kSkinnyMaxStages);
  while (args.tuning.stages > 2 && SharedBytes(p, resident, args.tuning.stages) > kSharedPerSm - 2048) {
    --args.tuning.stages;
  }
  args.tiles = p.n / kSkinnyTileRows;
  args.chunks = p.k / kSkinnyChunk;
  args.x_pitch = resident ? 2 * p.k + 64 : 0;
  args.rotated_heads = p.qkv.q_heads + static_cast<int>(p.qkv.kv.kv_heads);
  const int grid = std::min(args.tiles, context.num_sms);
  const int shared = SharedBytes(p, resident, args.tuning.stages);
  cudaError_t error;
  if (TokenTiles(p.m) == 1) {
    error = resident ? Run<1, true>(args, grid, shared, context) : Run<1, false>(args, grid, shared, context);
  } else {
    error = resident ? Run<2, true>(args, grid, shared, context) : Run<2, false>(args, grid, shared, context);
  }
  return ToStatus(error, "skinny linear");
}

bool SkinnySupports(const LinearParams& params) { return params.mode == LinearMode::kFast && SkinnyShapeFits(params); }

absl::Status SkinnyLinear(const LinearParams& params, const LaunchContext& context) {
  SkinnyArgs args;
  args.p = params;
  args.tuning = DefaultSkinnyTuning(params);
  return LaunchSkinny(args, context);
}

size_t SkinnyWorkspaceBytes(int max_m, int max_n, int max_k) {
  static_cast<void>(max_n), static_cast<void>(max_k);
  constexpr size_t kMaxBlocks = 256;
  return kWorkspaceZeroBytes + kMaxBlocks * static_cast<size_t>(std::min(max_m, kSkinnyMaxRows)) * sizeof(SkinnyBest);
}

const char* SkinnyPlanName(const LinearParams& params) { return params.m <= 8 ? "skinny m8" : "skinny m16"; }

}  // namespace agentserve::kernels::cuda
