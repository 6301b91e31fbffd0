#include "model/bench/ceilings.h"

#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#ifdef AGENTSERVE_HAS_CUDA
#include "model/bench/ceilings_cuda.h"
#endif

namespace agentserve::model {

absl::StatusOr<Ceilings> MeasureCeilings(const Model& model, int threads) {
  AS_ASSIGN_OR_RETURN(const DeviceMemory memory, model.device_memory());
  Ceilings c;
  c.device = memory.name;
  AS_ASSIGN_OR_RETURN(c.read_gb_per_second, model.MeasureReadBandwidth(threads));
  if (!memory.on_gpu()) return c;
#ifdef AGENTSERVE_HAS_CUDA
  AS_ASSIGN_OR_RETURN(c.bf16_tflops, cuda::GemmTflops(memory.cuda_device));
  // NVIDIA's data sheets of the SXM boards; dense bf16.
  if (c.device.find("H200") != std::string::npos) {
    c.sheet_gb_per_second = 4800;
    c.sheet_bf16_tflops = 989;
  } else if (c.device.find("H100") != std::string::npos && c.device.find("PCIe") == std::string::npos) {
    c.sheet_gb_per_second = 3350;
    c.sheet_bf16_tflops = 989;
  }
#endif
  return c;
}

absl::Status FillKv(const Model& model, std::byte* memory, size_t bytes) {
  AS_ASSIGN_OR_RETURN(const DeviceMemory device, model.device_memory());
  if (!device.on_gpu()) {
    std::memset(memory, 0, bytes);
    return absl::OkStatus();
  }
#ifdef AGENTSERVE_HAS_CUDA
  return cuda::FillKv(device.cuda_device, memory, bytes);
#else
  return absl::InternalError("a GPU model in a program without the GPU backend");
#endif
}

std::string Ceilings::ToText() const {
  char text[400];
  std::string out;
  std::snprintf(text, sizeof(text), "%s: reads %.0f GB/s", device.c_str(), read_gb_per_second);
  out = text;
  if (sheet_gb_per_second > 0) {
    std::snprintf(text, sizeof(text), " (%.1f %% of the data sheet's %.0f)",
                  100 * read_gb_per_second / sheet_gb_per_second, sheet_gb_per_second);
    out += text;
  }
  if (bf16_tflops > 0) {
    std::snprintf(text, sizeof(text), "; cuBLASLt 8192^3 bf16 %.0f TFLOP/s", bf16_tflops);
    out += text;
  }
  if (bf16_tflops > 0 && sheet_bf16_tflops > 0) {
    std::snprintf(text, sizeof(text), " (%.1f %% of %.0f)", 100 * bf16_tflops / sheet_bf16_tflops, sheet_bf16_tflops);
    out += text;
  }
  return out + "\n";
}

std::string Ceilings::ToJson() const {
  return nlohmann::json{{"bench", "ceilings"},
                        {"device", device},
                        {"read_gb_per_second", read_gb_per_second},
                        {"bf16_tflops", bf16_tflops},
                        {"sheet_gb_per_second", sheet_gb_per_second},
                        {"sheet_bf16_tflops", sheet_bf16_tflops}}
      .dump();
}

}  // namespace agentserve::model
