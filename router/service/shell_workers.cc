// The shell's side of workers: registration, links, messages, and what WatchCluster shows.
#include <algorithm>

#include "base/log.h"
#include "base/strings.h"
#include "router/service/convert.h"
#include "router/service/shell.h"

namespace agentserve::router {

using base::Field;

namespace {

constexpr TimeNs kHelloTimeout = 5 * base::kNsPerSecond;

const char* RoleName(Role r) { return r == Role::kPrefill ? "prefill" : "decode"; }
const char* PhaseName(WorkerPhase p) {
  switch (p) {
    case WorkerPhase::kReady:
      return "ready";
    case WorkerPhase::kDraining:
      return "draining";
    default:
      return "connecting";
  }
}

grpc::Status WorkerStatus(const absl::Status& s) {
  Rejection r;
  r.code = static_cast<grpc::StatusCode>(s.code());
  r.reason = absl::IsFailedPrecondition(s) ? "WORKER_MISMATCH" : absl::StatusCodeToString(s.code());
  r.message = base::MessageOf(s);
  return ToGrpc(r);
}

}  // namespace

grpc::Status Shell::Register(const v1::RegisterRequest& req, v1::RegisterResponse* out) {
  if (req.role() != v1::WORKER_ROLE_PREFILL && req.role() != v1::WORKER_ROLE_DECODE) {
    return ToGrpc(InvalidField("role", "must be WORKER_ROLE_PREFILL or WORKER_ROLE_DECODE"));
  }
  const WorkerInfo info = ToWorkerInfo(req);
  if (req.model_id() != model_.model_id) {
    return WorkerStatus(absl::FailedPreconditionError(
        base::StrCat("worker \"", info.name, "\" serves model \"", info.model_id, "\", but this router serves \"",
                     model_.model_id, "\"; start both with the same --model and --model-id")));
  }
  const WorkerTable& table = core_->workers();
  const size_t before = table.all().size();
  absl::StatusOr<WorkerId> id = core_->RegisterWorker(info, now());
  if (!id.ok()) {
    // A refused worker asks again with each heartbeat: one line a second is enough.
    if (now_ - last_refusal_log_ >= base::kNsPerSecond) {
      last_refusal_log_ = now_;
      AS_LOG(kWarn, "worker.refused") << Field("worker", info.name) << Field("reason", base::MessageOf(id.status()));
    }
    return WorkerStatus(id.status());
  }
  if (endpoints_.count(*id) == 0) {
    AS_LOG(kInfo, "worker.registered") << Field("worker", info.name) << Field("role", RoleName(info.role))
                                       << Field("address", info.address) << Field("blocks", info.num_blocks)
                                       << Field("max_batch", info.max_batch) << Field("known_before", before);
    layout_fingerprint_ = info.layout_fingerprint;
    block_tokens_ = info.block_tokens;
    std::erase_if(endpoints_, [&](const auto& e) { return table.Find(e.first) == nullptr; });
  }
  endpoints_[*id] = req.endpoint();
  out->set_router_incarnation(incarnation_);
  out->set_heartbeat_ms(static_cast<uint32_t>(config_.core.heartbeat / base::kNsPerMs));
  out->set_lease_ms(static_cast<uint32_t>(config_.core.lease / base::kNsPerMs));
  return grpc::Status::OK;
}

grpc::Status Shell::Drain(const v1::DrainRequest& req, v1::DrainResponse* out) {
  absl::StatusOr<uint32_t> running = core_->DrainWorker(req.worker_id(), now());
  if (!running.ok()) return WorkerStatus(running.status());
  AS_LOG(kInfo, "worker.draining") << Field("worker", req.worker_id()) << Field("running", *running);
  out->set_running(*running);
  return grpc::Status::OK;
}

// ---- links ----

void Shell::OpenLink(WorkerId w) {
  const Worker* worker = core_->workers().Find(w);
  if (worker == nullptr || closing_) return;
  CloseLink(w);
  const uint64_t generation = next_generation_++;
  LinkCallbacks callbacks;
  callbacks.on_message = [this, w, generation](std::shared_ptr<WorkerMessage> m) {
    loop_.Post([this, w, generation, m = std::move(m)] { OnMessage(w, generation, *m); });
  };
  callbacks.on_down = [this, w, generation](grpc::Status status) {
    loop_.Post([this, w, generation, status] { OnLinkDown(w, generation, status); });
    std::lock_guard lock(gate_.mu);
    if (--gate_.open == 0) gate_.none_left.notify_all();
  };
  {
    std::lock_guard lock(gate_.mu);
    ++gate_.open;
  }
  Link link;
  link.generation = generation;
  link.opened = now_;
  link.link = WorkerLink::Open(worker->info.role, worker->info.address, incarnation_, worker->info.incarnation,
                               std::move(callbacks));
  links_[w] = std::move(link);
}

void Shell::CloseLink(WorkerId w) {
  auto it = links_.find(w);
  if (it == links_.end()) return;
  it->second.link->Close();
  links_.erase(it);
}

void Shell::CheckLinks() {
  for (auto& [id, l] : links_) {
    if (l.hello || now_ - l.opened < kHelloTimeout) continue;
    l.link->Close();  // on_down follows, and the core tries again
  }
}

void Shell::ApplyCommand(const Command& c) {
  auto it = links_.find(c.worker);
  if (it == links_.end() || !it->second.hello) return;
  const common::v1::KvEndpoint* peer = nullptr;
  if (c.kind == CommandKind::kConnectPeer) {
    auto e = endpoints_.find(c.peer);
    if (e == endpoints_.end()) return;
    peer = &e->second;
  }
  it->second.link->Send(c, peer);
}

void Shell::OnLinkDown(WorkerId w, uint64_t generation, const grpc::Status& status) {
  auto it = links_.find(w);
  if (it == links_.end() || it->second.generation != generation) return;
  const Worker* worker = core_->workers().Find(w);
  if (worker != nullptr && (it->second.hello || worker->link_failures == 0)) {
    AS_LOG(kInfo, "worker.link_down") << Field("worker", worker->info.name) << Field("code", status.error_code())
                                      << Field("reason", status.error_message())
                                      << Field("sequences", worker->sequences.size());
  }
  links_.erase(it);
  now_ = clock_.Now();
  core_->OnLinkDown(w, now_);
}

// ---- messages ----

void Shell::OnMessage(WorkerId w, uint64_t generation, WorkerMessage& message) {
  auto it = links_.find(w);
  if (it == links_.end() || it->second.generation != generation) return;
  now_ = clock_.Now();
  const std::shared_ptr<WorkerLink> link = it->second.link;
  if (auto* p = std::get_if<prefill::v1::RunResponse>(&message)) {
    OnPrefillMessage(w, *p);
  } else {
    OnDecodeMessage(w, std::get<decode::v1::RunResponse>(message));
  }
  link->Processed();
}

template <typename Hello>
void Shell::OnHello(WorkerId w, const Hello& hello) {
  const Worker* worker = core_->workers().Find(w);
  auto it = links_.find(w);
  if (worker == nullptr || it == links_.end()) return;
  if (hello.incarnation() != worker->info.incarnation) {
    AS_LOG(kWarn, "worker.wrong_incarnation")
        << Field("worker", worker->info.name) << Field("address", worker->info.address)
        << Field("answered_by", hello.worker_id());
    it->second.link->Close();
    return;
  }
  it->second.hello = true;
  core_->OnLinkUp(w, now_);
  AS_LOG(kInfo, "worker.ready") << Field("worker", worker->info.name) << Field("role", RoleName(worker->info.role));
}

void Shell::OnPrefillMessage(WorkerId w, prefill::v1::RunResponse& m) {
  const SeqId seq(m.seq());
  const uint32_t attempt = m.attempt();
  auto box = [](common::v1::KvHandle* kv) {
    auto b = std::make_shared<KvBox>();
    b->value.Swap(kv);
    return b;
  };
  switch (m.event_case()) {
    case prefill::v1::RunResponse::kHello:
      OnHello(w, m.hello());
      break;
    case prefill::v1::RunResponse::kAdmitted:
      core_->OnAdmitted(w, seq, attempt, box(m.mutable_admitted()->mutable_kv()), m.admitted().cached_tokens(), now_);
      break;
    case prefill::v1::RunResponse::kFirstToken: {
      FirstToken f;
      f.token = m.first_token().token();
      f.wait_ms = m.first_token().wait_ms();
      f.prefill_ms = m.first_token().prefill_ms();
      if (m.first_token().has_logprobs()) {
        auto lp = std::make_shared<LogprobsBox>();
        lp->value.Swap(m.mutable_first_token()->mutable_logprobs());
        f.logprobs = std::move(lp);
      }
      f.kv = box(m.mutable_first_token()->mutable_kv());
      core_->OnFirstToken(w, seq, attempt, f, now_);
      break;
    }
    case prefill::v1::RunResponse::kFailed:
      AS_LOG(kWarn, "prefill.failed") << Field("seq", m.seq()) << Field("reason", m.failed().reason())
                                      << Field("detail", m.failed().message());
      core_->OnFailed(w, seq, attempt, {ToFailKind(m.failed().reason()), m.failed().message()}, now_);
      break;
    case prefill::v1::RunResponse::kLoad:
      core_->OnLoad(w, ToLoad(m.load()), now_);
      break;
    default:
      break;  // chunk_done, and what a newer worker may say
  }
}

void Shell::OnDecodeMessage(WorkerId w, decode::v1::RunResponse& m) {
  const SeqId seq(m.seq());
  const uint32_t attempt = m.attempt();
  switch (m.event_case()) {
    case decode::v1::RunResponse::kHello:
      OnHello(w, m.hello());
      break;
    case decode::v1::RunResponse::kPeerConnected: {
      const auto& p = m.peer_connected();
      AS_LOG(kInfo, "worker.peer_connected") << Field("peer", p.worker_id()) << Field("transport", p.transport())
                                             << Field("gb_per_s", p.gb_per_s()) << Field("problem", p.problem());
      core_->OnPeerConnected(w, p.worker_id(), p.incarnation(), !p.transport().empty(), now_);
      break;
    }
    case decode::v1::RunResponse::kReserved:
      core_->OnReserved(w, seq, attempt, m.reserved().cached_tokens(), now_);
      break;
    case decode::v1::RunResponse::kKvReady: {
      const auto& k = m.kv_ready();
      core_->OnKvReady(w, seq, attempt, {k.bytes(), k.transport(), k.gb_per_s(), k.exposed_ms()}, now_);
      break;
    }
    case decode::v1::RunResponse::kStepResult:
      OnStepResult(w, m.mutable_step_result());
      break;
    case decode::v1::RunResponse::kFinished: {
      const auto& f = m.finished();
      core_->OnFinished(w, seq, attempt,
                        {f.steps(), f.cached_tokens(), f.preemptions(), f.prefill_wait_ms(), f.prefill_ms(),
                         f.decode_wait_ms(), f.decode_ms(), f.host_tokens()},
                        now_);
      break;
    }
    case decode::v1::RunResponse::kFailed:
      AS_LOG(kWarn, "decode.failed") << Field("seq", m.seq()) << Field("reason", m.failed().reason())
                                     << Field("detail", m.failed().message());
      core_->OnFailed(w, seq, attempt, {ToFailKind(m.failed().reason()), m.failed().message()}, now_);
      break;
    case decode::v1::RunResponse::kLoad:
      core_->OnLoad(w, ToLoad(m.load()), now_);
      break;
    default:
      break;
  }
}

void Shell::OnStepResult(WorkerId w, decode::v1::StepResult* step) {
  Link& l = links_.at(w);
  const int tokens = step->tokens_size();
  l.tokens += tokens;
  // A gap of a second or more is idleness, not latency between tokens.
  if (l.last_step > 0 && now_ - l.last_step < base::kNsPerSecond) {
    metrics_.OnStepGap(static_cast<double>(now_ - l.last_step) / 1e9, tokens);
  }
  l.last_step = now_;
  core_->OnStep(w, step->step(), ToStepTokens(step), now_);
}

// ---- observation ----

void Shell::FillModel(v1::GetModelResponse* out) const {
  out->set_model_id(model_.model_id);
  out->set_context_length(model_.card.context_length);
  out->set_vocab_size(model_.card.vocab_size);
  out->set_tokenizer_hash(model_.tokenizer->hash());
  out->set_created_unix_s(model_.created_unix_s);
  out->set_ready(core_->ready());
  out->set_sessions(true);
  out->set_has_chat_template(model_.chat_template != nullptr);
  if (!endpoints_.empty()) *out->mutable_layout() = endpoints_.rbegin()->second.layout();
  const text::DefaultSampling& d = model_.card.sampling;
  common::v1::SamplingParams* s = out->mutable_default_sampling();
  if (d.temperature) s->set_temperature(static_cast<float>(*d.temperature));
  if (d.top_p) s->set_top_p(static_cast<float>(*d.top_p));
  if (d.min_p) s->set_min_p(static_cast<float>(*d.min_p));
  if (d.top_k) s->set_top_k(static_cast<uint32_t>(std::max<int64_t>(0, *d.top_k)));
  if (d.repetition_penalty) s->set_repetition_penalty(static_cast<float>(*d.repetition_penalty));
}

void Shell::FillCluster(v1::WatchClusterResponse* out) const {
  out->set_router_incarnation(incarnation_);
  std::vector<const Worker*> workers;
  for (const auto& [id, w] : core_->workers().all()) workers.push_back(&w);
  std::sort(workers.begin(), workers.end(), [](auto* a, auto* b) { return a->info.name < b->info.name; });
  for (const Worker* w : workers) {
    v1::WorkerState* s = out->add_workers();
    s->set_worker_id(w->info.name);
    s->set_role(RoleName(w->info.role));
    s->set_state(PhaseName(w->phase));
    FillLoad(w->load, s->mutable_load());
    auto l = links_.find(w->id);
    if (l != links_.end()) s->set_tokens_per_s(l->second.tokens_per_s);
    s->set_silent_ms(static_cast<uint64_t>(std::max<TimeNs>(0, now_ - w->last_message) / base::kNsPerMs));
    s->set_address(w->info.address);
  }
  out->set_queued(core_->queued_requests());
  out->set_running(core_->live_requests() - core_->queued_requests());
  out->set_accepted_total(core_->stats().accepted);
  out->set_finished_total(core_->stats().finished());
  out->set_policy(std::string(core_->policy().name));
  out->set_tokens_per_s(tokens_per_s_);
  out->set_model_id(model_.model_id);
  out->set_kvstore_connected(kvstore_ != nullptr && kvstore_->connected());
}

}  // namespace agentserve::router
