// Linked in builds without CUDA.
#include "kvstore/transport/device_memory.h"

namespace agentserve::kvstore {
namespace {

constexpr char kNoCuda[] = "this program was built without CUDA (configure with -DAGENTSERVE_CUDA=ON)";

}  // namespace

std::vector<DeviceInfo> ListDevices(std::string* why_none) {
  if (why_none != nullptr) *why_none = kNoCuda;
  return {};
}

absl::StatusOr<uint64_t> FreeDeviceMemory(int) { return absl::FailedPreconditionError(kNoCuda); }

absl::StatusOr<std::unique_ptr<BlockMemory>> NewDeviceMemory(int, const engine::KvLayout&, uint32_t) {
  return absl::FailedPreconditionError(kNoCuda);
}

}  // namespace agentserve::kvstore
