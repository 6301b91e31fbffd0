// Device memory with the lifetime of an object, for tests and benches. Every failure ends the program: there is nothing
// to test without memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

namespace agentserve::kernels::cuda {

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

template <typename T>
class DeviceVector {
 public:
  // Bytes are 0xff: NaN as bf16 and fp32.
  explicit DeviceVector(size_t size) : size_(size) {
    CheckCuda(cudaMalloc(reinterpret_cast<void**>(&data_), Bytes() + 16), "cudaMalloc");
    Poison();
  }
  explicit DeviceVector(std::span<const T> from) : DeviceVector(from.size()) { Upload(from); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;
  ~DeviceVector() { cudaFree(data_); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  void Poison() { CheckCuda(cudaMemset(data_, 0xff, Bytes()), "cudaMemset"); }
  void Upload(std::span<const T> from) {
    CheckCuda(cudaMemcpy(data_, from.data(), from.size_bytes(), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<T> Download() const {
    std::vector<T> out(size_);
    CheckCuda(cudaMemcpy(out.data(), data_, Bytes(), cudaMemcpyDeviceToHost), "download");
    return out;
  }

 private:
  size_t Bytes() const { return size_ * sizeof(T); }
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace agentserve::kernels::cuda
