#include "gateway/decision_json.h"

#include <nlohmann/json.hpp>

namespace agentserve::gateway {
namespace {

namespace pb = router::v1;
using Json = nlohmann::ordered_json;

Json OrNull(const std::string& s) { return s.empty() ? Json(nullptr) : Json(s); }

template <typename Strings>
Json List(const Strings& strings) {
  Json out = Json::array();
  for (const auto& s : strings) out.push_back(s);
  return out;
}

std::string SourceName(common::v1::IdentitySource s) {
  // IDENTITY_SOURCE_CLAUDE_CODE -> claude_code
  constexpr size_t kPrefix = sizeof("IDENTITY_SOURCE_") - 1;
  std::string name = common::v1::IdentitySource_Name(s);
  if (s == common::v1::IDENTITY_SOURCE_UNSPECIFIED || name.size() <= kPrefix) return "none";
  name = name.substr(kPrefix);
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return name;
}

Json TimelineJson(const common::v1::Timeline& t) {
  return {{"dependency_ms", t.dependency_ms()},
          {"queue_ms", t.queue_ms()},
          {"prefill_wait_ms", t.prefill_wait_ms()},
          {"prefill_ms", t.prefill_ms()},
          {"transfer_exposed_ms", t.transfer_exposed_ms()},
          {"transfer_path", OrNull(t.transfer_path())},
          {"transfer_bytes", t.transfer_bytes()},
          {"decode_wait_ms", t.decode_wait_ms()},
          {"decode_ms", t.decode_ms()},
          {"decode_steps", t.decode_steps()},
          {"ttft_ms", t.ttft_ms()},
          {"total_ms", t.total_ms()},
          {"cached_tokens", t.cached_tokens()},
          {"migrations", t.migrations()},
          {"preemptions", t.preemptions()},
          {"prefill_worker", OrNull(t.prefill_worker())},
          {"decode_worker", OrNull(t.decode_worker())}};
}

Json OrderJson(const pb::Decision& d) {
  Json waits = Json::object();
  for (const auto& w : d.waited_for()) waits[w.reason()] = w.count();
  return {{"policy", d.policy()},
          {"tier", d.tier()},
          {"difficulty", d.difficulty()},
          {"predicted_output_tokens", d.predicted_output()},
          {"call_cost", d.call_cost()},
          {"program_attained", d.program_attained()},
          {"program_remaining", d.program_remaining()},
          {"queue_depth_on_arrival", d.queue_depth()},
          {"passed_over", waits},
          {"last_wait", OrNull(d.last_wait())},
          {"pick", OrNull(d.pick())},
          {"overtaken", d.overtaken()}};
}

Json PlaceJson(const pb::Decision& d) {
  Json candidates = Json::array();
  for (const auto& c : d.candidates()) {
    candidates.push_back({{"worker", c.worker_id()},
                          {"verdict", c.verdict()},
                          {"score", c.score()},
                          {"new_tokens", c.new_tokens()},
                          {"batch", c.batch()},
                          {"free_blocks", c.free_blocks()},
                          {"had_last_call", c.sticky()}});
  }
  return {{"decode_worker", OrNull(d.decode_worker())},
          {"prefill_worker", OrNull(d.prefill_worker())},
          {"reason", OrNull(d.place())},
          {"attempt", d.attempt()},
          {"new_tokens", d.new_tokens()},
          {"cached_tokens", d.cached_tokens()},
          {"booked_blocks", d.booked_blocks()},
          {"candidates_seen", d.candidates_seen()},
          {"candidates", candidates},
          {"preempted", List(d.preempted())},
          {"evicted", List(d.evicted())}};
}

Json ToJson(const pb::Decision& d) {
  Json out = {{"object", "agentserve.decision"},
              {"request_id", d.request_id()},
              {"response_id", OrNull(d.response_id())},
              {"client_request_id", OrNull(d.client_request_id())},
              {"state", d.state()},
              {"end_reason", OrNull(d.end_reason())},
              {"end_message", OrNull(d.end_message())},
              {"age_ms", d.age_ms()},
              {"tenant", d.tenant_id()},
              {"program", OrNull(d.program_id())},
              {"program_named_by", SourceName(d.identity())},
              {"parent_program", OrNull(d.parent_program_id())},
              {"workflow_class", OrNull(d.workflow_class())},
              {"call_id", OrNull(d.call_id())},
              {"clamped_hints", List(d.clamped_hints())},
              {"waits_for", List(d.waits_for())},
              {"prompt_tokens", d.prompt_tokens()},
              {"completion_tokens", d.completion_tokens()},
              {"called_tool", OrNull(d.tool_name())}};
  if (d.has_record()) {
    out["order"] = OrderJson(d);
    out["place"] = PlaceJson(d);
  }
  if (d.has_timeline()) out["timeline"] = TimelineJson(d.timeline());
  return out;
}

// Names come from clients: bytes that are no UTF-8 are replaced.
std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

std::string DecisionJson(const pb::Decision& decision) { return Dump(ToJson(decision)); }

std::string DecisionListJson(const pb::ListDecisionsResponse& decisions) {
  Json data = Json::array();
  for (const auto& d : decisions.decisions()) data.push_back(ToJson(d));
  return Dump({{"object", "list"}, {"data", data}});
}

}  // namespace agentserve::gateway
