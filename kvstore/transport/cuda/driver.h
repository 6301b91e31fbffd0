// The few driver calls that the runtime library has no equivalent for: memory that can be exported to other processes.
// Taken from the driver at run time, so that programs start on machines without one.
#pragma once

#include <cuda.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentserve::kvstore::cuda {

struct DriverApi {
  decltype(&cuGetErrorString) error_string = nullptr;
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) unreserve = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuMemExportToShareableHandle) export_handle = nullptr;
  decltype(&cuMemImportFromShareableHandle) import_handle = nullptr;
};

// Loaded once; thread-safe. FAILED_PRECONDITION: no driver, or too old.
absl::StatusOr<const DriverApi*> Driver();

// OK, or INTERNAL with the driver's text and what was done; RESOURCE_EXHAUSTED if memory ran out.
absl::Status ToStatus(const DriverApi& api, CUresult result, const char* what);

// A mapping of device memory in this process' addresses. Movable; unmaps and releases at the end.
class Mapping {
 public:
  Mapping() = default;
  ~Mapping();
  Mapping(Mapping&& o) noexcept { *this = std::move(o); }
  Mapping& operator=(Mapping&& o) noexcept;

  // Allocates `bytes` (rounded up) on `device`, mapped for reading and writing, exportable.
  static absl::StatusOr<Mapping> Allocate(int device, size_t bytes);
  // Maps another process' allocation of `bytes` for reading only, from `reader_device`.
  static absl::StatusOr<Mapping> ImportReadOnly(int fd, size_t bytes, int reader_device);

  std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }
  size_t bytes() const { return bytes_; }
  // A descriptor for ImportReadOnly in other processes.
  absl::StatusOr<int> Export() const;

 private:
  absl::Status Map(CUmemAccess_flags access, int device);

  const DriverApi* api_ = nullptr;
  CUmemGenericAllocationHandle handle_ = 0;
  bool has_handle_ = false, mapped_ = false;
  CUdeviceptr address_ = 0;
  size_t bytes_ = 0;
};

}  // namespace agentserve::kvstore::cuda
