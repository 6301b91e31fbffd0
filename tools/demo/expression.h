#pragma once

#include <string_view>

#include "absl/status/statusor.h"

namespace agentserve::tools {

// Value of an arithmetic expression: decimal numbers, + - * /, unary signs, parentheses. INVALID_ARGUMENT names the
// place of the error; division by zero and results that are not finite are errors. At most 256 bytes and 32 levels.
absl::StatusOr<double> EvaluateExpression(std::string_view text);

}  // namespace agentserve::tools
