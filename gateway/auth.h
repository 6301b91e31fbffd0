// API keys. Denies by default: only the probes in IsPublicPath are served without a key.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/api_error.h"
#include "gateway/http/message.h"

namespace agentserve::gateway {

// Immutable, thread-safe. Holds SHA-256 digests, not keys.
class Authenticator {
 public:
  // No keys: everyone is the tenant "anonymous". `names` are the tenants of the keys; one missing or empty = "key-0",
  // "key-1", .. by place. Keys of one name are one tenant.
  explicit Authenticator(const std::vector<std::string>& keys, const std::vector<std::string>& names = {});

  // The tenant of the request, or the 401. Reads `Authorization: Bearer`
  // and `x-api-key`. Takes the same time for every wrong key.
  std::optional<ApiError> Check(const HttpRequest& request, std::string* tenant) const;
  bool enabled() const { return !digests_.empty(); }

  // /health, /live, /ready, /metrics, /version.
  static bool IsPublicPath(std::string_view path);

 private:
  using Digest = std::array<unsigned char, 32>;
  static Digest Hash(std::string_view key);
  std::vector<Digest> digests_;
  std::vector<std::string> names_;
};

}  // namespace agentserve::gateway
