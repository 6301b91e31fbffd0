// The one place where a worker's device is chosen. A build without CUDA, or a machine without a GPU, has no devices and
// says so (device_memory_none.cc instead of cuda/).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvstore/transport/block_memory.h"

namespace agentserve::kvstore {

struct DeviceInfo {
  int index = 0;
  std::string name;  // "NVIDIA H200"
  std::string uuid;  // 32 hex digits
  uint64_t total_bytes = 0;
};

// The GPUs of this machine that the kernels run on, cheapest question possible (no context is made). Empty with
// `*why_none` set: why there are none. `why_none` may be null.
std::vector<DeviceInfo> ListDevices(std::string* why_none = nullptr);

// A place to run: the CPU, or GPU `index`.
struct Device {
  bool cuda = false;
  int index = 0;
  std::string ToString() const;  // "cpu", "cuda:1"
};
// "cpu", "cuda" (= "cuda:0"), "cuda:N", or "auto" (the first GPU, else the CPU). INVALID_ARGUMENT: none of these.
// FAILED_PRECONDITION: no such GPU here; says why.
absl::StatusOr<Device> ResolveDevice(std::string_view text);

// Bytes of GPU `index` that are free now, for everybody. Makes a context.
absl::StatusOr<uint64_t> FreeDeviceMemory(int index);

// Zeroed memory for `num_blocks` blocks on GPU `index`, to which peers' read-only mappings are possible.
// RESOURCE_EXHAUSTED: too little free memory, with the figures.
absl::StatusOr<std::unique_ptr<BlockMemory>> NewDeviceMemory(int index, const engine::KvLayout& layout,
                                                             uint32_t num_blocks);

}  // namespace agentserve::kvstore
