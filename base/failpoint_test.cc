#include "base/failpoint.h"

#include <gtest/gtest.h>

namespace agentserve::base {
namespace {

TEST(Failpoint, FiresAtTheNthVisitOnly) {
  EXPECT_FALSE(FailpointFires("a"));
  ASSERT_TRUE(ArmFailpoints("a=2,b=0").ok());
  EXPECT_FALSE(FailpointFires("a"));
  EXPECT_TRUE(FailpointFires("a"));
  EXPECT_FALSE(FailpointFires("a"));
  EXPECT_TRUE(FailpointFires("b"));
  EXPECT_TRUE(FailpointFires("b"));
  EXPECT_FALSE(FailpointFires("c"));
  ASSERT_TRUE(ArmFailpoints("").ok());
  EXPECT_FALSE(FailpointFires("b"));
}

TEST(Failpoint, RefusesNonsense) {
  EXPECT_FALSE(ArmFailpoints("a").ok());
  EXPECT_FALSE(ArmFailpoints("a=x").ok());
  EXPECT_FALSE(ArmFailpoints("=1").ok());
}

TEST(FailpointDeath, ExitsAsACrashWould) {
  EXPECT_EXIT(
      {
        (void)ArmFailpoints("x=1");
        FailpointExit("x");
      },
      testing::ExitedWithCode(134), "failpoint.fires");
}

}  // namespace
}  // namespace agentserve::base
