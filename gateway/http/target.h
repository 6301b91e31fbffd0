// The request target of HTTP/1.1, taken apart. Pure.
#pragma once

#include <string>
#include <string_view>

namespace agentserve::gateway {

// `target` in origin or absolute form -> decoded path and raw query. Bad percent escapes stay as they are.
void SplitTarget(std::string_view target, std::string* path, std::string* query);

}  // namespace agentserve::gateway
