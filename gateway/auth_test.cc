#include "gateway/auth.h"

#include <gtest/gtest.h>

namespace agentserve::gateway {
namespace {

HttpRequest With(const char* name, const char* value) {
  HttpRequest r;
  r.headers.emplace_back(name, value);
  return r;
}

TEST(Authenticator, WithoutKeysEveryoneIsAnonymous) {
  std::string tenant;
  EXPECT_FALSE(Authenticator({}).Check(HttpRequest(), &tenant).has_value());
  EXPECT_EQ(tenant, "anonymous");
}

TEST(Authenticator, KeysNameTenants) {
  const Authenticator auth({"alpha", "beta"});
  std::string tenant;
  EXPECT_FALSE(auth.Check(With("authorization", "Bearer beta"), &tenant).has_value());
  EXPECT_EQ(tenant, "key-1");
  EXPECT_FALSE(auth.Check(With("authorization", "bearer  alpha"), &tenant).has_value());
  EXPECT_EQ(tenant, "key-0");
  EXPECT_FALSE(auth.Check(With("x-api-key", "alpha"), &tenant).has_value());
  for (const char* bad : {"Bearer alph", "Bearer alphaa", "Bearer ", "Basic alpha", "alpha", "Bearer ALPHA"}) {
    const auto e = auth.Check(With("authorization", bad), &tenant);
    ASSERT_TRUE(e.has_value()) << bad;
    EXPECT_EQ(e->status, 401);
    EXPECT_EQ(e->code, "invalid_api_key");
  }
  EXPECT_EQ(auth.Check(HttpRequest(), &tenant)->status, 401);
}

TEST(Authenticator, PublicPathsAreExact) {
  for (const char* p : {"/health", "/live", "/ready", "/metrics", "/version"}) {
    EXPECT_TRUE(Authenticator::IsPublicPath(p));
  }
  for (const char* p : {"/", "/health/", "/healthx", "/v1/models", "//health", "/tokenize", ""}) {
    EXPECT_FALSE(Authenticator::IsPublicPath(p)) << p;
  }
}

}  // namespace
}  // namespace agentserve::gateway
