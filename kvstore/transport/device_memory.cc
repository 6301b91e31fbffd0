#include "kvstore/transport/device_memory.h"

#include <charconv>

#include "base/strings.h"

namespace agentserve::kvstore {

std::string Device::ToString() const { return cuda ? base::StrCat("cuda:", index) : "cpu"; }

absl::StatusOr<Device> ResolveDevice(std::string_view text) {
  if (text == "cpu") return Device{};
  std::string why;
  if (text == "auto") {
    const std::vector<DeviceInfo> devices = ListDevices(&why);
    return devices.empty() ? Device{} : Device{true, devices.front().index};
  }
  int index = 0;
  if (text != "cuda") {
    const std::string_view number = text.starts_with("cuda:") ? text.substr(5) : std::string_view();
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
    if (number.empty() || error != std::errc() || end != number.data() + number.size() || index < 0) {
      return absl::InvalidArgumentError(base::StrCat("--device is '", text, "'; it must be cpu, cuda, cuda:N or auto"));
    }
  }
  const std::vector<DeviceInfo> devices = ListDevices(&why);
  for (const DeviceInfo& d : devices) {
    if (d.index == index) return Device{true, index};
  }
  return absl::FailedPreconditionError(
      base::StrCat("--device ", text, ": ", devices.empty() ? why : base::StrCat("there is no usable GPU ", index),
                   "; --device cpu runs on the CPU"));
}

}  // namespace agentserve::kvstore
