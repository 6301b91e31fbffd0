// Kernels beside the operators: tables and synthetic weights made when a model is made ready, prefetches, and a
// yardstick of reading.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::model::cuda {

// cos and sin of position * frequency[i] (the product rounded to float first, as the reference does), each rounded to
// float, then to bf16: [positions][half].
absl::Status FillRopeTable(const float* frequencies, uint32_t half, uint32_t positions, __nv_bfloat16* cos,
                           __nv_bfloat16* sin, const kernels::cuda::LaunchContext& context);

// Uniform values in [shift - scale / 2, shift + scale / 2), a function of `seed` and the index only.
absl::Status FillRandom(__nv_bfloat16* out, size_t n, float scale, float shift, uint64_t seed,
                        const kernels::cuda::LaunchContext& context);

// Asks for two ranges (multiples of 16 bytes) to be brought to the L2 and returns at once; changes nothing else.
absl::Status PrefetchToL2(const std::byte* first, size_t first_bytes, const std::byte* second, size_t second_bytes,
                          const kernels::cuda::LaunchContext& context);

// Reads n bytes (a multiple of 16) once with plain 16-byte loads, as fast as this GPU does: the yardstick of decode
// steps. `sink` is one word that is practically never written.
absl::Status ReadAll(const std::byte* from, size_t n, uint32_t* sink, const kernels::cuda::LaunchContext& context);

// Writes to an address that no allocation has: every later call on this device fails, as after a broken kernel. For
// tests of what a worker does then.
absl::Status WriteNowhere(const kernels::cuda::LaunchContext& context);

}  // namespace agentserve::model::cuda
