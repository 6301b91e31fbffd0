#include "gateway/testing/fake_router.h"

#include <chrono>
#include <thread>

#include "agentserve/common/v1/rpc_error.pb.h"
#include "base/strings.h"

namespace agentserve::gateway::testing {

using common::v1::FinishReason;

pb::GenerateResponse Accepted(uint32_t prompt_tokens, uint64_t seed) {
  pb::GenerateResponse r;
  r.mutable_accepted()->set_request_id("0123456789abcdef0123456789abcdef");
  r.mutable_accepted()->set_prompt_tokens(prompt_tokens);
  r.mutable_accepted()->set_seed(seed);
  return r;
}

pb::GenerateResponse Delta(const std::string& text, uint32_t index) {
  pb::GenerateResponse r;
  // Scripts may cut inside a character, which a proto string cannot hold by the book; the wire does not mind.
  r.mutable_delta()->set_text(text);
  r.mutable_delta()->set_index(index);
  r.mutable_delta()->add_token_ids(7);
  return r;
}

pb::GenerateResponse DeltaWithLogprobs(const std::string& text, float logprob, const std::vector<std::string>& top,
                                       uint32_t index) {
  pb::GenerateResponse r = Delta(text, index);
  auto* l = r.mutable_delta()->add_logprobs();
  l->set_logprob(logprob);
  r.mutable_delta()->add_logprob_texts(text);
  float p = logprob;
  for (const auto& t : top) {
    l->add_top()->set_logprob(p);
    r.mutable_delta()->add_logprob_texts(t);
    p -= 1;
  }
  return r;
}

pb::GenerateResponse End(FinishReason reason, uint32_t tokens, uint32_t index) {
  pb::GenerateResponse r;
  r.mutable_sequence_end()->set_index(index);
  r.mutable_sequence_end()->set_reason(reason);
  r.mutable_sequence_end()->set_completion_tokens(tokens);
  return r;
}

pb::GenerateResponse Done(uint32_t prompt_tokens, uint32_t completion_tokens, uint32_t cached_tokens) {
  pb::GenerateResponse r;
  r.mutable_done()->set_prompt_tokens(prompt_tokens);
  r.mutable_done()->set_completion_tokens(completion_tokens);
  r.mutable_done()->set_cached_tokens(cached_tokens);
  r.mutable_done()->mutable_timeline()->set_prefill_ms(1.5);
  r.mutable_done()->mutable_timeline()->set_transfer_path("mapped");
  return r;
}

Script Say(const std::vector<std::string>& pieces, int delay_ms) {
  Script s;
  const auto n = static_cast<uint32_t>(pieces.size());
  s.steps.push_back({0, Accepted(5)});
  for (const auto& p : pieces) s.steps.push_back({delay_ms, Delta(p)});
  s.steps.push_back({0, End(common::v1::FINISH_REASON_STOP, n)});
  s.steps.push_back({0, Done(5, n, 2)});
  return s;
}

grpc::Status DetailedStatus(grpc::StatusCode code, const std::string& message, const std::string& reason,
                            int retry_ms) {
  common::v1::RpcStatus rpc;
  rpc.set_code(code);
  rpc.set_message(message);
  common::v1::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("agentserve");
  auto* any = rpc.add_details();
  any->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
  any->set_value(info.SerializeAsString());
  if (retry_ms >= 0) {
    common::v1::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(retry_ms % 1000 * 1'000'000);
    any = rpc.add_details();
    any->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
    any->set_value(retry.SerializeAsString());
  }
  return {code, message, rpc.SerializeAsString()};
}

std::string PromptOf(const pb::GenerateRequest& request) {
  if (request.has_text()) return request.text();
  for (int i = request.chat().messages_size() - 1; i >= 0; --i) {
    if (request.chat().messages(i).role() != "assistant") return request.chat().messages(i).content();
  }
  return "";
}

FakeRouter::FakeRouter() : scripter_([](const pb::GenerateRequest&) { return Say({"Hello", " world"}); }) {
  model_.set_model_id("fake-model");
  model_.set_context_length(4096);
  model_.set_vocab_size(1000);
  model_.set_created_unix_s(1700000000);
  model_.set_ready(true);
  model_.set_has_chat_template(true);
}

FakeRouter::~FakeRouter() { Stop(); }

int FakeRouter::Start(int port) {
  stopping_ = false;
  grpc::ServerBuilder builder;
  int bound = 0;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(), &bound);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  return server_ ? bound : 0;
}

void FakeRouter::Stop() {
  stopping_ = true;
  if (!server_) return;
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  server_->Wait();
  server_.reset();
}

void FakeRouter::set_script(Scripter scripter) {
  std::lock_guard lock(mutex_);
  scripter_ = std::move(scripter);
}

void FakeRouter::set_model(const pb::GetModelResponse& model) {
  std::lock_guard lock(mutex_);
  model_ = model;
}

pb::GetModelResponse FakeRouter::model() const {
  std::lock_guard lock(mutex_);
  return model_;
}

pb::GenerateRequest FakeRouter::last_request() const {
  std::lock_guard lock(mutex_);
  return last_request_;
}

std::map<std::string, std::string> FakeRouter::last_metadata() const {
  std::lock_guard lock(mutex_);
  return last_metadata_;
}

bool FakeRouter::Sleep(grpc::ServerContext* context, int ms) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
  while (!context->IsCancelled() && !stopping_) {
    if (std::chrono::steady_clock::now() >= until) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

grpc::Status FakeRouter::Generate(grpc::ServerContext* context, const pb::GenerateRequest* request,
                                  grpc::ServerWriter<pb::GenerateResponse>* writer) {
  Scripter scripter;
  {
    std::lock_guard lock(mutex_);
    scripter = scripter_;
    last_request_ = *request;
    last_metadata_.clear();
    for (const auto& [key, value] : context->client_metadata()) {
      last_metadata_.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
    }
  }
  ++generate_calls;
  ++running;
  const Script script = scripter(*request);
  bool cut = false;
  for (const Step& step : script.steps) {
    const int ms = step.hang ? 60'000 : step.delay_ms;
    if (ms > 0 && !Sleep(context, ms)) cut = true;
    if (cut || step.hang || !writer->Write(step.event)) break;
  }
  const bool cancelled = context->IsCancelled();
  if (cancelled) ++cancelled_calls;
  --running;
  if (stopping_ && cut) return {grpc::StatusCode::UNAVAILABLE, "going away"};
  return cancelled ? grpc::Status::CANCELLED : script.status;
}

grpc::Status FakeRouter::GetModel(grpc::ServerContext*, const pb::GetModelRequest*, pb::GetModelResponse* response) {
  *response = model();
  return grpc::Status::OK;
}

grpc::Status FakeRouter::Tokenize(grpc::ServerContext*, const pb::TokenizeRequest* request,
                                  pb::TokenizeResponse* response) {
  std::string text = request->text();
  for (const auto& m : request->chat().messages()) text += m.content();
  if (request->add_special_tokens()) response->add_ids(256);
  for (unsigned char c : text) response->add_ids(c);
  if (request->has_chat()) response->set_rendered(text);
  return grpc::Status::OK;
}

void FakeRouter::Note(std::string call) {
  std::lock_guard lock(mutex_);
  agent_calls_.push_back(std::move(call));
}

std::vector<std::string> FakeRouter::agent_calls() const {
  std::lock_guard lock(mutex_);
  return agent_calls_;
}

grpc::Status FakeRouter::ReportTool(grpc::ServerContext*, const pb::ReportToolRequest* request,
                                    pb::ReportToolResponse* response) {
  Note(base::StrCat("tool ", request->tenant_id(), " ", request->program_id(), request->request_id(), " ",
                    request->tool_name(), " ", static_cast<int>(request->phase())));
  response->set_known(request->program_id().starts_with("known"));
  return grpc::Status::OK;
}

grpc::Status FakeRouter::EndProgram(grpc::ServerContext*, const pb::EndProgramRequest* request,
                                    pb::EndProgramResponse* response) {
  Note(base::StrCat("end ", request->tenant_id(), " ", request->program_id()));
  response->set_known(request->program_id().starts_with("known"));
  return grpc::Status::OK;
}

grpc::Status FakeRouter::DeclareProgram(grpc::ServerContext*, const pb::DeclareProgramRequest* request,
                                        pb::DeclareProgramResponse* response) {
  std::string calls;
  for (const auto& c : request->calls()) {
    base::StrAppend(&calls, " ", c.call_id(), "<");
    for (const auto& d : c.depends_on()) base::StrAppend(&calls, d, ",");
    base::StrAppend(&calls, c.osl_hint());
  }
  Note(base::StrCat("declare ", request->tenant_id(), " ", request->program_id(), calls));
  response->set_pending(static_cast<uint32_t>(request->calls_size()));
  return grpc::Status::OK;
}

grpc::Status FakeRouter::Explain(grpc::ServerContext*, const pb::ExplainRequest* request,
                                 pb::ExplainResponse* response) {
  Note(base::StrCat("explain ", request->tenant_id(), " ", request->request_id()));
  if (!request->request_id().starts_with("known")) {
    return DetailedStatus(grpc::StatusCode::NOT_FOUND, "nothing is known", "REQUEST_NOT_FOUND");
  }
  pb::Decision* d = response->mutable_decision();
  d->set_request_id(request->request_id());
  d->set_program_id("prog");
  d->set_identity(common::v1::IDENTITY_SOURCE_CLAUDE_CODE);
  d->set_has_record(true);
  d->set_policy("agent");
  auto* wait = d->add_waited_for();
  wait->set_reason("no_slot");
  wait->set_count(3);
  auto* candidate = d->add_candidates();
  candidate->set_worker_id("decode-0");
  candidate->set_verdict("chosen");
  d->mutable_timeline()->set_queue_ms(1.5);
  return grpc::Status::OK;
}

grpc::Status FakeRouter::ListDecisions(grpc::ServerContext*, const pb::ListDecisionsRequest* request,
                                       pb::ListDecisionsResponse* response) {
  Note(base::StrCat("list ", request->tenant_id(), " ", request->program_id(), " ", request->limit()));
  response->add_decisions()->set_request_id("one");
  return grpc::Status::OK;
}

grpc::Status FakeRouter::Detokenize(grpc::ServerContext*, const pb::DetokenizeRequest* request,
                                    pb::DetokenizeResponse* response) {
  std::string text;
  for (uint32_t id : request->ids()) text += static_cast<char>(id < 128 ? id : '?');
  response->set_text(text);
  return grpc::Status::OK;
}

// Prompts: "hello", "tool" / "tools" (one / two calls; a tool result is answered in words), "slow" (50 ms a token, for
// ever), "flaky" (429 at the first attempt), "busy" (429 always), "too long", "midway" (error after output),
// "length", "logprobs". Anything else is "Hello world".
Script ScriptByPrompt(const pb::GenerateRequest& request, int attempt) {
  const std::string prompt = PromptOf(request);
  const auto& messages = request.chat().messages();
  if (!messages.empty() && messages.rbegin()->role() == "tool") return Say({"It is", " 21 degrees."});
  if (prompt == "tool") return Say({"{\"name\": \"get_wea", "ther\", \"parameters\": {\"city\": \"Par", "is\"}}"});
  if (prompt == "tools") {
    return Say({"{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; ",
                "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}"});
  }
  if (prompt == "slow") {
    Script s;
    s.steps.push_back({0, Accepted(5)});
    for (int i = 0; i < 1000; ++i) s.steps.push_back({50, Delta("tick ")});
    return s;
  }
  if (prompt == "busy" || (prompt == "flaky" && attempt == 0)) {
    return {{}, DetailedStatus(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", 50)};
  }
  if (prompt == "too long") {
    return {{},
            DetailedStatus(grpc::StatusCode::INVALID_ARGUMENT, "the prompt has 5000 tokens; the context is 4096",
                           "CONTEXT_LENGTH_EXCEEDED")};
  }
  if (prompt == "midway") {
    Script s = Say({"Hel"});
    s.steps.resize(2);
    s.status = DetailedStatus(grpc::StatusCode::INTERNAL, "the worker failed", "WORKER_LOST");
    return s;
  }
  if (prompt == "length") {
    Script s = Say({"Hello", " wor"});
    s.steps[3].event = End(common::v1::FINISH_REASON_LENGTH, 2);
    return s;
  }
  if (prompt == "logprobs") {
    Script s = Say({"Hi"});
    s.steps[1].event = DeltaWithLogprobs("Hi", -0.5F, {"Hi", "Yo"});
    return s;
  }
  Script s;
  const uint32_t n = std::max(request.n(), 1U);
  s.steps.push_back({0, Accepted(5)});
  for (uint32_t i = 0; i < n; ++i) s.steps.push_back({0, Delta("Hello", i)});
  for (uint32_t i = 0; i < n; ++i) s.steps.push_back({1, Delta(" world", i)});
  for (uint32_t i = 0; i < n; ++i) s.steps.push_back({0, End(common::v1::FINISH_REASON_STOP, 2, i)});
  s.steps.push_back({0, Done(5, 2 * n, 2)});
  return s;
}

}  // namespace agentserve::gateway::testing
