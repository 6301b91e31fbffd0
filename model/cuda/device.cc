#include "model/cuda/device.h"

#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/cuda/launch.h"

namespace agentserve::model::cuda {
namespace {

using base::StrCat;
using kernels::cuda::ToStatus;

constexpr double kMiB = 1 << 20;

std::string MiB(size_t bytes) { return StrCat(static_cast<uint64_t>(static_cast<double>(bytes) / kMiB + 0.5), " MiB"); }

}  // namespace

absl::Status CheckDevice(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    const char* why = error == cudaSuccess ? "the driver reports none" : cudaGetErrorString(error);
    cudaGetLastError();  // not to be met again by the next launch check
    return absl::FailedPreconditionError(StrCat("no CUDA device can be used: ", why,
                                                ". Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use --device cpu"));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(StrCat("device \"cuda:", ordinal, "\" does not exist; this machine shows ", count,
                                             " CUDA device(s), cuda:0 to cuda:", count - 1));
  }
  cudaDeviceProp properties;
  AS_RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&properties, ordinal), "reading the GPU's properties"));
  if (properties.major != 9 || properties.minor != 0) {
    return absl::UnimplementedError(StrCat("cuda:", ordinal, " is a ", properties.name, " of compute capability ",
                                           properties.major, ".", properties.minor,
                                           "; the kernels are built for 9.0 (Hopper: H100, H200, GH200). Use another "
                                           "device or --device cpu"));
  }
  return absl::OkStatus();
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(size_t bytes, const std::string& what) {
  DeviceBuffer out;
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    AS_RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&free, &total), "asking for free device memory"));
    return absl::ResourceExhaustedError(
        StrCat(what, " need", what.ends_with("s") ? " " : "s ", MiB(bytes), " of device memory, but only ", MiB(free),
               " of ", MiB(total), " are free: ", MiB(bytes > free ? bytes - free : 0),
               " are missing. End other programs on this GPU, or lower --kv-memory-mib, --step-tokens or --max-batch"));
  }
  AS_RETURN_IF_ERROR(ToStatus(error, "allocating device memory"));
  out.data_ = static_cast<std::byte*>(memory);
  out.size_ = bytes;
  return out;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(size_t bytes, const std::string& what) {
  PinnedBuffer out;
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return absl::ResourceExhaustedError(
        StrCat(what, ": no ", MiB(bytes), " of page-locked host memory; free host memory or raise `ulimit -l`"));
  }
  AS_RETURN_IF_ERROR(ToStatus(error, "allocating page-locked memory"));
  out.data_ = static_cast<std::byte*>(memory);
  out.size_ = bytes;
  return out;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

absl::StatusOr<Stream> Stream::Create() {
  Stream out;
  AS_RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&out.stream_, cudaStreamNonBlocking), "creating a stream"));
  return out;
}

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Stream& Stream::operator=(Stream&& o) noexcept {
  std::swap(stream_, o.stream_);
  return *this;
}

absl::StatusOr<Event> Event::Create() {
  Event out;
  AS_RETURN_IF_ERROR(ToStatus(cudaEventCreateWithFlags(&out.event_, cudaEventDisableTiming), "creating an event"));
  return out;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

Event& Event::operator=(Event&& o) noexcept {
  std::swap(event_, o.event_);
  return *this;
}

}  // namespace agentserve::model::cuda
