// The decode step: one block per multiprocessor, four kinds of warps.
//   loader     fills the ring with this block's weights and KV, in program order (step_loader.cuh)
//   computing  eight warps work through the ring (step_compute.cuh)
//   finishing  two warps turn sums into rows and hand them to the other blocks (step_finish.cuh)
//   planning   finds out what the rows of this step are, then prepares the counters of the next
// Every operation depends on rows of all blocks, but only the computing warps wait for them, and the ring goes on
// filling meanwhile: 192 KiB are 5.5 us of the memory's rate, and the computing warps drain them several times faster.
#pragma once

#include "kernels/decode_step/step_compute.cuh"
#include "kernels/decode_step/step_finish.cuh"
#include "kernels/decode_step/step_loader.cuh"

namespace agentserve::kernels::cuda {

// Which KV tiles this block attends to. KV heads belong to group_blocks neighbouring blocks each; these share the tiles
// of all rows, one after the other, evenly. One thread.
template <int kRows>
__device__ __forceinline__ void PlanAttention(const DecodeStepArgs& a, StepShared<kRows>& shared) {
  int total = 0;
  for (int r = 0; r < kRows; ++r) total += shared.position[r] / 16 + 1;
  const int blocks = a.group_blocks, mine = static_cast<int>(blockIdx.x) % blocks;
  const bool attends = static_cast<int>(blockIdx.x) < blocks * a.kv_heads;
  const auto border = [&](int block) { return static_cast<int>(static_cast<long long>(total) * block / blocks); };
  int begin = 0, count = 0;
  for (int r = 0; r < kRows; ++r) {
    const int end = begin + shared.position[r] / 16 + 1;
    int first = static_cast<int>(static_cast<long long>(begin) * blocks / total);
    while (border(first + 1) <= begin) ++first;
    int last = first;
    while (border(last + 1) < end) ++last;
    shared.first_block[r] = first;
    shared.last_block[r] = last;
    const int low = max(border(mine), begin), high = min(border(mine + 1), end);
    if (attends && low < high) shared.segments[count++] = {r, low - begin, high - begin};
    begin = end;
  }
  shared.segment_count = count;
}

template <typename C>
__device__ __forceinline__ void Plan(const DecodeStepArgs& a, StepShared<C::kRows>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t set = a.state[blockIdx.x];
  if (lane < C::kRows) {
    const int from = a.step.from == nullptr ? -1 : a.step.from[lane];
    shared.id[lane] = from >= 0 ? a.step.sampled[from] : a.step.ids[lane];
    shared.position[lane] = a.step.positions[lane];
    shared.slot[lane] = a.step.slots[lane];
  }
  __syncwarp();
  for (int i = lane; i < C::kRows * C::kHeadDim / 2; i += 32) {
    const int row = i / (C::kHeadDim / 2), dim = i % (C::kHeadDim / 2);
    const size_t at = static_cast<size_t>(shared.position[row]) * (C::kHeadDim / 2) + dim;
    shared.cos[row][dim] = a.cos[at];
    shared.sin[row][dim] = a.sin[at];
  }
  if (lane == 0) {
    shared.counters = a.counters + set * (kStepCounters * kStepCounterBytes);
    PlanAttention(a, shared);
  }
  __syncwarp();
  if (lane == 0) MbarrierArrive(&shared.planned);
  // The other set is the next step's; the step before used it and is over.
  std::byte* next = a.counters + (set ^ 1) * (kStepCounters * kStepCounterBytes);
  for (int i = static_cast<int>(blockIdx.x) * 32 + lane; i < kStepCounters; i += static_cast<int>(gridDim.x) * 32) {
    *reinterpret_cast<unsigned*>(next + i * kStepCounterBytes) = 0;
  }
  if (lane == 0) a.state[blockIdx.x] = set ^ 1;
}

template <int kRows>
__device__ __forceinline__ void InitBarriers(StepShared<kRows>& shared, int stages) {
  for (int i = 0; i < stages; ++i) {
    MbarrierInit(&shared.full[i], 1);
    MbarrierInit(&shared.empty[i], kStepWarps);
  }
  for (int i = 0; i < kStepSlots; ++i) {
    MbarrierInit(&shared.sums_full[i], kStepWarps);
    MbarrierInit(&shared.sums_empty[i], 1);
  }
  MbarrierInit(&shared.attended, kStepWarps);
  MbarrierInit(&shared.merged, kStepFinishers);
  MbarrierInit(&shared.planned, 1);
  MbarrierInitFence();
}

template <typename C>
__global__ void __launch_bounds__(kStepBlock, 1) DecodeStepKernel(const __grid_constant__ DecodeStepArgs a) {
  extern __shared__ char raw[];
  char* dynamic = raw + (1024 - SharedAddress(raw) % 1024) % 1024;
  const StepLayout layout(a.stages, C::kSlotBytes, a.q_heads / a.kv_heads, C::kHeadDim, sizeof(StepShared<C::kRows>));
  auto& shared = *reinterpret_cast<StepShared<C::kRows>*>(dynamic + layout.shared);
  if (threadIdx.x == 0) InitBarriers(shared, a.stages);
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kStepWarps) {
    StepCompute<C>(a, dynamic, layout, shared).Run();
  } else if (warp < kStepWarps + kStepFinishers) {
    StepFinish<C>(a, dynamic, layout, shared, warp - kStepWarps).Run();
  } else if (warp == kStepWarps + kStepFinishers) {
    StepLoader<C>(a, dynamic, shared).Run();
  } else {
    Plan<C>(a, shared);
  }
}

}  // namespace agentserve::kernels::cuda
