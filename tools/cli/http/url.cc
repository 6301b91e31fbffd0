#include "tools/cli/http/url.h"

#include "absl/strings/numbers.h"
#include "base/strings.h"

namespace agentserve::tools {

absl::StatusOr<Url> ParseUrl(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  const auto bad = [&text](std::string_view why) {
    return absl::InvalidArgumentError(base::StrCat("'", text.substr(0, 200), "' is no address: ", why));
  };
  if (text.rfind(kScheme, 0) != 0) return bad("http://HOST:PORT is expected");
  const std::string rest = text.substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  const std::string authority = rest.substr(0, slash);
  Url url;
  url.path = rest.substr(slash);
  while (!url.path.empty() && url.path.back() == '/') url.path.pop_back();
  const size_t host_end = authority.rfind(']') == std::string::npos ? 0 : authority.rfind(']');
  const size_t colon = authority.find(':', host_end);
  url.host = authority.substr(0, colon);
  if (url.host.size() > 2 && url.host.front() == '[' && url.host.back() == ']') {
    url.host = url.host.substr(1, url.host.size() - 2);
  }
  if (url.host.empty()) return bad("the host is missing");
  if (colon != std::string::npos &&
      (!absl::SimpleAtoi(authority.substr(colon + 1), &url.port) || url.port < 1 || url.port > 65535)) {
    return bad("the port must be 1 to 65535");
  }
  return url;
}

}  // namespace agentserve::tools
