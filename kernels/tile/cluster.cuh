// Thread block clusters: who am I, barriers, and reading another block's shared memory.
#pragma once

#include <cstdint>

namespace agentserve::kernels::cuda {

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t ClusterSize() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// The two halves of a barrier of all threads of the cluster: what a thread wrote to shared memory before its arrive is
// seen by all after their wait. Every thread calls both, in turn.
__device__ __forceinline__ void ClusterArrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

__device__ __forceinline__ void ClusterSync() {
  ClusterArrive();
  ClusterWait();
}

// Address of the same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t PeerAddress(uint32_t shared, uint32_t rank) {
  uint32_t peer;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(shared), "r"(rank));
  return peer;
}
__device__ __forceinline__ float2 LoadPeer8(uint32_t peer) {
  float2 v;
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(peer) : "memory");
  return v;
}
__device__ __forceinline__ float4 LoadPeer16(uint32_t peer) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(peer)
               : "memory");
  return v;
}

}  // namespace agentserve::kernels::cuda
