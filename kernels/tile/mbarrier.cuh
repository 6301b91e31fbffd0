// Shared-memory barriers, rings of them, named barriers, and the register split of warp-specialised kernels (sm_90a).
//
// A ring of S stages has full[S] (one arrival by the producer, plus the bytes of its bulk copies) and empty[S] (one
// arrival per consumer). Both sides walk it with a RingPosition. A consumer waits for full[index] at `phase`; the
// producer waits for empty[index] at `phase ^ 1`, which passes at once on the first lap (a fresh barrier counts as
// having completed the phase before its first).
#pragma once

#include <cstdint>

#include "kernels/tile/cluster.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

__device__ __forceinline__ void MbarrierInit(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals) : "memory");
}

// Once by the initialising thread, before the __syncthreads (or cluster barrier) that publishes the barriers: makes
// them visible to the async proxy and to the cluster.
__device__ __forceinline__ void MbarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void MbarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

// Arrives and announces `bytes` of bulk copies that complete on this phase (pending bytes stay below 2^20).
__device__ __forceinline__ void MbarrierArriveExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes)
               : "memory");
}

// Whether the phase with this parity is complete; may suspend for a while before it says no.
__device__ __forceinline__ bool MbarrierTryWait(uint64_t* barrier, uint32_t phase) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(SharedAddress(barrier)), "r"(phase)
      : "memory");
  return done != 0;
}

// A wait that lasts more than about 4 s is a bug: it traps (an error the host sees) instead of hanging the GPU. Off
// with AGENTSERVE_UNBOUNDED_SPIN.
__device__ __forceinline__ void MbarrierWait(uint64_t* barrier, uint32_t phase) {
  if (MbarrierTryWait(barrier, phase)) return;
#ifdef AGENTSERVE_UNBOUNDED_SPIN
  while (!MbarrierTryWait(barrier, phase)) {
  }
#else
  const long long start = clock64();
  while (!MbarrierTryWait(barrier, phase)) {
    if (clock64() - start > 8'000'000'000LL) __trap();
  }
#endif
}

// Where a walker of a ring stands: stage and parity of the lap.
template <int kStages>
struct RingPosition {
  uint32_t index = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Advance() {
    if (++index == kStages) {
      index = 0;
      phase ^= 1;
    }
  }
};

// Hardware barrier `id` (1..15; 0 is __syncthreads) of `threads` threads, a multiple of 32. Arrive does not wait.
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Ordinary stores to shared memory before it are seen by bulk copies and wgmma issued after it and the next barrier.
__device__ __forceinline__ void FenceProxyAsyncShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same for every state space: data written by ordinary stores to global memory and read by TMA in the same kernel.
__device__ __forceinline__ void FenceProxyAsync() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Every warp of the warpgroup executes it, in one if/else role split, in a kernel with __launch_bounds__(threads, 1);
// otherwise ptxas ignores it (warning C7508). Multiples of 8.
template <int kRegisters>
__device__ __forceinline__ void RegistersIncrease() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void RegistersDecrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// True in one lane of a converged warp.
__device__ __forceinline__ bool ElectOne() {
  uint32_t elected;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(elected));
  return elected != 0;
}

}  // namespace agentserve::kernels::cuda
