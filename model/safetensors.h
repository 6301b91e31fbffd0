// The safetensors container: 8 bytes little-endian header length, a JSON header, then tensor bytes.
// Every malformed header is an INVALID_ARGUMENT that names file, tensor and field.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::model {

inline constexpr uint64_t kMaxHeaderBytes = 8 << 20;  // a 100,000-tensor header with long names
inline constexpr size_t kMaxTensors = 100'000;
inline constexpr size_t kMaxTensorDims = 8;
inline constexpr size_t kMaxTensorName = 512;

enum class WeightDtype { kBf16, kF16, kF32 };
uint64_t DtypeBytes(WeightDtype dtype);

struct TensorInfo {
  std::string name;
  WeightDtype dtype = WeightDtype::kBf16;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // byte range in the file
  uint64_t end = 0;
  uint64_t elements() const { return (end - begin) / DtypeBytes(dtype); }
  std::string ShapeText() const;  // "[2048, 8192]"
};

// Tensors in order of their bytes. Checked: header within kMaxHeaderBytes and the file, no repeated tensor or field,
// known dtypes, sizes equal to shape times dtype without overflow, and ranges that tile the data section without gap or
// overlap.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> file, const std::string& origin);

}  // namespace agentserve::model
