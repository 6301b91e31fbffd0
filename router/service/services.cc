#include "router/service/services.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "base/rng.h"
#include "base/strings.h"
#include "router/service/generate_stream.h"
#include "router/service/session_stream.h"

namespace agentserve::router {
namespace {

// The request's budget within the server's limit.
int64_t BudgetMs(uint64_t asked, const ServiceConfig& config) {
  return asked == 0 ? config.default_budget_ms
                    : static_cast<int64_t>(std::min<uint64_t>(asked, static_cast<uint64_t>(config.max_budget_ms)));
}

// The smaller of that and the call's deadline.
int64_t BudgetMs(const grpc::CallbackServerContext& context, uint64_t asked, const ServiceConfig& config) {
  int64_t budget = BudgetMs(asked, config);
  const auto deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    const auto left = deadline - std::chrono::system_clock::now();
    budget = std::min<int64_t>(budget, std::chrono::duration_cast<std::chrono::milliseconds>(left).count());
  }
  return budget;
}

StreamOptions OptionsOf(const v1::GenerateRequest& req) {
  StreamOptions o;
  o.n = std::max<uint32_t>(1, req.n());
  o.stop.assign(req.sampling().stop().begin(), req.sampling().stop().end());
  o.include_stop = req.sampling().include_stop_str_in_output();
  o.return_token_ids = req.return_token_ids();
  o.keep_special = req.keep_special_tokens();
  o.logprobs = req.sampling().has_top_logprobs();
  o.stop_token_ids.assign(req.sampling().stop_token_ids().begin(), req.sampling().stop_token_ids().end());
  o.trace_label = req.trace().client_request_id();
  o.response_id = req.trace().response_id();
  o.previous_response_id = req.agent().previous_response_id();
  return o;
}

Rejection EdgeFull() {
  return FromCore(EndReason::kQueueFull, "too much text waits to be tokenized; try again later", base::kNsPerSecond);
}

// Runs on an edge thread.
void PrepareAndSubmit(const ServiceParts& p, const v1::GenerateRequest& req, TimeNs arrival, TimeNs deadline,
                      const std::shared_ptr<ReplyStream>& stream) {
  auto sub = std::make_shared<Submission>();
  if (auto bad = Prepare(req, p.model, p.shell.chain_params(), sub.get())) {
    p.shell.loop().Post([&metrics = p.metrics, reason = bad->reason] { metrics.OnRefused(reason); });
    stream->End(ToGrpc(*bad));
    return;
  }
  sub->request_id = base::RandomHex128();
  sub->arrival = arrival;
  sub->deadline = deadline;
  p.shell.loop().Post([&shell = p.shell, sub, options = OptionsOf(req), stream]() mutable {
    shell.Submit(std::move(*sub), std::move(options), stream);
  });
}

// Checks a request and has it prepared, or ends `stream` with why not.
void Begin(const ServiceParts& p, const v1::GenerateRequest& request, int64_t budget_ms,
           std::shared_ptr<ReplyStream> stream) {
  const TimeNs arrival = p.shell.clock().Now();
  const TimeNs deadline = arrival + budget_ms * base::kNsPerMs;
  std::optional<Rejection> bad = CheckRequest(request, p.model, p.config);
  if (!bad) {
    // gRPC frees the request when its reaction returns, hence the copy.
    const bool queued =
        p.pool.Submit(PromptBytes(request), [p, req = std::make_shared<v1::GenerateRequest>(request), arrival, deadline,
                                             stream] { PrepareAndSubmit(p, *req, arrival, deadline, stream); });
    if (!queued) bad = EdgeFull();
  }
  if (!bad) return;
  p.shell.loop().Post([&metrics = p.metrics, reason = bad->reason] { metrics.OnRefused(reason); });
  stream->End(ToGrpc(*bad));
}

// A cluster watcher: one state at a time; a slow reader skips states.
class Watcher final : public grpc::ServerWriteReactor<v1::WatchClusterResponse>,
                      public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(std::atomic<uint32_t>* count) : count_(count) {}
  void Hold() { self_ = shared_from_this(); }
  // False: the call is over.
  bool Show(v1::WatchClusterResponse state) {
    std::lock_guard lock(mu_);
    if (over_) return false;
    if (busy_) return true;
    state_ = std::move(state);
    busy_ = true;
    StartWrite(&state_);
    return true;
  }
  void End(const grpc::Status& status) {
    std::lock_guard lock(mu_);
    EndLocked(status);
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mu_);
    busy_ = false;
    if (!ok || over_) EndLocked(grpc::Status::CANCELLED);
  }
  void OnCancel() override {
    std::lock_guard lock(mu_);
    over_ = true;
    if (!busy_) EndLocked(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    count_->fetch_sub(1);
    std::shared_ptr<Watcher> last;
    std::lock_guard lock(mu_);
    last = std::move(self_);
  }

 private:
  void EndLocked(const grpc::Status& status) {
    over_ = true;
    if (finished_) return;
    finished_ = true;
    Finish(status);
  }
  std::atomic<uint32_t>* const count_;
  std::mutex mu_;
  v1::WatchClusterResponse state_;
  bool busy_ = false, over_ = false, finished_ = false;
  std::shared_ptr<Watcher> self_;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* RouterServiceImpl::Generate(grpc::CallbackServerContext* context,
                                                                            const v1::GenerateRequest* request) {
  auto stream = std::make_shared<GenerateStream>(context, p_.config.stream_buffer_bytes);
  stream->HoldUntilDone();
  Begin(p_, *request, BudgetMs(*context, request->budget_ms(), p_.config), stream);
  return stream.get();
}

grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* RouterServiceImpl::Session(
    grpc::CallbackServerContext* context) {
  SessionLimits limits;
  limits.call_bytes = p_.config.stream_buffer_bytes;
  auto session = std::make_shared<SessionStream>(
      context, limits, [p = p_](std::shared_ptr<ReplyStream> to, const v1::GenerateRequest& request) {
        Begin(p, request, BudgetMs(request.budget_ms(), p.config), std::move(to));
      });
  session->Start();
  return session.get();
}

grpc::ServerUnaryReactor* RouterServiceImpl::Cancel(grpc::CallbackServerContext* context,
                                                    const v1::CancelRequest* request, v1::CancelResponse*) {
  auto* reactor = context->DefaultReactor();
  p_.shell.loop().Post([&shell = p_.shell, id = request->request_id(), reactor] {
    if (shell.Cancel(id)) {
      reactor->Finish(grpc::Status::OK);
      return;
    }
    Rejection r;
    r.code = grpc::StatusCode::NOT_FOUND;
    r.reason = "REQUEST_NOT_FOUND";
    r.message = base::StrCat("no request \"", id.substr(0, 64), "\" is running");
    reactor->Finish(ToGrpc(r));
  });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::ReportTool(grpc::CallbackServerContext* context,
                                                        const v1::ReportToolRequest* request,
                                                        v1::ReportToolResponse* response) {
  auto* reactor = context->DefaultReactor();
  const bool nameless = request->program_id().empty() && request->request_id().empty();
  if (request->phase() == v1::ReportToolRequest::PHASE_UNSPECIFIED || nameless) {
    reactor->Finish(ToGrpc(InvalidField(nameless ? "program_id" : "phase", "is missing")));
    return reactor;
  }
  // Unary requests and responses live until Finish.
  p_.shell.loop().Post([&shell = p_.shell, request, response, reactor] {
    response->set_known(shell.ReportTool(*request));
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::EndProgram(grpc::CallbackServerContext* context,
                                                        const v1::EndProgramRequest* request,
                                                        v1::EndProgramResponse* response) {
  auto* reactor = context->DefaultReactor();
  if (auto bad = CheckProgramName(request->tenant_id(), request->program_id())) {
    reactor->Finish(ToGrpc(*bad));
    return reactor;
  }
  p_.shell.loop().Post([&shell = p_.shell, request, response, reactor] {
    response->set_known(shell.core().KnowsProgram(request->tenant_id(), request->program_id()));
    shell.core().EndProgram(request->tenant_id(), request->program_id(), shell.now());
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::DeclareProgram(grpc::CallbackServerContext* context,
                                                            const v1::DeclareProgramRequest* request,
                                                            v1::DeclareProgramResponse* response) {
  auto* reactor = context->DefaultReactor();
  if (auto bad = CheckDeclaration(*request)) {
    reactor->Finish(ToGrpc(*bad));
    return reactor;
  }
  p_.shell.loop().Post(
      [&shell = p_.shell, request, response, reactor] { reactor->Finish(shell.DeclareProgram(*request, response)); });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::Explain(grpc::CallbackServerContext* context,
                                                     const v1::ExplainRequest* request, v1::ExplainResponse* response) {
  auto* reactor = context->DefaultReactor();
  p_.shell.loop().Post([&shell = p_.shell, request, response, reactor] {
    if (shell.Explain(*request, response->mutable_decision())) {
      reactor->Finish(grpc::Status::OK);
      return;
    }
    Rejection r;
    r.code = grpc::StatusCode::NOT_FOUND;
    r.reason = "REQUEST_NOT_FOUND";
    r.message = base::StrCat("nothing is known of a request \"", request->request_id().substr(0, 64),
                             "\"; the router remembers the last ", shell.core().config().max_decisions);
    reactor->Finish(ToGrpc(r));
  });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::ListDecisions(grpc::CallbackServerContext* context,
                                                           const v1::ListDecisionsRequest* request,
                                                           v1::ListDecisionsResponse* response) {
  auto* reactor = context->DefaultReactor();
  p_.shell.loop().Post([&shell = p_.shell, request, response, reactor] {
    shell.ListDecisions(*request, response);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest*,
                                                      v1::GetModelResponse* response) {
  auto* reactor = context->DefaultReactor();
  p_.shell.loop().Post([&shell = p_.shell, response, reactor] {
    shell.FillModel(response);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  auto* reactor = context->DefaultReactor();
  const size_t bytes = request->has_chat() ? ChatBytes(request->chat()) : request->text().size();
  auto job = [&model = p_.model, request, response, reactor] {
    std::vector<uint32_t> ids;
    if (request->has_chat()) {
      if (auto bad = ChatTokens(request->chat(), model, &ids, response->mutable_rendered())) {
        reactor->Finish(ToGrpc(*bad));
        return;
      }
    } else {
      if (request->add_special_tokens() && model.tokenizer->bos()) ids.push_back(*model.tokenizer->bos());
      const std::vector<uint32_t> body = model.tokenizer->Encode(request->text());
      ids.insert(ids.end(), body.begin(), body.end());
    }
    response->mutable_ids()->Add(ids.begin(), ids.end());
    reactor->Finish(grpc::Status::OK);
  };
  // Unary requests live until Finish, so the job may point into them.
  if (!p_.pool.Submit(bytes, std::move(job))) reactor->Finish(ToGrpc(EdgeFull()));
  return reactor;
}

grpc::ServerUnaryReactor* RouterServiceImpl::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  auto* reactor = context->DefaultReactor();
  auto job = [&model = p_.model, request, response, reactor] {
    const std::vector<uint32_t> ids(request->ids().begin(), request->ids().end());
    for (uint32_t id : ids) {
      if (id < model.vocab_size()) continue;
      reactor->Finish(
          ToGrpc(InvalidField("ids", base::StrCat(id, " is outside the vocabulary of ", model.vocab_size()))));
      return;
    }
    response->set_text(model.tokenizer->Decode(ids, /*skip_special=*/false));
    reactor->Finish(grpc::Status::OK);
  };
  if (!p_.pool.Submit(request->ids_size() * sizeof(uint32_t), std::move(job))) reactor->Finish(ToGrpc(EdgeFull()));
  return reactor;
}

grpc::ServerWriteReactor<v1::WatchClusterResponse>* RouterServiceImpl::WatchCluster(
    grpc::CallbackServerContext*, const v1::WatchClusterRequest* request) {
  auto watcher = std::make_shared<Watcher>(&watchers_);
  watcher->Hold();
  if (watchers_.fetch_add(1) >= p_.config.max_watchers) {
    watcher->End(ToGrpc(FromCore(EndReason::kQueueFull, "too many watchers; try again later", base::kNsPerSecond)));
    return watcher.get();
  }
  const uint32_t ms = request->interval_ms() == 0 ? 1000 : std::max<uint32_t>(100, request->interval_ms());
  p_.shell.loop().Post([&shell = p_.shell, watcher, ms] {
    auto show = [&shell, watcher] {
      v1::WatchClusterResponse state;
      shell.FillCluster(&state);
      return watcher->Show(std::move(state));
    };
    if (show()) shell.Every(ms * base::kNsPerMs, show);
  });
  return watcher.get();
}

grpc::ServerUnaryReactor* ClusterServiceImpl::Register(grpc::CallbackServerContext* context,
                                                       const v1::RegisterRequest* request,
                                                       v1::RegisterResponse* response) {
  auto* reactor = context->DefaultReactor();
  shell_.loop().Post([this, request, response, reactor] { reactor->Finish(shell_.Register(*request, response)); });
  return reactor;
}

grpc::ServerUnaryReactor* ClusterServiceImpl::Drain(grpc::CallbackServerContext* context,
                                                    const v1::DrainRequest* request, v1::DrainResponse* response) {
  auto* reactor = context->DefaultReactor();
  shell_.loop().Post([this, request, response, reactor] { reactor->Finish(shell_.Drain(*request, response)); });
  return reactor;
}

}  // namespace agentserve::router
