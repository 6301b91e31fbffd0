#include "gateway/routes.h"

#include <gtest/gtest.h>

#include "gateway/http/target.h"

namespace agentserve::gateway {
namespace {

TEST(Routes, Table) {
  EXPECT_EQ(FindRoute("/v1/chat/completions").id, RouteId::kChat);
  EXPECT_EQ(FindRoute("/v1/models").id, RouteId::kModels);
  EXPECT_EQ(FindRoute("/v1/models/org/name").id, RouteId::kModel);
  EXPECT_EQ(FindRoute("/v1/models/").id, RouteId::kNone);
  EXPECT_EQ(FindRoute("/v1/tokenize").pattern, "/tokenize");
  EXPECT_EQ(FindRoute("/nope").pattern, "unmatched");
  EXPECT_TRUE(TakesMethod(FindRoute("/health"), "HEAD"));
  EXPECT_FALSE(TakesMethod(FindRoute("/health"), "POST"));
  EXPECT_FALSE(TakesMethod(FindRoute("/tokenize"), "GET"));
  EXPECT_NE(RoutesPage().find("/v1/chat/completions"), std::string::npos);
}

TEST(Routes, Agents) {
  EXPECT_EQ(FindRoute("/v1/agentserve/programs/s/a/tool").id, RouteId::kProgramTool);
  EXPECT_EQ(IdOf(RouteId::kProgramTool, "/v1/agentserve/programs/s/a/tool"), "s/a") << "ids may hold slashes";
  EXPECT_EQ(FindRoute("/v1/agentserve/programs/s/a").id, RouteId::kProgram);
  EXPECT_EQ(IdOf(RouteId::kProgram, "/v1/agentserve/programs/s/a"), "s/a");
  EXPECT_EQ(IdOf(RouteId::kDecision, "/v1/agentserve/requests/r/decision"), "r");
  EXPECT_EQ(FindRoute("/v1/agentserve/requests/r").id, RouteId::kNone);
  EXPECT_EQ(FindRoute("/v1/agentserve/programs/").id, RouteId::kNone);
  const Route program = FindRoute("/v1/agentserve/programs/p");
  EXPECT_TRUE(TakesMethod(program, "PUT"));
  EXPECT_TRUE(TakesMethod(program, "DELETE"));
  EXPECT_FALSE(TakesMethod(program, "GET"));
  EXPECT_FALSE(TakesMethod(program, ""));
  EXPECT_EQ(AllowedMethods(program), "PUT, DELETE");
  EXPECT_TRUE(TakesMethod(FindRoute("/v1/agentserve/decisions"), "GET"));
}

TEST(Target, Forms) {
  std::string path, query;
  SplitTarget("/v1/models/a%2Fb?x=1&y", &path, &query);
  EXPECT_EQ(path, "/v1/models/a/b");
  EXPECT_EQ(query, "x=1&y");
  SplitTarget("http://host:1/health/", &path, &query);
  EXPECT_EQ(path, "/health");
  SplitTarget("/a%zz%4", &path, &query);
  EXPECT_EQ(path, "/a%zz%4");
  SplitTarget("http://host", &path, &query);
  EXPECT_EQ(path, "/");
}

}  // namespace
}  // namespace agentserve::gateway
