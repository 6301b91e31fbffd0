// Requests: admission, tokens out, ends.
#include "router/core/router_core.h"

#include <algorithm>

#include "base/check.h"
#include "base/strings.h"

namespace agentserve::router {
namespace {

Policy PolicyOrDie(const std::string& name) {
  absl::StatusOr<Policy> p = FindPolicy(name);
  AS_CHECK(p.ok()) << base::MessageOf(p.status());
  return *p;
}

RetentionOptions RetentionOptionsOf(const CoreConfig& config) {
  RetentionOptions o;
  o.most = config.max_programs;
  o.default_ttl_ms = config.park_default_ms;
  o.most_ttl_ms = config.park_most_ms;
  o.tenant_share = config.tenant_rules.fallback.pin_share.value_or(config.tenant_pin_share);
  for (const auto& [tenant, rule] : config.tenant_rules.by_tenant) {
    if (rule.pin_share) o.tenant_shares[tenant] = *rule.pin_share;
  }
  return o;
}

// A quarter of the queue's bound may wait for other calls, so that graphs that never end cannot fill it.
Dag::Limits GraphLimits(const CoreConfig& config) {
  Dag::Limits limits;
  limits.waiting = std::max<size_t>(1, config.max_queued / 4);
  return limits;
}

// Waiting room is full: one slot frees about every few hundred milliseconds on the slowest sensible cluster.
constexpr TimeNs kRetryFull = 1 * base::kNsPerSecond;

}  // namespace

const char* EndReasonName(EndReason r) {
  switch (r) {
    case EndReason::kDone:
      return "done";
    case EndReason::kCancelled:
      return "cancelled";
    case EndReason::kQueueFull:
      return "queue_full";
    case EndReason::kQueueTimeout:
      return "queue_timeout";
    case EndReason::kDeadline:
      return "deadline";
    case EndReason::kNoWorkers:
      return "no_workers";
    case EndReason::kPoison:
      return "poison";
    case EndReason::kDraining:
      return "draining";
    case EndReason::kTooLong:
      return "too_long";
    case EndReason::kWorkerFailed:
      return "worker_failed";
    case EndReason::kSlowClient:
      return "slow_client";
    case EndReason::kBadDependency:
      return "bad_dependency";
  }
  return "unknown";
}

RouterCore::RouterCore(CoreConfig config, TimeNs now)
    : config_(std::move(config)),
      policy_(PolicyOrDie(config_.policy)),
      workers_(config_),
      programs_(config_.max_programs),
      predictor_(config_.expected_output_tokens),
      prefixes_(config_.max_prefix_blocks),
      decisions_(config_.max_decisions),
      retention_(RetentionOptionsOf(config_)),
      finder_(ProgramFinder::Limits{}),
      dag_(GraphLimits(config_)),
      queue_(config_),
      no_decode_since_(now) {
  order_context_.options = &config_.agent;
  most_overflow_ = policy_.overflow;
  for (const auto& [name, policy] : config_.tenant_policy) {
    most_overflow_ = std::max(most_overflow_, PolicyOrDie(policy).overflow);
  }
}

Request& RouterCore::RequestOf(const Sequence& s) {
  auto it = requests_.find(s.request);
  AS_CHECK(it != requests_.end());
  return it->second;
}

bool RouterCore::Refuse(const Submission& sub, TimeNs now, SubmitResult* result) const {
  const uint64_t prompt = sub.prompt->size();
  auto refuse = [&](EndReason why, std::string message, TimeNs retry_after) {
    result->refused = why;
    result->message = std::move(message);
    result->retry_after = retry_after;
    return true;
  };
  if (draining_) return refuse(EndReason::kDraining, "the router is shutting down; use another one", kRetryFull);
  if (sub.deadline <= now) {
    return refuse(EndReason::kQueueTimeout, "the request's time budget was used up before it reached the queue", 0);
  }
  if (auto it = poisoned_.find(sub.digest); it != poisoned_.end() && it->second > now) {
    return refuse(EndReason::kPoison,
                  base::StrCat("an equal request was running on ", config_.poison_limit,
                               " workers when they died; it is refused for another ",
                               (it->second - now) / base::kNsPerSecond + 1, " s"),
                  0);
  }
  if (no_decode_since_ >= 0 && now - no_decode_since_ > config_.no_worker_grace) {
    return refuse(EndReason::kNoWorkers, "no decode worker is registered; start one with --role decode or wait",
                  kRetryFull);
  }
  uint32_t largest = 0, needed = 0;
  if (!CouldEverFit(workers_, static_cast<uint32_t>(prompt), &largest, &needed)) {
    return refuse(EndReason::kTooLong,
                  base::StrCat("the prompt of ", prompt, " tokens needs ", needed,
                               " KV blocks, but the largest decode worker has ", largest,
                               "; shorten it or start workers with a larger --kv-memory-mib"),
                  0);
  }
  if (queued_calls_ + waiting_calls_ + sub.n > config_.max_queued) {
    return refuse(EndReason::kQueueFull,
                  base::StrCat("the queue holds ", queued_calls_ + waiting_calls_, " of at most ", config_.max_queued,
                               " calls; try again later"),
                  kRetryFull);
  }
  if (queued_bytes_ + waiting_bytes_ + sub.bytes > config_.max_queued_bytes) {
    return refuse(EndReason::kQueueFull,
                  base::StrCat("the queue holds ", queued_bytes_ + waiting_bytes_, " of at most ",
                               config_.max_queued_bytes, " bytes; try again later"),
                  kRetryFull);
  }
  if (queued_tokens_ + waiting_tokens_ + prompt > config_.max_queued_tokens) {
    return refuse(EndReason::kQueueFull,
                  base::StrCat("the queue holds ", queued_tokens_ + waiting_tokens_, " of at most ",
                               config_.max_queued_tokens, " prompt tokens; try again later"),
                  kRetryFull);
  }
  if (requests_.size() >= config_.max_live) {
    return refuse(EndReason::kQueueFull,
                  base::StrCat("the router serves ", requests_.size(), " requests, its most; try again later"),
                  kRetryFull);
  }
  return false;
}

SubmitResult RouterCore::Submit(Submission sub, TimeNs now) {
  AS_CHECK(sub.prompt != nullptr && !sub.prompt->empty());
  AS_CHECK_GE(sub.n, 1u);
  AS_CHECK_LE(sub.n, config_.max_n);
  AS_CHECK_GE(sub.sampling.max_tokens, 1u);
  SubmitResult result;
  bool ready = true;
  if (!Refuse(sub, now, &result)) Identify(&sub);
  if (result.refused != EndReason::kDone || !EnterGraph(sub, &ready, &result)) {
    ++stats_.refused;
    return result;
  }
  const RequestKey key(next_request_++);
  Request& r = requests_[key];
  r.key = key;
  r.sub = std::move(sub);
  r.live = r.sub.n;
  r.queued_since = r.sub.arrival;
  ++stats_.accepted;
  stats_.prompt_tokens += r.sub.prompt->size();
  const int64_t arrival = next_arrival_;
  r.lane = queue_.LaneOf(r.sub.agent.tenant_id);
  ++queue_.lane(r.lane).live;
  r.queue_depth = static_cast<uint32_t>(queue_.size());
  JoinProgram(&r, now);
  CallCame(r, now);
  for (uint32_t i = 0; i < r.sub.n; ++i) {
    const SeqId id(next_seq_++);
    r.seqs.push_back(id);
    Sequence& s = seqs_[id];
    s.id = id;
    s.request = key;
    s.index = i;
    s.arrival = arrival;
  }
  ++next_arrival_;
  r.timer = 0;
  if (ready) {
    EnterQueue(&r, now);
  } else {
    HoldForGraph(&r);
  }
  SetTimer(&r);
  result.key = key;
  result.program_id = r.sub.agent.program_id;
  result.identity = r.sub.agent.identity;
  result.clamped = r.sub.clamped;
  result.waits = !ready;
  Pump(now);
  PrefetchIfQueued(key, now);
  return result;
}

void RouterCore::EnterQueue(Request* r, TimeNs now) {
  ++queued_requests_;
  queued_calls_ += r->sub.n;
  queued_bytes_ += r->sub.bytes;
  queued_tokens_ += r->sub.prompt->size();
  Enqueue(&seqs_.at(r->seqs[0]), now);
  // A prompt without a full block has nothing to share.
  if (r->sub.chain.empty()) ReleaseHeld(r, now);
}

void RouterCore::SetTimer(Request* r) {
  if (r->timer != 0) timers_.erase({r->timer, r->key});
  r->timer = r->sub.deadline;
  if (r->waits) {
    if (!r->grace_over) r->timer = std::min(r->timer, r->sub.arrival + config_.unknown_dependency_grace);
  } else if (!r->dispatched) {
    r->timer = std::min(r->timer, r->queued_since + config_.max_queue_wait);
  }
  timers_.insert({r->timer, r->key});
}

void RouterCore::LeaveQueueBounds(Request* r) {
  if (r->waits) return LeaveGraphBounds(r);
  if (r->dispatched) return;
  r->dispatched = true;
  --queued_requests_;
  queued_calls_ -= r->sub.n;
  queued_bytes_ -= r->sub.bytes;
  queued_tokens_ -= r->sub.prompt->size();
}

void RouterCore::EmitToken(Sequence* s, TokenId token, FinishReason finish, OpaquePtr logprobs, TimeNs now) {
  Request& r = RequestOf(*s);
  s->generated.push_back(token);
  ++stats_.tokens;
  ++r.completion_tokens;
  if (s->generated.size() == 1) s->timeline.ttft_ms = base::ToMs(now - r.sub.arrival);
  effects_.tokens.push_back({s->request, s->index, token, finish, std::move(logprobs)});
  if (!r.got_first_token) {
    r.got_first_token = true;
    ReleaseHeld(&r, now);
  }
}

// Whether `token`, about to be emitted, is the last one.
FinishReason RouterCore::FinishOnToken(const Request& r, const Sequence& s, TokenId token) const {
  const engine::SamplingParams& p = r.sub.sampling;
  auto has = [token](const std::vector<TokenId>& v) { return std::find(v.begin(), v.end(), token) != v.end(); };
  if (s.generated.size() >= p.min_tokens && (has(p.stop_token_ids) || (!p.ignore_eos && has(config_.end_tokens)))) {
    return FinishReason::kStop;
  }
  return s.generated.size() + 1 >= p.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

// The worker has ended the sequence by itself: keep a program's blocks for its next turn.
void RouterCore::FinishAndMaybePark(Sequence* s, TimeNs now) {
  ParkKv(*s, now);
  if (s->decode.value != 0) RecordOutput(s, s->decode);
  ReleasePrefill(s, CommandKind::kReleaseKv);
  ReleaseWorkers(s, /*tell_decode=*/false);
  EndSequence(s, s->finish, now);
}

// `s` holds no worker any more. Destroys it, and its request if it was the last.
void RouterCore::EndSequence(Sequence* s, FinishReason reason, TimeNs now) {
  AS_CHECK(s->decode.value == 0 && s->prefill.value == 0);
  Request& r = RequestOf(*s);
  SequenceDone done{s->request, s->index, reason, static_cast<uint32_t>(s->generated.size()), 0};
  if (!s->generated.empty()) done.last_token = s->generated.back();
  effects_.sequence_ends.push_back(done);
  if (s->index == 0) {
    r.timeline = s->timeline;
    r.cached_tokens = s->timeline.cached_tokens;
  }
  stats_.prefix_hit_tokens += s->timeline.cached_tokens;
  if (s->phase == SeqPhase::kFinishing) finishing_.erase({s->finish_by, s->id});
  if (s->phase == SeqPhase::kQueued) Dequeue(s);
  r.seqs[s->index] = SeqId();
  seqs_.erase(s->id);
  pump_wanted_ = true;
  if (!r.got_first_token) {
    r.got_first_token = true;
    ReleaseHeld(&r, now);
  }
  if (--r.live == 0) CompleteRequest(r.key, EndReason::kDone, "", 0, now);
}

void RouterCore::StopSequence(RequestKey key, uint32_t index, uint32_t completion_tokens, TimeNs now) {
  auto it = requests_.find(key);
  if (it == requests_.end() || index >= it->second.seqs.size()) return;
  auto seq = seqs_.find(it->second.seqs[index]);
  if (seq == seqs_.end()) return;
  Sequence* s = &seq->second;
  // Tokens that were already on their way are taken back from the count.
  const size_t extra = s->generated.size() - std::min<size_t>(completion_tokens, s->generated.size());
  s->generated.resize(s->generated.size() - extra);
  it->second.completion_tokens -= static_cast<uint32_t>(extra);
  const bool worker_is_done = s->phase == SeqPhase::kFinishing;
  ParkKv(*s, now);
  ReleasePrefill(s, CommandKind::kCancel);
  ReleaseWorkers(s, /*tell_decode=*/!worker_is_done);
  EndSequence(s, FinishReason::kStop, now);
  Pump(now);
}

void RouterCore::EndRequest(RequestKey key, EndReason reason, std::string message, TimeNs now) {
  if (requests_.count(key) == 0) return;
  CompleteRequest(key, reason, std::move(message), 0, now);
  Pump(now);
}

// Ends whatever still runs of the request and emits its one terminal event.
void RouterCore::CompleteRequest(RequestKey key, EndReason reason, std::string message, TimeNs retry_after,
                                 TimeNs now) {
  Request& r = requests_.at(key);
  for (SeqId id : r.seqs) {
    auto it = seqs_.find(id);
    if (it == seqs_.end()) continue;
    Sequence* s = &it->second;
    if (s->phase == SeqPhase::kQueued) Dequeue(s);
    if (s->phase == SeqPhase::kFinishing) finishing_.erase({s->finish_by, s->id});
    ReleasePrefill(s, CommandKind::kCancel);
    ReleaseWorkers(s, /*tell_decode=*/s->phase != SeqPhase::kFinishing);
    if (s->index == 0) r.timeline = s->timeline;
    seqs_.erase(it);
  }
  LeaveQueueBounds(&r);
  timers_.erase({r.timer, key});
  RequestDone done;
  done.request = key;
  done.reason = reason;
  done.message = std::move(message);
  done.retry_after = retry_after;
  done.prompt_tokens = static_cast<uint32_t>(r.sub.prompt->size());
  done.completion_tokens = r.completion_tokens;
  done.cached_tokens = r.cached_tokens;
  done.timeline = std::move(r.timeline);
  done.timeline.total_ms = base::ToMs(now - r.sub.arrival);
  done.timeline.dependency_ms = r.waits ? done.timeline.total_ms : r.dependency_ms;
  effects_.request_ends.push_back(std::move(done));
  ++stats_.ended[static_cast<size_t>(reason)];
  LeaveProgram(r, reason, now);
  const AgentInfo agent = std::move(r.sub.agent);
  const std::string program = std::move(r.program);
  requests_.erase(key);
  pump_wanted_ = true;
  LeaveGraph(key, agent, program, now);
}

void RouterCore::ReportTool(std::string_view tenant, std::string_view program, std::string_view tool, bool start,
                            TimeNs now) {
  Program* p = programs_.Find(ProgramTable::Key(tenant, program));
  if (p == nullptr) return;
  if (start) p->tool_name = std::string(tool.substr(0, 128));
  // A report may come after the next call, which is faster: then it only names the tool.
  if (p->live_calls > 0) return;
  if (start) {
    p->phase = Program::Phase::kTool;
    p->tool_started = now;
  } else if (p->phase == Program::Phase::kTool) {
    p->phase = Program::Phase::kIdle;
  }
  if (start) retention_.OnToolStart(p->key, p->tool_name, RetentionNow(now));
  if (!start) retention_.OnToolEnd(p->key, RetentionNow(now));
}

void RouterCore::EndProgram(std::string_view tenant, std::string_view program, TimeNs now) {
  const std::string key = ProgramTable::Key(tenant, program);
  retention_.OnProgramEnd(key, RetentionNow(now));
  if (Program* p = programs_.Find(key); p != nullptr) ProgramEnded(p);
  finder_.Forget(tenant, program);
  std::vector<RequestKey> released;
  dag_.EndProgram(key, &released);
  ReleaseFromGraph(released, now);
  Pump(now);
}

void RouterCore::TakeEffects(Effects* out) {
  SendRetention();
  auto move_all = [](auto& from, auto& to) {
    if (to.empty()) {
      to.swap(from);
    } else {
      to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
      from.clear();
    }
  };
  move_all(effects_.links, out->links);
  move_all(effects_.commands, out->commands);
  move_all(effects_.tokens, out->tokens);
  move_all(effects_.sequence_ends, out->sequence_ends);
  move_all(effects_.request_ends, out->request_ends);
}

}  // namespace agentserve::router
