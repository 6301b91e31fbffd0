#include "router/core/policy_cluster.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace agentserve::router::policy_test {
namespace {

constexpr TimeNs kMs = base::kNsPerMs;
constexpr TimeNs kPerPromptToken = 50'000, kPerOutputToken = 5 * kMs;
constexpr uint32_t kShort = 40;

}  // namespace

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)), rng_(options_.seed) {
  CoreConfig config = options_.core;
  // Costs as this cluster has them.
  config.agent.cost = {1, static_cast<double>(kPerOutputToken) / kPerPromptToken, 0};
  config.max_queue_wait = config.stall_timeout = config.lease = int64_t{1} << 60;
  core_ = std::make_unique<RouterCore>(config, now_);
  for (uint32_t i = 0; i < options_.workers; ++i) {
    WorkerInfo w;
    w.name = "d" + std::to_string(i);
    w.incarnation = 1;
    w.address = "a:1";
    w.model_fingerprint = "f";
    w.num_blocks = 100'000;
    w.context_length = 1 << 17;
    w.max_batch = options_.slots;
    core_->OnLinkUp(*core_->RegisterWorker(w, now_), now_);
  }
  // Everything random is drawn here, so that nothing the router does changes the work.
  for (uint32_t p = 0; p < options_.programs; ++p) {
    uint32_t prompt = 100 + static_cast<uint32_t>(rng_.Below(300));
    for (uint32_t k = 0; k < options_.calls; ++k) {
      Call c;
      c.program = p;
      const bool is_long = rng_.Uniform() < options_.long_share;
      c.output =
          is_long ? 200 + static_cast<uint32_t>(rng_.Below(400)) : 5 + static_cast<uint32_t>(rng_.Below(kShort - 5));
      c.prompt = prompt;
      prompt += c.output + static_cast<uint32_t>(rng_.Below(100));
      calls_.push_back(c);
      gaps_.push_back(k == 0 ? static_cast<TimeNs>(rng_.Below(3000)) * kMs
                             : static_cast<TimeNs>(rng_.Below(400)) * kMs);
    }
    const auto first = static_cast<uint32_t>(p * options_.calls);
    events_[{now_ + gaps_[first], next_event_++}] = {What::kSubmit, first, {}, {}, 0};
  }
}

void Cluster::Submit(uint32_t i) {
  Call& c = calls_[i];
  c.submitted = now_;
  const uint32_t tenant = c.program % options_.tenants;
  Submission s;
  s.request_id = std::to_string(i);
  s.prompt = std::make_shared<std::vector<TokenId>>(c.prompt, 1);
  s.digest = {i + 1, 1};
  s.sampling.max_tokens = options_.tell_length ? c.output : 4096;
  s.sampling.ignore_eos = true;
  s.arrival = now_;
  s.deadline = int64_t{1} << 60;
  s.agent.tenant_id = "t" + std::to_string(tenant);
  s.agent.program_id = "p" + std::to_string(c.program);
  s.agent.workflow_class = "w";
  s.agent.identity = Identity::kOwn;
  s.oracle = OracleInfo{c.output, double(c.output), double(c.output)};
  if (options_.hostile && tenant == 0) {
    s.agent.priority = 100;
    s.agent.strict_tier = 255;
    s.agent.deadline_ms = 1;
    s.agent.osl_hint = 1;
    s.agent.total_calls_hint = 1;
    s.agent.steps_left_hint = 0;
    s.agent.kv_retain_ms = 3'600'000;
    s.agent.tool_gap_ms_hint = 1;
  }
  const SubmitResult r = core_->Submit(std::move(s), now_);
  AS_CHECK(r.ok()) << r.message;
  by_key_[r.key] = i;
}

void Cluster::Speak(const Event& e) {
  auto& on = running_[e.worker];
  auto it = on.find(e.seq);
  if (it == on.end() || it->second.attempt != e.attempt) return;  // cancelled meanwhile
  Run1& run = it->second;
  const uint32_t output = calls_[run.call].output;
  const uint32_t until = e.what == What::kFirst ? run.generated + 1 : output;
  std::vector<StepToken> tokens;
  for (; run.generated < until; ++run.generated) {
    const bool last = run.generated + 1 == output;
    tokens.push_back({e.seq, e.attempt, 5, nullptr, last ? FinishReason::kStop : FinishReason::kNone});
  }
  const bool ends = run.generated == output;
  if (ends) on.erase(it);
  core_->OnStep(e.worker, ++steps_[e.worker], tokens, now_);
  if (ends) core_->OnFinished(e.worker, e.seq, e.attempt, {}, now_);
}

void Cluster::HandOut(const Command& c) {
  const auto call = static_cast<uint32_t>(std::stoul(c.spec->request_id));
  Call& mine = calls_[call];
  if (mine.handed_out < 0) {
    mine.handed_out = now_;
    for (Call& other : calls_) {
      if (other.submitted < 0 || other.handed_out >= 0 || other.submitted >= mine.submitted) continue;
      if (now_ - other.submitted <= options_.core.agent.aging_bound) continue;
      most_younger_ = std::max(most_younger_, ++other.younger);
    }
  }
  log_ += c.spec->request_id + "@" + std::to_string(c.worker.value) + " ";
  const auto made = static_cast<uint32_t>(c.spec->tokens.size()) - c.spec->prompt_tokens;
  running_[c.worker][c.seq] = {call, c.attempt, made};
  core_->OnReserved(c.worker, c.seq, c.attempt, 0, now_);
  const TimeNs first = now_ + kPerPromptToken * static_cast<TimeNs>(c.spec->tokens.size()) + kPerOutputToken;
  events_[{first, next_event_++}] = {What::kFirst, call, c.worker, c.seq, c.attempt};
  if (mine.output - made > 1) {
    const TimeNs last = first + kPerOutputToken * (mine.output - made - 1);
    events_[{last, next_event_++}] = {What::kLast, call, c.worker, c.seq, c.attempt};
  }
}

void Cluster::Drain() {
  for (Effects e;; e.clear()) {
    core_->TakeEffects(&e);
    if (e.empty()) break;
    for (const Command& c : e.commands) {
      if (c.kind == CommandKind::kReserve) HandOut(c);
      if (c.kind == CommandKind::kCancel) running_[c.worker].erase(c.seq);
    }
    for (const RequestDone& d : e.request_ends) {
      AS_CHECK(d.reason == EndReason::kDone) << d.message;
      const uint32_t i = by_key_.at(d.request);
      calls_[i].ended = now_;
      AS_CHECK_EQ(d.completion_tokens, calls_[i].output);
      ++done_;
      if ((i + 1) % options_.calls != 0)
        events_[{now_ + gaps_[i + 1], next_event_++}] = {What::kSubmit, i + 1, {}, {}, 0};
    }
  }
}

void Cluster::Check() {
  core_->CheckInvariants();
  most_queued_ = std::max(most_queued_, core_->queued_sequences());
  if (!options_.check_idle || core_->queued_sequences() == 0) return;
  for (const auto& [id, w] : core_->workers().all()) idle_beside_work_ += w.sequences.empty();
}

void Cluster::Run() {
  Drain();
  uint64_t steps = 0;
  while (!events_.empty() || core_->NextWake() < now_ + 3600 * base::kNsPerSecond) {
    AS_CHECK_LT(++steps, 1'000'000u) << "seed " << options_.seed;
    if (events_.empty() && core_->live_requests() == 0) break;
    const TimeNs wake = core_->NextWake();
    if (events_.empty() || wake < events_.begin()->first.first) {
      now_ = std::max(now_, wake);
      core_->Tick(now_);
    } else {
      const Event e = events_.begin()->second;
      now_ = events_.begin()->first.first;
      events_.erase(events_.begin());
      if (e.what == What::kSubmit) {
        Submit(e.call);
      } else {
        Speak(e);
      }
    }
    Drain();
    Check();
  }
}

double Cluster::LatencyMs(uint32_t tenant, double quantile) const {
  std::vector<double> all;
  for (const Call& c : calls_) {
    if (c.program % options_.tenants == tenant) all.push_back(base::ToMs(c.ended - c.submitted));
  }
  std::sort(all.begin(), all.end());
  return all[std::min(all.size() - 1, static_cast<size_t>(quantile * static_cast<double>(all.size())))];
}

double Cluster::ShortLatencyMs() const {
  double sum = 0, n = 0;
  for (const Call& c : calls_) {
    if (c.output <= kShort) sum += base::ToMs(c.ended - c.submitted), ++n;
  }
  return sum / n;
}

}  // namespace agentserve::router::policy_test
