// Any bytes: a list of tensors that lie inside the file and tile it, or an error.
#include "base/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace agentserve::model;
  const auto tensors = ParseSafetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
  if (!tensors.ok()) {
    AS_CHECK(!tensors.status().message().empty());
    return 0;
  }
  uint64_t at = tensors->empty() ? 0 : tensors->front().begin;
  for (const TensorInfo& t : *tensors) {
    AS_CHECK_EQ(t.begin, at);
    AS_CHECK_LE(t.end, size);
    uint64_t elements = 1;
    for (const uint64_t dim : t.shape) elements *= dim;
    AS_CHECK_EQ(elements, t.elements());
    at = t.end;
  }
  return 0;
}
