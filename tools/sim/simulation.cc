#include "tools/sim/simulation.h"

#include "base/status_macros.h"
#include "tools/sim/driver.h"

namespace agentserve::sim {
namespace driver {

Replay::Options Simulation::ReplayOptions() const {
  Replay::Options r;
  r.count_from = FromSeconds(o_.warmup_s);
  r.count_to = FromSeconds(o_.duration_s);
  r.block_tokens = o_.block_tokens;
  r.step_tokens = model_.calibration().step_tokens;
  r.tenants = o_.tenants;
  return r;
}

// Bounds that protect a real router's memory and clients' patience would end a simulated overload: lifted.
router::CoreConfig Simulation::Config() const {
  const uint32_t workers = o_.decode_workers + o_.prefill_workers;
  router::CoreConfig c;
  c.policy = o_.policy;
  c.max_queued = 1u << 30;
  c.max_queued_bytes = 1ull << 60;
  c.max_queued_tokens = 1ull << 60;
  c.max_live = 1u << 30;
  c.max_queue_wait = kFar;
  c.lease = c.stall_timeout = c.no_worker_grace = kFar;
  c.max_workers = std::max(c.max_workers, workers);
  c.max_programs = 1u << 20;
  c.max_attempts = 1000;
  c.poison_limit = 1000;
  uint64_t blocks = 0;
  for (const Slot& s : slots_) blocks += s.options.num_blocks;
  c.max_prefix_blocks = static_cast<uint32_t>(std::clamp<uint64_t>(blocks, c.max_prefix_blocks, 16u << 20));
  const double prefill = model_.PrefillMs(8192, 0, model_.calibration().step_tokens) / 8192;
  c.agent.cost.per_output_token = model_.DecodeBaseMs(32) / 32 / prefill;
  c.agent.cost.per_output_context_token = model_.ContextMs(32) / prefill;
  // Keeping KV for programs is a layer of the agent policy; the others are compared with plain caches.
  c.agent.retain = o_.policy == "agent";
  if (o_.configure) o_.configure(&c);
  return c;
}

void Simulation::MakeWorkers() {
  const Calibration& k = model_.calibration();
  for (uint32_t i = 0; i < o_.decode_workers + o_.prefill_workers; ++i) {
    const bool decode = i < o_.decode_workers;
    Slot& s = slots_.emplace_back();
    s.options.role = decode ? router::Role::kDecode : router::Role::kPrefill;
    s.options.block_tokens = o_.block_tokens;
    const double blocks = k.kv_gib * 1073741824.0 / (k.bytes_per_token * o_.block_tokens);
    s.options.num_blocks = o_.num_blocks > 0 ? o_.num_blocks : static_cast<uint32_t>(std::max(1.0, blocks));
    s.options.max_batch = o_.max_batch > 0 ? o_.max_batch : k.max_batch;
    s.options.step_tokens = std::max(decode ? k.step_tokens : k.prefill_step_tokens, s.options.max_batch);
    if (decode)
      s.options.host_blocks = static_cast<uint32_t>(o_.host_gib * 1073741824.0 / (k.bytes_per_token * o_.block_tokens));
    s.options.infinite_cache = o_.infinite_cache;
    s.options.index = i;
    router::WorkerInfo& info = s.info;
    info.name = base::StrCat(decode ? "decode-" : "prefill-", i);
    info.role = s.options.role;
    info.address = "simulated";
    info.model_id = k.model;
    info.model_fingerprint = "simulated";
    info.layout_fingerprint = 7;
    info.block_tokens = o_.block_tokens;
    info.num_blocks = s.options.num_blocks;
    info.block_bytes = static_cast<uint64_t>(k.bytes_per_token * o_.block_tokens);
    info.prefill_tokens_per_s = 8192e3 / model_.PrefillMs(8192, 0, s.options.step_tokens);
    info.context_length = s.options.context_length;
    info.max_batch = s.options.max_batch;
  }
}

void Simulation::Revive(uint32_t i) {
  Slot& s = slots_[i];
  s.options.seed = base::SplitMix64(o_.seed * 1000003 + i * 7919 + incarnations_).Next();
  s.worker = o_.core_workers ? MakeCoreWorker(s.options, &model_) : MakeFastWorker(s.options, &model_);
  s.info.incarnation = ++incarnations_;
  ++s.version;
  s.wake = kNever;
  const absl::StatusOr<WorkerId> id = core_->RegisterWorker(s.info, now_);
  AS_CHECK(id.ok()) << base::MessageOf(id.status());
  s.id = *id;
  by_id_[id->value] = i;
}

void Simulation::Kill(uint32_t i) {
  Slot& s = slots_[i];
  if (s.worker == nullptr) return;
  const WorkerStats stats = s.worker->stats();
  s.past.busy_ns += stats.busy_ns;
  s.past.preemptions += stats.preemptions;
  s.worker.reset();
  ++s.version;
  Push(now_ + base::kNsPerMs, EventKind::kLinkDown, i, s.id.value);
  Push(now_ + kReviveAfter, EventKind::kRevive, i);
  if (s.options.role != router::Role::kPrefill) return;
  for (uint32_t k = 0; k < slots_.size(); ++k) {
    if (slots_[k].worker == nullptr) continue;
    slots_[k].worker->PeerLost(i, now_);
    AfterWorker(k);
  }
}

// ---- arrivals ----

void Simulation::ScheduleArrivals() {
  program_order_.resize(w_.programs.size());
  for (uint32_t i = 0; i < program_order_.size(); ++i) program_order_[i] = i;
  if (o_.arrivals == workload::ArrivalKind::kTrace) {
    for (uint32_t i = 0; i < program_order_.size(); ++i) {
      Push(FromSeconds(w_.programs[i].arrival_s), EventKind::kSession, i, 0);
    }
    return;
  }
  base::SplitMix64 rng(o_.seed * 77 + 5);
  for (size_t i = program_order_.size(); i > 1; --i) std::swap(program_order_[i - 1], program_order_[rng.Below(i)]);
  if (o_.arrivals == workload::ArrivalKind::kClosed) {
    // Spread over a while, or all first calls would march in step.
    for (uint32_t i = 0; i < o_.population; ++i) {
      NextSession(FromSeconds(rng.Uniform() * std::min(o_.warmup_s, 60.0) / 2));
    }
    return;
  }
  gaps_ = std::make_unique<workload::ArrivalGaps>(o_.arrivals, o_.rate, o_.seed * 31 + 9);
  NextSession(FromSeconds(gaps_->Next()));
}

// Programs in a seeded order, again and again; each time around they are other instances.
void Simulation::NextSession(TimeNs at) {
  const uint64_t n = next_program_++;
  Push(at, EventKind::kSession, program_order_[n % program_order_.size()], n / program_order_.size());
}

void Simulation::ScheduleReady() {
  for (const Replay::Ready& r : replay_.TakeReady()) Push(r.at + client_, EventKind::kSubmit, r.call, r.session);
}

// ---- calls ----

void Simulation::FillAgent(const Replay::Session& s, uint32_t call, router::Submission* sub) const {
  const workload::Program& p = w_.programs[s.program];
  const workload::Call& c = p.calls[call];
  const ProgramPlan::CallPlan& plan = s.plan->calls[call];
  router::AgentInfo& a = sub->agent;
  a.tenant_id = replay_.tenants()[s.tenant];
  sub->oracle = router::OracleInfo{c.out, plan.cost, plan.remaining_cost};
  if (o_.hints == Hints::kNone) return;
  a.program_id = base::StrCat(p.id, "#", s.number);
  a.workflow_class = w_.classes[p.workflow];
  a.tool_name = w_.tools[c.tool];
  a.step_index = plan.step;
  a.blocking = !c.background;
  if (p.deadline_s > 0) a.deadline_ms = static_cast<uint64_t>(p.deadline_s * 1000);
  if (o_.hints != Hints::kFull) return;
  a.osl_hint = c.out;
  const ProgramPlan::JobPlan& job = s.plan->jobs[plan.job];
  a.total_calls_hint = job.calls;
  a.steps_left_hint = job.calls > plan.step ? job.calls - plan.step - 1 : 0;
  a.final = call + 1 == p.calls.size();
}

void Simulation::Submit(uint64_t session, uint32_t call) {
  replay_.Sent(session, call, now_ - client_);
  const Replay::Session& s = replay_.session(session);
  const workload::Call& c = w_.programs[s.program].calls[call];
  const uint64_t number = next_call_++;
  Live live{session, call, {}};
  live.spans = std::make_shared<const std::vector<workload::Span>>(workload::Spans(w_, s.program, call, s.instance));
  router::Submission sub;
  sub.request_id = std::to_string(number);
  if (o_.core_workers) {
    auto prompt = std::make_shared<std::vector<engine::TokenId>>(Tokens(*live.spans, c.in));
    sub.chain_root = engine::ChainRoot("", 7);
    engine::ExtendChain(sub.chain_root, *prompt, o_.block_tokens, &sub.chain);
    sub.block_tokens = o_.block_tokens;
    sub.prompt = std::move(prompt);
  } else {
    // Only the length matters. block_tokens 0: the router cannot name output blocks, whose tokens do not exist here.
    sub.prompt = std::make_shared<std::vector<engine::TokenId>>(c.in, 1);
    BlockNames(*live.spans, c.in, o_.block_tokens, &sub.chain);
  }
  sub.digest = {number, 1};
  sub.sampling.seed = number;
  sub.sampling.ignore_eos = true;
  sub.sampling.max_tokens = o_.exact_max_tokens ? c.out : std::max(c.out, kGenerousMaxTokens);
  if (!o_.exact_max_tokens) sub.sampling.stop_token_ids = {kStopToken};
  sub.arrival = now_;
  sub.deadline = now_ + kFar;
  sub.bytes = c.in * sizeof(engine::TokenId);
  FillAgent(s, call, &sub);
  const router::SubmitResult result = core_->Submit(std::move(sub), now_);
  if (!result.ok()) {
    gave_up_ = true;
    Push(now_ + client_, EventKind::kClient, ends_.Put({session, call, {false, 0, 0, 0, 0}}));
    return;
  }
  by_request_[result.key.value] = number;
  live_[number] = std::move(live);
}

void Simulation::OnRequestDone(const router::RequestDone& d) {
  const auto it = by_request_.find(d.request.value);
  AS_CHECK(it != by_request_.end());
  const auto live = live_.find(it->second);
  ClientEnd end{live->second.session, live->second.call, {}};
  live_.erase(live);
  by_request_.erase(it);
  ++calls_ended_;
  end.outcome.ok = d.reason == router::EndReason::kDone;
  if (!end.outcome.ok) gave_up_ = true;
  const double network = 2 * base::ToMs(client_) / 1000;
  end.outcome.ttft_s = d.timeline.ttft_ms / 1000 + network;
  end.outcome.e2e_s = d.timeline.total_ms / 1000 + network;
  end.outcome.queue_s = d.timeline.queue_ms / 1000;
  end.outcome.cached = d.cached_tokens;
  Push(now_ + client_, EventKind::kClient, ends_.Put(end));
}

void Simulation::OnClient(const ClientEnd& e) {
  const bool over = replay_.Ended(e.session, e.call, e.outcome, now_);
  if (over && o_.arrivals == workload::ArrivalKind::kClosed && now_ < FromSeconds(o_.duration_s)) NextSession(now_);
  ScheduleReady();
}

}  // namespace driver

namespace {

absl::Status Check(const workload::Workload& w, const SimOptions& o) {
  const auto bad = [](const std::string& what) { return absl::InvalidArgumentError(base::ToAbsl(what)); };
  if (absl::StatusOr<router::Policy> p = router::FindPolicy(o.policy); !p.ok()) return p.status();
  AS_RETURN_IF_ERROR(workload::Validate(w));
  if (o.decode_workers < 1 || o.decode_workers + o.prefill_workers > 100'000) {
    return bad("at least 1 decode worker and at most 100000 workers are needed");
  }
  if (o.block_tokens < 1) return bad("block_tokens must be at least 1");
  const bool open = o.arrivals != workload::ArrivalKind::kTrace && o.arrivals != workload::ArrivalKind::kClosed;
  if (open && !(o.rate > 0)) return bad("the arrival rate must be above 0");
  if (o.arrivals == workload::ArrivalKind::kClosed && o.population < 1) return bad("the population must be at least 1");
  if (o.arrivals != workload::ArrivalKind::kTrace && !(o.duration_s > o.warmup_s && o.warmup_s >= 0)) {
    return bad("the duration must be longer than the warm-up");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SimResult> Simulate(const workload::Workload& w, const Calibration& calibration,
                                   const SimOptions& options) {
  AS_RETURN_IF_ERROR(Check(w, options));
  AS_ASSIGN_OR_RETURN(const StepModel model, StepModel::Make(calibration));
  SimOptions o = options;
  if (o.arrivals == workload::ArrivalKind::kTrace) o.warmup_s = 0, o.duration_s = 1e9;
  return driver::Simulation(w, model, o).Run();
}

}  // namespace agentserve::sim
