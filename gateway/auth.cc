#include "gateway/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <strings.h>

#include "base/strings.h"

namespace agentserve::gateway {

Authenticator::Authenticator(const std::vector<std::string>& keys, const std::vector<std::string>& names) {
  for (size_t i = 0; i < keys.size(); ++i) {
    digests_.push_back(Hash(keys[i]));
    names_.push_back(i < names.size() && !names[i].empty() ? names[i] : base::StrCat("key-", i));
  }
}

Authenticator::Digest Authenticator::Hash(std::string_view key) {
  Digest out;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), out.data());
  return out;
}

bool Authenticator::IsPublicPath(std::string_view path) {
  for (const std::string_view p : {"/health", "/live", "/ready", "/metrics", "/version"}) {
    if (path == p) return true;
  }
  return false;
}

std::optional<ApiError> Authenticator::Check(const HttpRequest& request, std::string* tenant) const {
  if (digests_.empty()) {
    *tenant = "anonymous";
    return std::nullopt;
  }
  constexpr std::string_view kScheme = "bearer ";
  std::string_view key = request.Header("authorization");
  if (key.size() > kScheme.size() && strncasecmp(key.data(), kScheme.data(), kScheme.size()) == 0) {
    key.remove_prefix(kScheme.size());
    while (!key.empty() && key.front() == ' ') key.remove_prefix(1);
  } else {
    key = request.Header("x-api-key");
  }
  if (key.empty()) return InvalidApiKey(true);
  // Digests have one length and all are compared, so the time says nothing about how near a guess was.
  const Digest given = Hash(key);
  std::optional<size_t> match;
  for (size_t i = 0; i < digests_.size(); ++i) {
    if (CRYPTO_memcmp(given.data(), digests_[i].data(), given.size()) == 0) match = i;
  }
  if (!match) return InvalidApiKey(false);
  *tenant = names_[*match];
  return std::nullopt;
}

}  // namespace agentserve::gateway
