#include "router/service/shell.h"

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"
#include "router/service/convert.h"
#include "router/service/explain.h"

namespace agentserve::router {

using base::Field;

namespace {

constexpr TimeNs kHousekeeping = 200 * base::kNsPerMs;  // metrics, rates, link time-outs
constexpr TimeNs kStatusTimeout = 10 * base::kNsPerSecond;

}  // namespace

Shell::Shell(const ServiceConfig& config, const EdgeModel& model, RouterMetrics& metrics,
             std::function<void(bool)> on_ready)
    : config_(config),
      model_(model),
      metrics_(metrics),
      on_ready_(std::move(on_ready)),
      incarnation_(base::EntropyUint64() | 1),
      now_(clock_.Now()),
      core_(std::make_unique<RouterCore>(config.core, now_)),
      index_(config.core.max_decisions),
      loop_(clock_, [this] { return Turn(); }) {
  if (config_.kvstore.empty()) return;
  kvstore_ = std::make_unique<KvStorePrefixes>(config_.kvstore, core_->workers());
  core_->set_prefix_source(kvstore_.get());
}

Shell::~Shell() {
  loop_.Stop();
  for (auto& [id, l] : links_) l.link->Close();
  links_.clear();
  std::unique_lock lock(gate_.mu);
  gate_.none_left.wait(lock, [this] { return gate_.open == 0; });
}

ChainParams Shell::chain_params() const { return {layout_fingerprint_.load(), block_tokens_.load()}; }

void Shell::Every(TimeNs interval, std::function<bool()> f) {
  repeating_.push_back({now_ + interval, interval, std::move(f)});
}

// ---- requests ----

void Shell::Submit(Submission sub, StreamOptions options, std::shared_ptr<ReplyStream> stream) {
  options.request_id = sub.request_id;
  options.prompt_tokens = static_cast<uint32_t>(sub.prompt->size());
  options.seed = sub.sampling.seed;
  const uint32_t n = sub.n;
  const std::string id = sub.request_id;
  now_ = clock_.Now();
  Continue(options, &sub.agent);
  RequestNote note;
  note.request_id = id;
  note.response_id = options.response_id;
  note.label = options.trace_label;
  note.tenant = sub.agent.tenant_id;
  note.parent = sub.agent.parent_program_id;
  note.workflow_class = sub.agent.workflow_class;
  note.call_id = sub.agent.call_id;
  note.arrival = sub.arrival;
  note.prompt_tokens = options.prompt_tokens;
  SubmitResult result = core_->Submit(std::move(sub), now_);
  if (!result.ok()) {
    const Rejection r = FromCore(result.refused, result.message, result.retry_after);
    metrics_.OnRefused(r.reason);
    AS_LOG(kDebug, "request.refused") << Field("request", id) << Field("reason", r.reason);
    stream->End(ToGrpc(r));
    return;
  }
  AS_LOG(kDebug, "request.accepted") << Field("request", id) << Field("client_id", options.trace_label)
                                     << Field("prompt_tokens", options.prompt_tokens) << Field("n", n);
  note.key = result.key;
  note.program = options.program_id = result.program_id;
  note.identity = options.identity = result.identity;
  note.clamped = result.clamped;
  index_.Add(std::move(note));
  by_request_id_[id] = result.key;
  streams_[result.key] = std::make_unique<StreamEdge>(model_, std::move(options), stream);
  stream->OnCancelled([this, key = result.key] {
    loop_.Post([this, key] {
      now_ = clock_.Now();
      core_->EndRequest(key, EndReason::kCancelled, "the caller cancelled the request", now_);
    });
  });
}

// A call that names an earlier reply belongs to its program; a cache key says less.
void Shell::Continue(const StreamOptions& options, AgentInfo* agent) {
  if (options.previous_response_id.empty()) return;
  if (!agent->program_id.empty() && agent->identity != Identity::kCacheKey) return;
  const RequestNote* before = index_.Find(agent->tenant_id, options.previous_response_id);
  if (before == nullptr || before->program.empty()) return;
  agent->program_id = before->program;
  agent->identity = Identity::kPreviousResponse;
}

bool Shell::ReportTool(const v1::ReportToolRequest& req) {
  std::string program = req.program_id();
  const bool start = req.phase() == v1::ReportToolRequest::PHASE_START;
  if (program.empty()) {
    RequestNote* note = index_.Find(req.tenant_id(), req.request_id());
    if (note == nullptr) return false;
    program = note->program;
    if (start) note->tool = req.tool_name().substr(0, 128);
  }
  if (program.empty() || !core_->KnowsProgram(req.tenant_id(), program)) return false;
  core_->ReportTool(req.tenant_id(), program, req.tool_name(), start, now());
  return true;
}

grpc::Status Shell::DeclareProgram(const v1::DeclareProgramRequest& req, v1::DeclareProgramResponse* out) {
  std::vector<DeclaredCallInfo> calls;
  for (const v1::DeclaredCall& c : req.calls()) {
    calls.push_back({c.call_id(), {c.depends_on().begin(), c.depends_on().end()}, c.osl_hint()});
  }
  const absl::Status s = core_->DeclareProgram(req.tenant_id(), req.program_id(), calls);
  if (!s.ok()) return ToGrpc(FromStatus(s, "calls"));
  out->set_pending(core_->graph().DeclaredLeft(ProgramTable::Key(req.tenant_id(), req.program_id())));
  return grpc::Status::OK;
}

bool Shell::Explain(const v1::ExplainRequest& req, v1::Decision* out) {
  const RequestNote* note = index_.Find(req.tenant_id(), req.request_id());
  if (note == nullptr) return false;
  FillDecision(*note, *core_, now(), out);
  return true;
}

void Shell::ListDecisions(const v1::ListDecisionsRequest& req, v1::ListDecisionsResponse* out) const {
  constexpr uint32_t kDefault = 20, kMost = 200;
  const uint32_t limit = req.limit() == 0 ? kDefault : std::min(req.limit(), kMost);
  const auto& all = index_.all();
  for (auto it = all.rbegin(); it != all.rend() && out->decisions_size() < static_cast<int>(limit); ++it) {
    if (!req.tenant_id().empty() && it->tenant != req.tenant_id()) continue;
    if (!req.program_id().empty() && it->program != req.program_id()) continue;
    FillDecision(*it, *core_, clock_.Now(), out->add_decisions());
  }
}

bool Shell::Cancel(const std::string& request_id) {
  auto it = by_request_id_.find(request_id);
  if (it == by_request_id_.end()) return false;
  core_->EndRequest(it->second, EndReason::kCancelled, "the request was cancelled by id", now());
  return true;
}

void Shell::ApplyTokens(const std::vector<TokenOut>& tokens) {
  for (const TokenOut& t : tokens) {
    auto it = streams_.find(t.request);
    if (it == streams_.end()) continue;
    touched_.push_back(it->second->stream());
    switch (it->second->OnToken(t)) {
      case StreamEdge::After::kGoOn:
        break;
      case StreamEdge::After::kStopped:
        core_->StopSequence(t.request, t.index, it->second->completion_tokens(t.index), now_);
        break;
      case StreamEdge::After::kSlowReader:
        it->second->stream()->DropQueued();
        core_->EndRequest(t.request, EndReason::kSlowClient,
                          base::StrCat("the reader of this stream fell more than ", config_.stream_buffer_bytes,
                                       " bytes behind; read faster"),
                          now_);
        break;
    }
  }
}

void Shell::EndStream(const RequestDone& done) {
  metrics_.OnRequestEnd(done);
  index_.OnEnd(done);
  if (done.timeline.transfer_bytes > 0) {
    metrics_.OnTransfer(done.timeline.transfer_path, done.timeline.transfer_bytes, done.timeline.transfer_gb_per_s,
                        done.timeline.transfer_exposed_ms);
  }
  auto it = streams_.find(done.request);
  if (it == streams_.end()) return;
  StreamEdge& edge = *it->second;
  edge.OnRequestEnd(done);
  const Timeline& t = done.timeline;
  AS_LOG(kDebug, "request.ended") << Field("request", edge.options().request_id)
                                  << Field("client_id", edge.options().trace_label)
                                  << Field("reason", EndReasonName(done.reason))
                                  << Field("prompt_tokens", done.prompt_tokens)
                                  << Field("completion_tokens", edge.total_completion_tokens())
                                  << Field("cached_tokens", done.cached_tokens) << Field("queue_ms", t.queue_ms)
                                  << Field("prefill_ms", t.prefill_ms) << Field("transfer", t.transfer_path)
                                  << Field("exposed_ms", t.transfer_exposed_ms) << Field("decode_ms", t.decode_ms)
                                  << Field("ttft_ms", t.ttft_ms) << Field("total_ms", t.total_ms)
                                  << Field("migrations", t.migrations) << Field("prefill_worker", t.prefill_worker)
                                  << Field("decode_worker", t.decode_worker) << Field("detail", done.message);
  ending_.emplace_back(now_ + kStatusTimeout, edge.stream());
  by_request_id_.erase(edge.options().request_id);
  streams_.erase(it);
}

// ---- turns ----

void Shell::Apply() {
  for (;;) {
    effects_.clear();
    core_->TakeEffects(&effects_);
    if (effects_.empty()) break;
    // Taken out whole: carrying out one effect may cause more, which come with the next round.
    Effects now_todo;
    std::swap(now_todo, effects_);
    for (const LinkEffect& l : now_todo.links) {
      if (l.open) {
        OpenLink(l.worker);
      } else {
        CloseLink(l.worker);
      }
    }
    for (const Command& c : now_todo.commands) ApplyCommand(c);
    ApplyTokens(now_todo.tokens);
    for (const SequenceDone& s : now_todo.sequence_ends) {
      metrics_.OnFinishReason(s.reason);
      if (auto it = streams_.find(s.request); it != streams_.end()) it->second->OnSequenceEnd(s);
    }
    for (const RequestDone& r : now_todo.request_ends) EndStream(r);
  }
  for (const std::shared_ptr<ReplyStream>& stream : touched_) stream->Flush();
  touched_.clear();
}

TimeNs Shell::Turn() {
  const TimeNs start = clock_.Now();
  now_ = start;
  if (core_->NextWake() <= now_) core_->Tick(now_);
  Apply();
  if (now_ >= next_housekeeping_) Housekeep();
  for (size_t i = 0; i < repeating_.size();) {
    Repeating& r = repeating_[i];
    if (r.next <= now_) {
      r.next = now_ + r.interval;
      if (!r.f()) {
        repeating_.erase(repeating_.begin() + static_cast<std::ptrdiff_t>(i));
        continue;
      }
    }
    ++i;
  }
  if (core_->ready() != was_ready_) {
    was_ready_ = core_->ready();
    AS_LOG(kInfo, was_ready_ ? "cluster.ready" : "cluster.not_ready");
    on_ready_(was_ready_);
  }
  metrics_.OnTurn(static_cast<double>(clock_.Now() - start) / 1e9);
  TimeNs next = std::min(core_->NextWake(), next_housekeeping_);
  for (const Repeating& r : repeating_) next = std::min(next, r.next);
  return next;
}

void Shell::Housekeep() {
  next_housekeeping_ = now_ + kHousekeeping;
  CheckLinks();
  while (!ending_.empty() && ending_.front().first <= now_) {
    if (auto stream = ending_.front().second.lock()) stream->Abort();
    ending_.pop_front();
  }
  if (now_ - rates_since_ >= base::kNsPerSecond) {
    const double seconds = static_cast<double>(now_ - rates_since_) / 1e9;
    const double total = static_cast<double>(core_->stats().tokens);
    tokens_per_s_ = (total - tokens_before_) / seconds;
    tokens_before_ = total;
    for (auto& [id, l] : links_) {
      l.tokens_per_s = (l.tokens - l.tokens_before) / seconds;
      l.tokens_before = l.tokens;
    }
    rates_since_ = now_;
  }
  metrics_.Publish(*core_, now_);
}

void Shell::Shutdown(int64_t drain_ms) {
  loop_.Call([this] { core_->BeginDrain(); });
  const TimeNs until = clock_.Now() + drain_ms * base::kNsPerMs;
  bool idle = false;
  while (!idle && clock_.Now() < until) {
    if (!loop_.Call([&] { idle = core_->live_requests() == 0; })) return;
    if (!idle) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  loop_.Call([this] {
    now_ = clock_.Now();
    closing_ = true;
    std::vector<RequestKey> rest;
    for (const auto& [key, edge] : streams_) rest.push_back(key);
    std::sort(rest.begin(), rest.end());
    for (RequestKey key : rest) {
      core_->EndRequest(key, EndReason::kDraining, "the router shut down before the request ended; try again", now_);
    }
    Apply();
    for (auto& [id, link] : links_) link.link->Close();
  });
}

}  // namespace agentserve::router
