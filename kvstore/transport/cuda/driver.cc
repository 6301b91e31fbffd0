#include "kvstore/transport/cuda/driver.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::kvstore::cuda {
namespace {

// Version of the entry points asked for: CUDA 12.0 has all of them with today's signatures.
constexpr unsigned kApiVersion = 12000;

template <typename Fn>
void Load(const char* name, Fn* out, std::string* missing) {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &symbol, kApiVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || symbol == nullptr) {
    (void)cudaGetLastError();
    if (missing->empty()) *missing = base::StrCat(name, " (", cudaGetErrorString(error), ")");
    return;
  }
  *out = reinterpret_cast<Fn>(symbol);
}

absl::StatusOr<DriverApi> LoadDriver() {
  DriverApi api;
  std::string missing;
  Load("cuGetErrorString", &api.error_string, &missing);
  Load("cuMemGetAllocationGranularity", &api.granularity, &missing);
  Load("cuMemCreate", &api.create, &missing);
  Load("cuMemRelease", &api.release, &missing);
  Load("cuMemAddressReserve", &api.reserve, &missing);
  Load("cuMemAddressFree", &api.unreserve, &missing);
  Load("cuMemMap", &api.map, &missing);
  Load("cuMemUnmap", &api.unmap, &missing);
  Load("cuMemSetAccess", &api.set_access, &missing);
  Load("cuMemExportToShareableHandle", &api.export_handle, &missing);
  Load("cuMemImportFromShareableHandle", &api.import_handle, &missing);
  if (!missing.empty()) {
    return absl::FailedPreconditionError(
        base::StrCat("the GPU driver lacks ", missing, "; KV pools in GPU memory need a driver for CUDA 12 or newer"));
  }
  return api;
}

CUmemAllocationProp PropertiesOf(int device) {
  CUmemAllocationProp p = {};
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = device;
  p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return p;
}

}  // namespace

absl::StatusOr<const DriverApi*> Driver() {
  static const absl::StatusOr<DriverApi>* const loaded = new absl::StatusOr<DriverApi>(LoadDriver());
  if (!loaded->ok()) return loaded->status();
  return &loaded->value();
}

absl::Status ToStatus(const DriverApi& api, CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* text = nullptr;
  if (api.error_string(result, &text) != CUDA_SUCCESS || text == nullptr) text = "unknown error";
  const std::string message = base::StrCat(what, ": ", text, " (", static_cast<int>(result), ")");
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

Mapping& Mapping::operator=(Mapping&& o) noexcept {
  std::swap(api_, o.api_);
  std::swap(handle_, o.handle_);
  std::swap(has_handle_, o.has_handle_);
  std::swap(mapped_, o.mapped_);
  std::swap(address_, o.address_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

Mapping::~Mapping() {
  // Errors are of no use here: after a device error everything fails, and the process is about to end.
  if (mapped_) (void)api_->unmap(address_, bytes_);
  if (address_ != 0) (void)api_->unreserve(address_, bytes_);
  if (has_handle_) (void)api_->release(handle_);
}

absl::Status Mapping::Map(CUmemAccess_flags access, int device) {
  AS_RETURN_IF_ERROR(ToStatus(*api_, api_->reserve(&address_, bytes_, 0, 0, 0), "reserve addresses"));
  AS_RETURN_IF_ERROR(ToStatus(*api_, api_->map(address_, bytes_, 0, handle_, 0), "map device memory"));
  mapped_ = true;
  CUmemAccessDesc desc = {};
  desc.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  desc.location.id = device;
  desc.flags = access;
  return ToStatus(*api_, api_->set_access(address_, bytes_, &desc, 1), "set access to device memory");
}

absl::StatusOr<Mapping> Mapping::Allocate(int device, size_t bytes) {
  Mapping m;
  AS_ASSIGN_OR_RETURN(m.api_, Driver());
  const CUmemAllocationProp properties = PropertiesOf(device);
  size_t granularity = 0;
  AS_RETURN_IF_ERROR(ToStatus(
      *m.api_, m.api_->granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "granularity"));
  m.bytes_ = (bytes + granularity - 1) / granularity * granularity;
  AS_RETURN_IF_ERROR(ToStatus(*m.api_, m.api_->create(&m.handle_, m.bytes_, &properties, 0), "allocate device memory"));
  m.has_handle_ = true;
  AS_RETURN_IF_ERROR(m.Map(CU_MEM_ACCESS_FLAGS_PROT_READWRITE, device));
  return m;
}

absl::StatusOr<Mapping> Mapping::ImportReadOnly(int fd, size_t bytes, int reader_device) {
  Mapping m;
  AS_ASSIGN_OR_RETURN(m.api_, Driver());
  m.bytes_ = bytes;
  AS_RETURN_IF_ERROR(ToStatus(*m.api_,
                              m.api_->import_handle(&m.handle_, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                              "import a peer's device memory"));
  m.has_handle_ = true;
  AS_RETURN_IF_ERROR(m.Map(CU_MEM_ACCESS_FLAGS_PROT_READ, reader_device));
  return m;
}

absl::StatusOr<int> Mapping::Export() const {
  int fd = -1;
  AS_RETURN_IF_ERROR(ToStatus(*api_, api_->export_handle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                              "export device memory"));
  return fd;
}

}  // namespace agentserve::kvstore::cuda
