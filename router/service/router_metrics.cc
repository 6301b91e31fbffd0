#include "router/service/router_metrics.h"

#include <algorithm>

namespace agentserve::router {
namespace {

std::vector<double> TurnBuckets() { return {1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.2, 1}; }
std::vector<double> GbPerSBuckets() { return {0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 400}; }
std::vector<double> ExposedBuckets() { return {1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1, 5}; }

const char* FinishName(FinishReason r) {
  switch (r) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    default:
      return "cancelled";
  }
}

}  // namespace

LocalHistogram::LocalHistogram(prometheus::Histogram& to, std::vector<double> bounds)
    : to_(to), bounds_(std::move(bounds)), counts_(bounds_.size() + 1, 0.0) {}

void LocalHistogram::Observe(double value, double count) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(at)] += count;
  sum_ += value * count;
  dirty_ = true;
}

void LocalHistogram::Flush() {
  if (!dirty_) return;
  to_.ObserveMultiple(counts_, sum_);
  std::fill(counts_.begin(), counts_.end(), 0.0);
  sum_ = 0;
  dirty_ = false;
}

RouterMetrics::RouterMetrics(const std::string& model_id)
    : metrics_({{"model_name", model_id}}),
      h_ttft_(metrics_.Histogram("agentserve_router_time_to_first_token_seconds",
                                 "From arrival at the router to the first token", base::TtftBuckets())),
      h_itl_(metrics_.Histogram("agentserve_router_inter_token_latency_seconds",
                                "Time between steps of a decode worker, once per token", base::ItlBuckets())),
      h_turn_(metrics_.Histogram("agentserve_router_loop_turn_seconds", "Time of one turn of the router's loop",
                                 TurnBuckets())),
      itl_(h_itl_, base::ItlBuckets()),
      turn_(h_turn_, TurnBuckets()),
      e2e_(metrics_.Histogram("agentserve_router_request_duration_seconds", "From arrival to the terminal event",
                              base::E2eBuckets())),
      queue_time_(metrics_.Histogram("agentserve_router_queue_time_seconds", "From arrival to the first dispatch",
                                     base::TtftBuckets())),
      prompt_tokens_(metrics_.Histogram("agentserve_router_prompt_tokens", "Prompt length of ended requests",
                                        base::TokenCountBuckets())),
      output_tokens_(metrics_.Histogram("agentserve_router_output_tokens", "Output length of ended requests",
                                        base::TokenCountBuckets())) {
  for (int i = 0; i < kNumEndReasons; ++i) {
    ended_[static_cast<size_t>(i)] =
        &metrics_.Counter("agentserve_router_requests_ended_total", "Accepted requests by how they ended",
                          {{"reason", EndReasonName(static_cast<EndReason>(i))}});
  }
  for (FinishReason r : {FinishReason::kStop, FinishReason::kLength}) {
    metrics_.Counter("agentserve_router_sequences_finished_total", "Finished sequences by reason",
                     {{"finish_reason", FinishName(r)}});
  }
}

void RouterMetrics::OnRequestEnd(const RequestDone& done) {
  ended_[static_cast<size_t>(done.reason)]->Increment();
  e2e_.Observe(done.timeline.total_ms / 1e3);
  prompt_tokens_.Observe(done.prompt_tokens);
  if (done.completion_tokens == 0) return;
  output_tokens_.Observe(done.completion_tokens);
  queue_time_.Observe(done.timeline.queue_ms / 1e3);
  h_ttft_.Observe(done.timeline.ttft_ms / 1e3);
}

void RouterMetrics::OnRefused(std::string_view reason) {
  metrics_
      .Counter("agentserve_router_requests_refused_total", "Requests refused before acceptance, by reason",
               {{"reason", std::string(reason)}})
      .Increment();
}

void RouterMetrics::OnFinishReason(FinishReason reason) {
  metrics_
      .Counter("agentserve_router_sequences_finished_total", "Finished sequences by reason",
               {{"finish_reason", FinishName(reason)}})
      .Increment();
}

void RouterMetrics::OnTransfer(const std::string& path, uint64_t bytes, double gb_per_s, double exposed_ms) {
  const std::string label = path == "mapped" || path == "staged" || path == "stream" ? path : "recompute";
  metrics_.Counter("agentserve_router_kv_transfer_bytes_total", "KV bytes pulled by decode workers", {{"path", label}})
      .Increment(static_cast<double>(bytes));
  metrics_
      .Histogram("agentserve_router_kv_transfer_gb_per_second", "Rate of KV copies, GB/s", GbPerSBuckets(),
                 {{"path", label}})
      .Observe(gb_per_s);
  metrics_
      .Histogram("agentserve_router_kv_transfer_exposed_seconds", "Transfer time that prefill did not hide",
                 ExposedBuckets(), {{"path", label}})
      .Observe(exposed_ms / 1e3);
}

void RouterMetrics::PublishIdentity(const RouterCore& core) {
  const IdentityStats& s = core.identity_stats();
  const auto add = [this](const char* name, const char* help, uint64_t now, uint64_t* before,
                          const base::Labels& labels = {}) {
    metrics_.Counter(name, help, labels).Increment(static_cast<double>(now - *before));
    *before = now;
  };
  for (int i = 0; i < kNumIdentities; ++i) {
    add("agentserve_router_calls_identified_total", "Calls by what named their program", s.identified[i],
        &last_identity_.identified[i], {{"source", IdentityName(static_cast<Identity>(i))}});
  }
  for (int i = 0; i < kNumClamped; ++i) {
    add("agentserve_router_hints_clamped_total", "Hints cut to the tenant's terms", s.clamped[i],
        &last_identity_.clamped[i], {{"hint", ClampedName(static_cast<Clamped>(i))}});
  }
  const char* const graph = "agentserve_router_dependent_calls_total";
  const char* const help =
      "Calls with depends_on by what became of them at first: waited, refused (circle, too many), "
      "or ended because a name stayed unknown";
  add(graph, help, s.graph_waits, &last_identity_.graph_waits, {{"outcome", "waited"}});
  add(graph, help, s.graph_refused, &last_identity_.graph_refused, {{"outcome", "refused"}});
  add(graph, help, s.graph_unknown, &last_identity_.graph_unknown, {{"outcome", "unknown"}});
  metrics_.Gauge("agentserve_router_waiting_requests", "Requests waiting for calls or programs they depend on")
      .Set(static_cast<double>(core.graph().waiting()));
}

void RouterMetrics::PublishDecisions(const RouterCore& core) {
  const DecisionStats& s = core.decision_stats();
  const auto add = [this](const char* name, const char* help, uint64_t now, uint64_t* before,
                          const base::Labels& labels = {}) {
    metrics_.Counter(name, help, labels).Increment(static_cast<double>(now - *before));
    *before = now;
  };
  for (int i = 0; i < kNumWaitReasons; ++i) {
    add("agentserve_router_decision_waits_total", "Times a decision passed a call over, by reason", s.wait[i],
        &last_decisions_.wait[i], {{"reason", WaitReasonName(static_cast<WaitReason>(i))}});
  }
  for (int i = 0; i < kNumPickReasons; ++i) {
    add("agentserve_router_decision_picks_total", "Calls handed out, by why it was their turn", s.pick[i],
        &last_decisions_.pick[i], {{"reason", PickReasonName(static_cast<PickReason>(i))}});
  }
  for (int i = 0; i < kNumPlaceReasons; ++i) {
    add("agentserve_router_decision_places_total", "Calls handed out, by why prefill runs where it does", s.place[i],
        &last_decisions_.place[i], {{"reason", PlaceReasonName(static_cast<PlaceReason>(i))}});
  }
  add("agentserve_router_decision_preemptions_total", "Calls that gave way to another", s.preemptions,
      &last_decisions_.preemptions);
  add("agentserve_router_decision_overtakes_total", "Calls handed out before one that fitted nowhere", s.overtakes,
      &last_decisions_.overtakes);
}

void RouterMetrics::Publish(const RouterCore& core, TimeNs) {
  itl_.Flush();
  turn_.Flush();
  PublishIdentity(core);
  PublishDecisions(core);
  const CoreStats& s = core.stats();
  auto add = [this](const char* name, const char* help, uint64_t now, uint64_t before,
                    const base::Labels& labels = {}) {
    metrics_.Counter(name, help, labels).Increment(static_cast<double>(now - before));
  };
  add("agentserve_router_requests_accepted_total", "Requests accepted", s.accepted, last_.accepted);
  add("agentserve_router_generation_tokens_total", "Tokens generated", s.tokens, last_.tokens);
  add("agentserve_router_prompt_tokens_total", "Prompt tokens of accepted requests", s.prompt_tokens,
      last_.prompt_tokens);
  add("agentserve_router_prefix_hit_tokens_total", "Prompt tokens served from caches", s.prefix_hit_tokens,
      last_.prefix_hit_tokens);
  add("agentserve_router_placements_total", "Dispatches by where the prompt is computed", s.placed_local,
      last_.placed_local, {{"prefill", "local"}});
  add("agentserve_router_placements_total", "Dispatches by where the prompt is computed", s.placed_remote,
      last_.placed_remote, {{"prefill", "remote"}});
  add("agentserve_router_migrations_total", "Sequences moved to another worker", s.migrations, last_.migrations);
  add("agentserve_router_poisoned_total", "Requests refused after their workers crashed", s.poisoned, last_.poisoned);
  add("agentserve_router_late_messages_total", "Messages of workers that were out of date", s.late_messages,
      last_.late_messages);
  add("agentserve_router_workers_lost_total", "Workers lost", s.workers_lost, last_.workers_lost);
  last_ = s;
  const RetentionStats& kv = core.retention().stats();
  for (size_t i = 0; i < kNumRetainReasons; ++i) {
    add("agentserve_router_kv_decisions_total", "Words to workers on where a waiting program's KV is kept, by reason",
        kv.decisions[i], last_kv_.decisions[i], {{"reason", RetainReasonName(static_cast<RetainReason>(i))}});
  }
  last_kv_ = kv;
  auto set = [this](const char* name, const char* help, double v, const base::Labels& labels = {}) {
    metrics_.Gauge(name, help, labels).Set(v);
  };
  set("agentserve_router_queued_requests", "Requests waiting for a worker", core.queued_requests());
  set("agentserve_router_queued_tokens", "Prompt tokens of waiting requests",
      static_cast<double>(core.queued_tokens()));
  set("agentserve_router_running_requests", "Requests dispatched and not ended",
      core.live_requests() - core.queued_requests());
  set("agentserve_router_programs", "Programs remembered", static_cast<double>(core.programs().size()));
  std::map<std::string, double> states;
  for (const char* role : {"prefill", "decode"}) {
    for (const char* state : {"connecting", "ready", "draining"}) states[std::string(role) + "/" + state] = 0;
  }
  for (const auto& [id, w] : core.workers().all()) {
    const std::string role = w.info.role == Role::kPrefill ? "prefill" : "decode";
    const char* state = w.phase == WorkerPhase::kReady      ? "ready"
                        : w.phase == WorkerPhase::kDraining ? "draining"
                                                            : "connecting";
    ++states[role + "/" + state];
  }
  for (const auto& [key, count] : states) {
    const size_t slash = key.find('/');
    set("agentserve_router_workers", "Workers by role and state", count,
        {{"role", key.substr(0, slash)}, {"state", key.substr(slash + 1)}});
  }
}

}  // namespace agentserve::router
