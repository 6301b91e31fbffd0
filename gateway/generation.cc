#include "gateway/generation.h"

#include <boost/asio/post.hpp>

#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"

namespace agentserve::gateway {
namespace {

using base::Field;
using base::StrCat;
using base::TimeNs;

constexpr const char* kEventStream = "text/event-stream; charset=utf-8";
// The router decides about time-outs and says which stage it was; the call's own deadline is the net below that.
constexpr int64_t kDeadlineSlackMs = 2'000;
constexpr int64_t kRetryPollMs = 50;
// gRPC ends the reads without a status if it cannot parse an event.
constexpr int64_t kStatusWaitMs = 500;
constexpr int kMaxAttempts = 2;
constexpr size_t kMaxToolNameBytes = 128;

// Also names the reply to the router, so that the caller can ask why by the id it sees.
ReplyIdentity MakeIdentity(GenerationStart* start) {
  const std::string id = StrCat(start->parsed.options.chat ? "chatcmpl-" : "cmpl-", base::RandomHex128());
  for (auto& request : start->parsed.requests) request.mutable_trace()->set_response_id(id);
  return {id, base::UnixSeconds(), start->model};
}

}  // namespace

Generation::Generation(const GenerationDeps& deps, GenerationStart start, std::shared_ptr<Exchange> exchange)
    : deps_(deps),
      start_(std::move(start)),
      exchange_(std::move(exchange)),
      timer_(exchange_->executor()),
      assembler_(MakeIdentity(&start_), start_.parsed.options, start_.parsed.requests.size(), base::EntropyUint64()),
      sources_(start_.parsed.requests.size()),
      last_output_(start_.parsed.requests.size() * start_.parsed.options.n) {
  deps_.metrics->in_flight.Increment();
}

Generation::~Generation() { deps_.metrics->in_flight.Decrement(); }

int64_t Generation::RemainingMs() const {
  return start_.budget_ms - (deps_.clock->Now() - start_.received_ns) / base::kNsPerMs;
}

// The net below the router's own deadline.
TimeNs Generation::HardDeadline() const {
  return start_.received_ns + (start_.budget_ms + 2 * kDeadlineSlackMs) * base::kNsPerMs;
}

void Generation::Start() {
  last_write_ = deps_.clock->Now();
  Prepare();
  ArmTimer();
}

// ---- Before the router generates ----

void Generation::Prepare() {
  const ReplyOptions& options = start_.parsed.options;
  prepare_open_ = 1;
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (options.return_token_ids) PrepareTokenIds(i);
    if (options.echo) PrepareEcho(i);
  }
  OnPrepared();
}

// The prompt's ids are part of the reply, so it is tokenized first and generated from exactly these.
void Generation::PrepareTokenIds(size_t prompt) {
  pb::GenerateRequest& request = start_.parsed.requests[prompt];
  if (request.has_token_ids()) {
    return assembler_.SetPromptTokenIds(prompt, {request.token_ids().ids().begin(), request.token_ids().ids().end()});
  }
  pb::TokenizeRequest tokenize;
  if (request.has_chat()) {
    *tokenize.mutable_chat() = request.chat();
  } else {
    tokenize.set_text(request.text());
    tokenize.set_add_special_tokens(true);
  }
  ++prepare_open_;
  preparing_.push_back(deps_.router->Tokenize(
      tokenize, start_.metadata, RemainingMs(),
      [weak = weak_from_this(), executor = exchange_->executor(), prompt](const grpc::Status& status,
                                                                          const pb::TokenizeResponse& response) {
        boost::asio::post(executor, [weak, prompt, status, response] {
          auto self = weak.lock();
          if (!self || self->over_) return;
          if (!status.ok()) return self->Fail(FromGrpc(status));
          std::vector<uint32_t> ids(response.ids().begin(), response.ids().end());
          *self->start_.parsed.requests[prompt].mutable_token_ids()->mutable_ids() = response.ids();
          self->assembler_.SetPromptTokenIds(prompt, std::move(ids));
          self->OnPrepared();
        });
      }));
}

void Generation::PrepareEcho(size_t prompt) {
  const pb::GenerateRequest& request = start_.parsed.requests[prompt];
  if (request.has_text()) return assembler_.SetEcho(prompt, request.text());
  pb::DetokenizeRequest detokenize;
  *detokenize.mutable_ids() = request.token_ids().ids();
  ++prepare_open_;
  preparing_.push_back(
      deps_.router->Detokenize(detokenize, start_.metadata, RemainingMs(),
                               [weak = weak_from_this(), executor = exchange_->executor(), prompt](
                                   const grpc::Status& status, const pb::DetokenizeResponse& response) {
                                 boost::asio::post(executor, [weak, prompt, status, response] {
                                   auto self = weak.lock();
                                   if (!self || self->over_) return;
                                   if (!status.ok()) return self->Fail(FromGrpc(status));
                                   self->assembler_.SetEcho(prompt, response.text());
                                   self->OnPrepared();
                                 });
                               }));
}

void Generation::OnPrepared() {
  if (--prepare_open_ > 0) return;
  preparing_.clear();
  for (size_t i = 0; i < sources_.size(); ++i) Launch(i);
}

void Generation::Launch(size_t source) {
  Source& s = sources_[source];
  ++s.attempts;
  s.waits_for_router = false;
  const int64_t remaining = std::max<int64_t>(RemainingMs(), 1);
  pb::GenerateRequest& request = start_.parsed.requests[source];
  request.set_budget_ms(static_cast<uint64_t>(remaining));
  s.call = deps_.router->Generate(request, start_.metadata, remaining + kDeadlineSlackMs,
                                  [weak = weak_from_this(), executor = exchange_->executor(), source] {
                                    boost::asio::post(executor, [weak, source] {
                                      if (auto self = weak.lock()) self->OnSource(source);
                                    });
                                  });
}

// ---- While it generates ----

void Generation::OnSource(size_t source) {
  Source& s = sources_[source];
  if (over_ || !s.call) return;
  GenerateCall::Batch batch = s.call->Take();
  std::string out;
  for (const auto& event : batch.events) {
    if (!OnEvent(source, event, &out)) return;
  }
  if (batch.status) {
    OnStatus(source, *batch.status, &out);
  } else if (batch.read_ended) {
    s.status_until = deps_.clock->Now() + kStatusWaitMs * base::kNsPerMs;
    ArmTimer();
  }
  if (!over_) WriteOut(out);
}

bool Generation::OnEvent(size_t source, const pb::GenerateResponse& event, std::string* out) {
  Source& s = sources_[source];
  if (event.has_accepted()) {
    s.accepted = true;
    if (source == 0) OnAccepted(event.accepted());
  } else if (event.has_delta()) {
    s.emitted = true;
    ObserveDelta(source, event.delta());
  } else if (event.has_sequence_end()) {
    s.emitted = true;
  }
  if (start_.parsed.options.stream && !committed_) {
    const bool all = std::all_of(sources_.begin(), sources_.end(), [](const Source& x) { return x.accepted; });
    if (all || s.emitted) CommitHeaders(out);
  }
  if (auto error = assembler_.OnEvent(source, event, out)) {
    WriteOut(*out);
    Fail(*error);
    return false;
  }
  if (assembler_.held_bytes() > deps_.config->http.reply_bytes) {
    Fail(InvalidRequest(StrCat("the reply is larger than ", deps_.config->http.reply_bytes,
                               " bytes; use `stream: true`, fewer tokens or fewer logprobs"),
                        "stream"));
    return false;
  }
  return true;
}

void Generation::OnAccepted(const pb::Accepted& accepted) {
  // A second try has another id, and headers that went out stay.
  if (committed_ || !router_request_id_.empty()) return;
  router_request_id_ = accepted.request_id();
  start_.headers.emplace_back("x-agentserve-request-id", accepted.request_id());
  if (!accepted.program_id().empty()) start_.headers.emplace_back("x-agentserve-program-id", accepted.program_id());
}

// The router learns from it how long tools take, and keeps the program's KV accordingly.
void Generation::ReportToolCall() {
  const Choice& choice = assembler_.choices()[0];
  if (choice.finish_reason() != "tool_calls" || choice.first_call().empty() || router_request_id_.empty()) return;
  pb::ReportToolRequest report;
  report.set_tenant_id(start_.parsed.requests[0].agent().tenant_id());
  report.set_request_id(router_request_id_);
  report.set_tool_name(choice.first_call().substr(0, kMaxToolNameBytes));
  report.set_phase(pb::ReportToolRequest::PHASE_START);
  constexpr int64_t kReportDeadlineMs = 5'000;
  deps_.router->ReportTool(report, start_.metadata, kReportDeadlineMs,
                           [](const grpc::Status&, const pb::ReportToolResponse&) {});
}

void Generation::ObserveDelta(size_t source, const pb::Delta& delta) {
  const TimeNs now = deps_.clock->Now();
  if (first_output_ == 0) {
    first_output_ = now;
    deps_.metrics->ttft_s.Observe(static_cast<double>(now - start_.received_ns) / 1e9);
  }
  const size_t choice = source * start_.parsed.options.n + delta.index();
  if (choice >= last_output_.size()) return;
  if (last_output_[choice] != 0) {
    deps_.metrics->itl_s.Observe(static_cast<double>(now - last_output_[choice]) / 1e9);
  }
  last_output_[choice] = now;
}

void Generation::OnStatus(size_t source, const grpc::Status& status, std::string* out) {
  Source& s = sources_[source];
  s.call.reset();
  s.status_until = 0;
  if (status.ok()) {
    s.over = true;
    const bool all = std::all_of(sources_.begin(), sources_.end(), [](const Source& x) { return x.over; });
    if (!all) return;
    if (assembler_.complete()) return Succeed(out);
    WriteOut(*out);
    return Fail(InternalError("the router ended the stream early"));
  }
  // No details: the link broke, rather than the router refused.
  const bool link = status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty();
  if (link) deps_.model->Poke();
  if (link && !s.emitted && s.attempts < kMaxAttempts && RemainingMs() > kRetryPollMs) {
    s.waits_for_router = true;
    if (retry_until_ == 0) retry_until_ = deps_.clock->Now() + deps_.config->retry_wait_ms * base::kNsPerMs;
    return ArmTimer();
  }
  WriteOut(*out);
  ApiError error = FromGrpc(status);
  if (link) error.message = "the router is not reachable; try again shortly";
  Fail(error);
}

void Generation::CommitHeaders(std::string* out) {
  committed_ = true;
  HeaderList headers = start_.headers;
  headers.emplace_back("cache-control", "no-cache");
  headers.emplace_back("x-accel-buffering", "no");
  exchange_->BeginStream(200, kEventStream, headers);
  deps_.metrics->streams.Increment();
  assembler_.Start(out);
  last_write_ = deps_.clock->Now();
  ArmTimer();  // for the pings
}

void Generation::WriteOut(std::string_view bytes) {
  if (bytes.empty() || !committed_) return;
  last_write_ = deps_.clock->Now();
  exchange_->Write(bytes);
}

// ---- Ends ----

void Generation::Succeed(std::string* out) {
  const TimeNs now = deps_.clock->Now();
  GatewayTimes times;
  times.ttft_ms = first_output_ == 0 ? 0 : base::ToMs(first_output_ - start_.received_ns);
  times.total_ms = base::ToMs(now - start_.received_ns);
  const Usage& usage = assembler_.usage();
  deps_.metrics->prompt_tokens.Increment(static_cast<double>(usage.prompt_tokens));
  deps_.metrics->generation_tokens.Increment(static_cast<double>(usage.completion_tokens));
  deps_.metrics->cached_tokens.Increment(static_cast<double>(usage.cached_tokens));
  deps_.metrics->prompt_length.Observe(static_cast<double>(usage.prompt_tokens));
  deps_.metrics->output_length.Observe(static_cast<double>(usage.completion_tokens));
  for (const Choice& c : assembler_.choices()) deps_.metrics->CountFinish(c.finish_reason());
  ReportToolCall();
  if (start_.parsed.options.stream) {
    if (!committed_) CommitHeaders(out);
    assembler_.Finish(times, out);
    WriteOut(*out);
    exchange_->End();
  } else {
    HttpReply reply;
    assembler_.Finish(times, &reply.body);
    reply.headers = start_.headers;
    reply.headers.emplace_back("openai-processing-ms", StrCat(static_cast<int64_t>(times.total_ms)));
    exchange_->Send(std::move(reply));
  }
  Finish(200, "");
}

void Generation::Fail(const ApiError& error) {
  if (over_) return;
  deps_.metrics->CountReject(error.reason());
  deps_.metrics->CountFinish("error");
  if (committed_) {
    std::string out;
    ReplyAssembler::Fail(error, &out);
    WriteOut(out);
    exchange_->End();
  } else {
    HttpReply reply;
    reply.status = error.status;
    reply.body = error.Json();
    reply.headers = start_.headers;
    for (auto& h : error.Headers()) reply.headers.push_back(std::move(h));
    exchange_->Send(std::move(reply));
  }
  if (error.status >= 500) {
    AS_LOG(kInfo, "request.failed") << Field("route", start_.route) << Field("status", error.status)
                                    << Field("code", error.reason()) << Field("message", error.message)
                                    << Field("request_id", start_.request_id);
  }
  Finish(error.status, error.reason());
}

void Generation::OnClientGone() {
  if (over_) return;
  switch (exchange_->gone_reason()) {
    case GoneReason::kDisconnect:
      deps_.metrics->disconnects.Increment();
      break;
    case GoneReason::kSlowClient:
      deps_.metrics->slow_clients.Increment();
      break;
    case GoneReason::kDrain:
      break;
  }
  deps_.metrics->CountFinish("client_gone");
  Finish(499, "client_gone");
}

void Generation::Finish(int status, std::string_view reason) {
  over_ = true;
  timer_.cancel();
  CancelCalls();
  if (committed_) deps_.metrics->streams.Decrement();
  const TimeNs now = deps_.clock->Now();
  deps_.metrics->e2e_s.Observe(static_cast<double>(now - start_.received_ns) / 1e9);
  deps_.metrics->CountRequest(start_.route, status);
  AS_LOG(kDebug, "request.end") << Field("route", start_.route) << Field("status", status) << Field("reason", reason)
                                << Field("stream", start_.parsed.options.stream)
                                << Field("prompt_tokens", assembler_.usage().prompt_tokens)
                                << Field("completion_tokens", assembler_.usage().completion_tokens)
                                << Field("ttft_ms", first_output_ ? base::ToMs(first_output_ - start_.received_ns) : 0)
                                << Field("total_ms", base::ToMs(now - start_.received_ns))
                                << Field("request_id", start_.request_id);
}

void Generation::CancelCalls() {
  for (auto& handle : preparing_) handle->Cancel();
  preparing_.clear();
  for (Source& s : sources_) {
    if (s.call) s.call->Cancel();
    s.call.reset();
  }
}

// ---- Time ----

void Generation::ArmTimer() {
  if (over_) return;
  const TimeNs now = deps_.clock->Now();
  TimeNs next = HardDeadline();
  if (retry_until_ != 0) next = std::min(next, now + kRetryPollMs * base::kNsPerMs);
  for (const Source& s : sources_) {
    if (s.status_until != 0) next = std::min(next, s.status_until);
  }
  if (start_.parsed.options.stream) {
    if (!committed_) {
      next = std::min(next, start_.received_ns + deps_.config->commit_headers_ms * base::kNsPerMs);
    } else if (deps_.config->ping_ms > 0) {
      next = std::min(next, last_write_ + deps_.config->ping_ms * base::kNsPerMs);
    }
  }
  timer_.expires_after(std::chrono::nanoseconds(std::max<TimeNs>(next - now, 0)));
  timer_.async_wait([weak = weak_from_this()](boost::system::error_code ec) {
    if (ec) return;
    if (auto self = weak.lock()) self->OnTimer();
  });
}

void Generation::OnTimer() {
  if (over_) return;
  const TimeNs now = deps_.clock->Now();
  if (now >= HardDeadline()) {
    return Fail(
        FromGrpc(grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the router did not end the request in time")));
  }
  if (retry_until_ != 0) RetryLost(now);
  if (over_) return;
  for (const Source& s : sources_) {
    if (s.status_until != 0 && now >= s.status_until) {
      return Fail(InternalError("the router sent an event that cannot be read"));
    }
  }
  if (start_.parsed.options.stream && !committed_ &&
      now >= start_.received_ns + deps_.config->commit_headers_ms * base::kNsPerMs) {
    std::string out;
    CommitHeaders(&out);
    WriteOut(out);
  }
  if (committed_ && deps_.config->ping_ms > 0 && now >= last_write_ + deps_.config->ping_ms * base::kNsPerMs) {
    deps_.metrics->pings.Increment();
    WriteOut(": ping\n\n");
  }
  ArmTimer();
}

void Generation::RetryLost(TimeNs now) {
  const bool up = deps_.router->Connected();
  if (!up && now < retry_until_ && RemainingMs() > 0) return;
  retry_until_ = 0;
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (!sources_[i].waits_for_router) continue;
    if (!up) return Fail(Unavailable("the router is not reachable; try again shortly"));
    deps_.metrics->retries.Increment();
    Launch(i);
  }
}

}  // namespace agentserve::gateway
