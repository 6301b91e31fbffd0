// Times GPU work for the *_bench programs: launches captured into a graph, replayed between two events.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/cuda/device_vector.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct BenchTime {
  double median_us = 0, p95_us = 0;  // per launch
};

// `launch(i, context)` for i in [0, launches) makes one graph: rotate buffers by i. Each of `replays` replays (after
// two that do not count) gives one sample.
inline BenchTime TimeGraph(int launches, int replays, bool pdl,
                           const std::function<void(int, const LaunchContext&)>& launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  LaunchContext context;
  context.stream = stream;
  context.pdl = pdl;
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  for (int i = 0; i < launches; ++i) launch(i, context);
  CheckCuda(cudaStreamEndCapture(stream, &graph), "end capture");
  CheckCuda(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  std::vector<cudaEvent_t> events(static_cast<size_t>(replays) + 1);
  for (cudaEvent_t& e : events) CheckCuda(cudaEventCreate(&e), "event");
  for (int i = 0; i < 2; ++i) CheckCuda(cudaGraphLaunch(exec, stream), "launch");
  for (size_t i = 0; i < events.size(); ++i) {
    if (i > 0) CheckCuda(cudaGraphLaunch(exec, stream), "launch");
    CheckCuda(cudaEventRecord(events[i], stream), "record");
  }
  CheckCuda(cudaStreamSynchronize(stream), "timed work");
  std::vector<double> us;
  for (size_t i = 1; i < events.size(); ++i) {
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, events[i - 1], events[i]), "elapsed");
    us.push_back(double{ms} * 1e3 / launches);
  }
  std::sort(us.begin(), us.end());
  for (cudaEvent_t e : events) cudaEventDestroy(e);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return {us[us.size() / 2], us[us.size() * 95 / 100]};
}

// The rate of the driver's copy of `bytes` within the device, counting bytes read and written; the yardstick.
inline double CopyTerabytesPerSecond(size_t bytes) {
  DeviceVector<unsigned char> from(bytes), to(bytes);
  const BenchTime t = TimeGraph(2, 5, false, [&](int i, const LaunchContext& context) {
    CheckCuda(cudaMemcpyAsync(i == 0 ? to.data() : from.data(), i == 0 ? from.data() : to.data(), bytes,
                              cudaMemcpyDeviceToDevice, context.stream),
              "copy");
  });
  return 2.0 * static_cast<double>(bytes) / t.median_us * 1e-6;
}

}  // namespace agentserve::kernels::cuda
