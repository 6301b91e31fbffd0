#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace agentserve::workload {

// Calls `one` for each line that is not empty. Its error, or a JSON exception, gets "FILE:LINE: " in front.
absl::Status ForEachLine(const std::string& file, std::string_view text,
                         const std::function<absl::Status(std::string_view line)>& one);

}  // namespace agentserve::workload
