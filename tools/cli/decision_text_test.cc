#include "tools/cli/decision_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace agentserve::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

router::v1::Decision Full() {
  router::v1::Decision d;
  d.set_request_id("9f3c");
  d.set_response_id("chatcmpl-1");
  d.set_state("ended");
  d.set_end_reason("done");
  d.set_tenant_id("team-a");
  d.set_program_id("auto-1");
  d.set_identity(common::v1::IDENTITY_SOURCE_PREFIX);
  d.add_clamped_hints("priority");
  d.set_has_record(true);
  d.set_policy("agent");
  d.set_difficulty("easy");
  d.set_pick("oldest_program");
  auto* w = d.add_waited_for();
  w->set_reason("no_slot");
  w->set_count(2);
  w = d.add_waited_for();
  w->set_reason("a_reason_of_tomorrow");
  w->set_count(1);
  d.set_place("remote");
  d.set_decode_worker("decode-1");
  d.set_prefill_worker("prefill-0");
  auto* c = d.add_candidates();
  c->set_worker_id("decode-1");
  c->set_verdict("chosen");
  c->set_score(288);
  c = d.add_candidates();
  c->set_worker_id("decode-0");
  c->set_verdict("no_slot");
  d.set_candidates_seen(5);
  d.add_preempted("other");
  d.mutable_timeline()->set_queue_ms(25);
  d.mutable_timeline()->set_decode_ms(75);
  d.mutable_timeline()->set_total_ms(100);
  return d;
}

TEST(DecisionText, SaysEverything) {
  const std::string t = DecisionText(Full());
  for (const char* part :
       {"9f3c", "reply chatcmpl-1", "ended: done after 100.0 ms",
        "named by its prompt, which continues an earlier call", "tenant team-a", "hints cut priority",
        "passed over 2 times: no_slot (all batches were full)", "passed over 1 time: a_reason_of_tomorrow",
        "oldest_program (a turn kept for the oldest program", "decode on decode-1, prefill on prefill-0",
        "remote (cold or long", "* decode-1", "and 3 more", "gave way  other", "queue               25.0 ms"}) {
    EXPECT_THAT(t, HasSubstr(part));
  }
  EXPECT_THAT(t, Not(HasSubstr("KV transfer"))) << "what took no time is left out";
}

TEST(DecisionText, ACallThatWaitsForOthers) {
  router::v1::Decision d;
  d.set_request_id("r");
  d.set_state("waiting");
  d.set_age_ms(1500);
  d.add_waits_for("map-1");
  d.add_waits_for("map-2");
  const std::string t = DecisionText(d);
  EXPECT_THAT(t, HasSubstr("waiting for 1500.0 ms"));
  EXPECT_THAT(t, HasSubstr("waits for map-1, map-2"));
  EXPECT_THAT(t, HasSubstr("not queued yet"));
}

TEST(DecisionText, NamesCannotPlayWithTheTerminal) {
  router::v1::Decision d = Full();
  d.set_program_id("evil\x1b[2J\x07");
  EXPECT_THAT(DecisionText(d), HasSubstr("evil?[2J?"));
  EXPECT_THAT(DecisionLine(d), HasSubstr("evil?[2J?"));
  d.set_request_id(std::string(10'000, 'x'));
  EXPECT_LT(DecisionLine(d).size(), 500U);
}

}  // namespace
}  // namespace agentserve::tools
