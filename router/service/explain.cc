#include "router/service/explain.h"

#include <algorithm>

#include "router/service/convert.h"

namespace agentserve::router {
namespace {

const char* DifficultyName(uint32_t d) { return d == 0 ? "easy" : d == 1 ? "medium" : "hard"; }

void FillRecord(const DecisionRecord& r, v1::Decision* out) {
  out->set_has_record(true);
  out->set_policy(r.policy);
  out->set_attempt(r.attempt);
  if (r.decided_at > 0) out->set_decided_after_ms(base::ToMs(r.decided_at - r.arrival));
  out->set_tier(r.tier);
  out->set_difficulty(DifficultyName(r.difficulty));
  out->set_predicted_output(r.predicted_output);
  out->set_call_cost(r.call_cost);
  out->set_program_attained(r.program_attained);
  out->set_program_remaining(r.program_remaining);
  out->set_queue_depth(r.queue_depth);
  if (r.decided_at > 0) out->set_pick(PickReasonName(r.pick));
  out->set_overtaken(r.overtaken);
  for (int i = 0; i < kNumWaitReasons; ++i) {
    const uint32_t count = r.waited_for[static_cast<size_t>(i)];
    if (count == 0) continue;
    auto* w = out->add_waited_for();
    w->set_reason(WaitReasonName(static_cast<WaitReason>(i)));
    w->set_count(count);
  }
  if (r.last_wait) out->set_last_wait(WaitReasonName(*r.last_wait));
  for (const Candidate& c : r.candidates) {
    auto* o = out->add_candidates();
    o->set_worker_id(c.name);
    o->set_verdict(VerdictName(c.verdict));
    o->set_new_tokens(c.new_tokens);
    o->set_batch(c.batch);
    o->set_free_blocks(c.free_blocks);
    o->set_score(c.score);
    o->set_sticky(c.sticky);
  }
  out->set_candidates_seen(r.candidates_seen);
  out->set_new_tokens(r.new_tokens);
  out->set_cached_tokens(r.cached_tokens);
  out->set_booked_blocks(r.booked_blocks);
  if (r.decided_at > 0) {
    out->set_place(PlaceReasonName(r.place));
    out->set_decode_worker(r.decode_worker);
    out->set_prefill_worker(r.prefill_worker);
  }
  for (const auto& id : r.preempted) out->add_preempted(id);
  for (const auto& what : r.evicted) out->add_evicted(what);
}

}  // namespace

common::v1::IdentitySource ToProto(Identity i) { return static_cast<common::v1::IdentitySource>(i); }

Identity ToIdentity(common::v1::IdentitySource s) {
  static_assert(static_cast<int>(Identity::kNew) == common::v1::IDENTITY_SOURCE_NEW);
  static_assert(static_cast<int>(Identity::kOpenCode) == common::v1::IDENTITY_SOURCE_OPENCODE);
  static_assert(static_cast<int>(Identity::kCacheKey) == common::v1::IDENTITY_SOURCE_CACHE_KEY);
  return s >= 0 && s < kNumIdentities ? static_cast<Identity>(s) : Identity::kNone;
}

void FillDecision(const RequestNote& note, const RouterCore& core, TimeNs now, v1::Decision* out) {
  out->set_request_id(note.request_id);
  out->set_response_id(note.response_id);
  out->set_client_request_id(note.label);
  out->set_tenant_id(note.tenant);
  out->set_program_id(note.program);
  out->set_parent_program_id(note.parent);
  out->set_identity(ToProto(note.identity));
  out->set_workflow_class(note.workflow_class);
  out->set_call_id(note.call_id);
  for (int i = 0; i < kNumClamped; ++i) {
    if (Has(note.clamped, static_cast<Clamped>(i))) out->add_clamped_hints(ClampedName(static_cast<Clamped>(i)));
  }
  out->set_age_ms(static_cast<uint64_t>(std::max<TimeNs>(0, now - note.arrival) / base::kNsPerMs));
  out->set_prompt_tokens(note.prompt_tokens);
  out->set_completion_tokens(note.completion_tokens);
  out->set_tool_name(note.tool);
  std::optional<DecisionRecord> record;
  if (!note.ended) {
    record = core.DecisionOf(note.key);
  } else if (const DecisionRecord* kept = core.decisions().Find(note.request_id)) {
    record = *kept;
  }
  if (record) FillRecord(*record, out);
  if (note.ended) {
    out->set_state("ended");
    out->set_end_reason(EndReasonName(note.reason));
    out->set_end_message(note.message);
    FillTimeline(note.timeline, out->mutable_timeline());
  } else if (core.graph().Waits(note.key)) {
    out->set_state("waiting");
    for (const auto& name : core.WaitsFor(note.key).names) out->add_waits_for(name);
  } else {
    out->set_state(record && record->decided_at > 0 ? "running" : "queued");
  }
}

}  // namespace agentserve::router
