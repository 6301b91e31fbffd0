// main of the GPU tests: without a usable device they are skipped, visibly.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no CUDA device (%s)\n", cudaGetErrorString(error));
    return 77;
  }
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess || properties.major != 9 || properties.minor != 0) {
    std::printf("SKIPPED: %s has compute capability %d.%d; the kernels are built for 9.0 (Hopper)\n", properties.name,
                properties.major, properties.minor);
    return 77;
  }
  return RUN_ALL_TESTS();
}
