#include "decode_worker/service.h"

#include <utility>

#include "base/check.h"
#include "decode_worker/wire.h"
#include "kvstore/transport/peer_proto.h"

namespace agentserve::decode_worker {

using base::Field;
using engine::SeqId;

namespace {

// bytes / 1e9 / second; 0 when nothing was copied.
double Rate(uint64_t bytes, base::TimeNs ns) {
  return ns <= 0 ? 0 : static_cast<double>(bytes) / static_cast<double>(ns);
}

}  // namespace

PullMetrics::PullMetrics(base::Metrics* m)
    : metrics_(m),
      exposed_seconds_(m->Histogram("agentserve_kv_transfer_exposed_seconds",
                                    "Admit to KV ready: what the overlap with prefill did not hide.",
                                    base::ItlBuckets())),
      ok_(m->Counter("agentserve_kv_pulls_total", "Pulls of prompts' KV.", {{"outcome", "ok"}})),
      invalid_(m->Counter("agentserve_kv_pulls_total", "Pulls of prompts' KV.", {{"outcome", "invalid"}})),
      failed_(m->Counter("agentserve_kv_pulls_total", "Pulls of prompts' KV.", {{"outcome", "failed"}})),
      validation_failures_(m->Counter("agentserve_kv_validation_failures_total",
                                      "Copies that were not what their owner had sealed; each was recomputed.")),
      recomputes_(m->Counter("agentserve_kv_recomputes_total",
                             "Prompts prefilled here although a prefill worker had done it.")) {
  for (const char* transport : {"mapped", "staged", "stream"}) {
    bytes_[transport] =
        &m->Counter("agentserve_kv_transfer_bytes_total", "KV bytes copied from peers.", {{"transport", transport}});
    rate_[transport] = &m->Gauge("agentserve_kv_transfer_gb_per_s", "Rate of the latest copy, bytes / 1e9 / second.",
                                 {{"transport", transport}});
  }
}

void PullMetrics::OnReady(const KvReady& ready) {
  exposed_seconds_.Observe(static_cast<double>(ready.exposed_ns) / 1e9);
  if (const auto it = bytes_.find(ready.transport); it != bytes_.end()) {
    it->second->Increment(static_cast<double>(ready.bytes));
    if (ready.copy_ns > 0) rate_[ready.transport]->Set(Rate(ready.bytes, ready.copy_ns));
  }
}

void PullMetrics::OnPeer(const PeerStatus& status) {
  for (const char* transport : {"mapped", "staged", "stream"}) {
    metrics_
        ->Gauge("agentserve_kv_peer_gb_per_s", "Rate measured by the probe of this peer; 0 = this path is not used.",
                {{"peer", status.worker_id}, {"transport", transport}})
        .Set(status.transport == transport ? status.gb_per_s : 0);
  }
}

void PullMetrics::Update(const CoreStats& stats) {
  ok_.Increment(static_cast<double>(stats.pulls_ok - last_.pulls_ok));
  invalid_.Increment(static_cast<double>(stats.pulls_invalid - last_.pulls_invalid));
  validation_failures_.Increment(static_cast<double>(stats.pulls_invalid - last_.pulls_invalid));
  failed_.Increment(static_cast<double>(stats.pulls_failed - last_.pulls_failed));
  recomputes_.Increment(static_cast<double>(stats.recomputes - last_.recomputes));
  last_ = stats;
}

Loop::Loop(const worker::RunLoopOptions& options, const Options& core, const kvstore::PeerOptions& peers,
           std::unique_ptr<worker::HostStore> host)
    : RunLoop(options),
      context_length_(core.planner.context_length),
      core_(core),
      pull_metrics_(options.metrics),
      tier_metrics_(options.metrics, options.pool->layout().BlockBytes()),
      pullers_(peers, options.pool,
               {[this](PullEnded ended) { PostInternal(std::move(ended)); },
                [this](PeerStatus status) { PostInternal(std::move(status)); }}),
      host_(std::move(host)) {
  if (host_) host_->Start([this](CopyEnded ended) { PostInternal(ended); });
}

void Loop::OnCommand(const Wire& from, const wire::RunRequest& request, base::TimeNs now) {
  if (request.has_connect_peer()) {
    const kvstore::PeerEndpoint peer = kvstore::FromProto(request.connect_peer().endpoint());
    peer_askers_[peer.worker_id] = from.session;
    if (peer_askers_.size() > 4 * Pullers::kMaxPeers) peer_askers_.erase(peer_askers_.begin());
    return pullers_.ConnectPeer(peer);
  }
  if (request.has_reserve()) {
    const SeqId id = Mint(from, now);
    Reserve reserve;
    reserve.spec = worker::SpecFromWire(request.reserve(), id, context_length_);
    reserve.budget_ns = worker::BudgetNs(request.reserve().budget_ms());
    AS_LOG(kDebug, "decode.reserve") << Field("request", request.reserve().request_id()) << Field("seq", from.seq)
                                     << Field("tokens", request.reserve().tokens_size());
    core_.Step(reserve, now);
    return;
  }
  if (request.has_retain() || request.has_prefetch()) {
    const std::optional<SeqId> id = table_.FindOrRemembered(from);
    if (!id) return;
    if (request.has_retain()) core_.Step(Retain{*id, FromWire(request.retain())}, now);
    if (request.has_prefetch()) core_.Step(Prefetch{*id, worker::BudgetNs(request.prefetch().ttl_ms())}, now);
    return;
  }
  const std::optional<SeqId> id = table_.Find(from);
  if (!id) return;  // over, or another attempt
  if (request.has_attach()) core_.Step(Attach{*id, FromWire(request.attach().kv())}, now);
  if (request.has_admit()) core_.Step(Admit{*id, request.admit().first_token(), FromWire(request.admit().kv())}, now);
  if (request.has_prefill_local()) core_.Step(PrefillLocal{*id}, now);
  if (request.has_preempt()) core_.Step(Preempt{*id}, now);
  if (request.has_cancel()) core_.Step(Cancel{*id}, now);
}

void Loop::OnInternal(InternalEvent event, base::TimeNs now) {
  if (const PullEnded* ended = std::get_if<PullEnded>(&event)) {
    pullers_.Forget(ended->seq);
    core_.Step(*ended, now);
  } else if (const CopyEnded* copied = std::get_if<CopyEnded>(&event)) {
    core_.Step(*copied, now);
    tier_metrics_.Update(core_.tiers(), core_.pool());
  } else {
    AnswerPeer(std::get<PeerStatus>(event));
  }
}

void Loop::AnswerPeer(const PeerStatus& status) {
  pull_metrics_.OnPeer(status);
  wire::RunResponse response;
  wire::PeerConnected* connected = response.mutable_peer_connected();
  connected->set_worker_id(status.worker_id);
  connected->set_incarnation(status.incarnation);
  connected->set_transport(status.transport);
  connected->set_gb_per_s(status.gb_per_s);
  connected->set_problem(status.problem);
  if (const auto it = peer_askers_.find(status.worker_id); it != peer_askers_.end()) {
    SendToSession(it->second, std::move(response));
  }
}

void Loop::OnStepDone(absl::Status status, engine::StepOutput output, std::vector<uint64_t> digests,
                      base::TimeNs started, base::TimeNs ended) {
  last_step_ms_ = base::ToMs(ended - started);
  core_.Step(StepDone{std::move(status), std::move(output), std::move(digests)}, ended);
  core_.set_prefill_rate(step_metrics_.prefill_tokens_per_s());
  pull_metrics_.Update(core_.core_stats());
  tier_metrics_.Update(core_.tiers(), core_.pool());
}

void Loop::ApplyEffects(base::TimeNs) {
  for (Effect& effect : core_.TakeEffects()) std::visit([&](auto& e) { Apply(e); }, effect);
}

void Loop::Apply(const Reserved& e) {
  wire::RunResponse response;
  response.mutable_reserved()->set_cached_tokens(e.cached_tokens);
  response.mutable_reserved()->set_host_tokens(e.host_tokens);
  SendTo(e.seq, std::move(response));
}

void Loop::Apply(HostCopy& e) {
  AS_CHECK(host_ != nullptr) << "the core copies to a host tier that does not exist";
  host_->Post(std::move(e));
}

void Loop::Apply(const KvReady& e) {
  pull_metrics_.OnReady(e);
  wire::RunResponse response;
  wire::KvReady* ready = response.mutable_kv_ready();
  ready->set_bytes(e.bytes);
  ready->set_transport(e.transport);
  ready->set_gb_per_s(Rate(e.bytes, e.copy_ns));
  ready->set_exposed_ms(base::ToMs(e.exposed_ns));
  SendTo(e.seq, std::move(response));
}

void Loop::Apply(const StepTokens& e) {
  // One message per router.
  std::map<worker::SessionId, wire::RunResponse> by_session;
  for (const TokenOut& t : e.tokens) {
    const Wire* to = table_.WireOf(t.token.seq);
    if (to == nullptr) continue;
    wire::SeqToken* out = by_session[to->session].mutable_step_result()->add_tokens();
    out->set_seq(to->seq);
    out->set_attempt(to->attempt);
    out->set_token(t.token.token);
    if (t.token.has_logprobs) worker::ToWire(t.token, out->mutable_logprobs());
    out->set_finish(worker::ToWire(t.finish));
  }
  for (auto& [session, response] : by_session) {
    response.mutable_step_result()->set_step(e.step);
    response.mutable_step_result()->set_step_ms(last_step_ms_);
    SendToSession(session, std::move(response));
  }
}

void Loop::Apply(const Finished& e) {
  tier_metrics_.OnHit(e.cached_tokens, e.host_tokens);
  if (e.prefill_ns > 0) step_metrics_.OnPrefill(e.prefill_wait_ns, e.prefill_ns);
  wire::RunResponse response;
  wire::Finished* finished = response.mutable_finished();
  finished->set_steps(e.steps);
  finished->set_cached_tokens(e.cached_tokens);
  finished->set_host_tokens(e.host_tokens);
  finished->set_prefill_wait_ms(base::ToMs(e.prefill_wait_ns));
  finished->set_prefill_ms(base::ToMs(e.prefill_ns));
  finished->set_decode_wait_ms(base::ToMs(e.decode_wait_ns));
  finished->set_decode_ms(base::ToMs(e.decode_ns));
  finished->set_preemptions(e.preemptions);
  SendTo(e.seq, std::move(response));
}

void Loop::Apply(const Failed& e) {
  step_metrics_.OnFailure(e.failure.reason);
  AS_LOG(kWarn, "decode.failed") << Field("reason", e.failure.reason) << Field("message", e.failure.message);
  wire::RunResponse response;
  response.mutable_failed()->set_code(static_cast<uint32_t>(e.failure.code));
  response.mutable_failed()->set_reason(e.failure.reason);
  response.mutable_failed()->set_message(e.failure.message);
  SendTo(e.seq, std::move(response));
}

}  // namespace agentserve::decode_worker
