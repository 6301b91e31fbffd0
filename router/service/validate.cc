#include "router/service/validate.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "base/strings.h"
#include "engine/block_hash.h"
#include "router/service/explain.h"

namespace agentserve::router {
namespace {

namespace cpb = agentserve::common::v1;

constexpr size_t kMaxStops = 16, kMaxStopBytes = 256, kMaxStopIds = 64, kMaxBias = 1024, kMaxLabel = 128;
constexpr size_t kMaxMessages = 4096;  // of a chat; a context holds fewer turns

// Collects violations; the first is the message.
class Checker {
 public:
  void Fail(std::string field, std::string description) {
    violations_.emplace_back(std::move(field), std::move(description));
  }
  // NaN fails every range.
  void Range(const char* field, bool present, double value, double low, double high, bool low_open = false) {
    if (!present || (value <= high && (low_open ? value > low : value >= low))) return;
    Fail(field, base::StrCat("must be ", low_open ? "over " : "from ", low, low_open ? " and at most " : " to ", high,
                             ", not ", value));
  }
  void Label(const char* field, const std::string& value, size_t most = kMaxLabel) {
    if (value.size() > most) Fail(field, base::StrCat("has ", value.size(), " bytes; at most ", most, " are allowed"));
    // Keys of tables are joined by zero bytes.
    if (value.find('\0') != value.npos) Fail(field, "holds a zero byte");
  }
  std::optional<Rejection> Take() {
    if (violations_.empty()) return std::nullopt;
    Rejection r = InvalidField(violations_[0].first, violations_[0].second);
    r.violations = std::move(violations_);
    return r;
  }

 private:
  std::vector<std::pair<std::string, std::string>> violations_;
};

void CheckSampling(const cpb::SamplingParams& p, const EdgeModel& model, Checker* c) {
  c->Range("sampling.temperature", p.has_temperature(), p.temperature(), 0, 2);
  c->Range("sampling.top_p", p.has_top_p(), p.top_p(), 0, 1, /*low_open=*/true);
  c->Range("sampling.min_p", p.has_min_p(), p.min_p(), 0, 1);
  c->Range("sampling.repetition_penalty", p.has_repetition_penalty(), p.repetition_penalty(), 0, 2, true);
  c->Range("sampling.presence_penalty", p.has_presence_penalty(), p.presence_penalty(), -2, 2);
  c->Range("sampling.frequency_penalty", p.has_frequency_penalty(), p.frequency_penalty(), -2, 2);
  c->Range("sampling.top_logprobs", p.has_top_logprobs(), p.top_logprobs(), 0, 20);
  if (p.has_max_tokens() && p.max_tokens() == 0) c->Fail("sampling.max_tokens", "must be at least 1");
  if (p.has_max_tokens() && p.min_tokens() > p.max_tokens()) {
    c->Fail("sampling.min_tokens", base::StrCat("is ", p.min_tokens(), ", over max_tokens ", p.max_tokens()));
  }
  if (p.logit_bias_size() > static_cast<int>(kMaxBias)) {
    c->Fail("sampling.logit_bias", base::StrCat("has ", p.logit_bias_size(), " entries; at most ", kMaxBias));
    return;
  }
  for (int i = 0; i < p.logit_bias_size(); ++i) {
    const auto& b = p.logit_bias(i);
    if (b.token_id() >= model.vocab_size()) {
      c->Fail(base::StrCat("sampling.logit_bias[", i, "].token_id"),
              base::StrCat(b.token_id(), " is outside the vocabulary of ", model.vocab_size()));
    }
    c->Range("sampling.logit_bias", true, b.bias(), -100, 100);
  }
  if (p.stop_size() > static_cast<int>(kMaxStops)) {
    c->Fail("sampling.stop", base::StrCat("has ", p.stop_size(), " strings; at most ", kMaxStops));
  }
  for (const std::string& s : p.stop()) {
    if (s.empty() || s.size() > kMaxStopBytes) {
      c->Fail("sampling.stop", base::StrCat("a stop string has ", s.size(), " bytes; 1 to ", kMaxStopBytes));
      break;
    }
  }
  if (p.stop_token_ids_size() > static_cast<int>(kMaxStopIds)) {
    c->Fail("sampling.stop_token_ids", base::StrCat("has ", p.stop_token_ids_size(), " ids; at most ", kMaxStopIds));
    return;
  }
  for (uint32_t id : p.stop_token_ids()) {
    if (id < model.vocab_size()) continue;
    c->Fail("sampling.stop_token_ids", base::StrCat(id, " is outside the vocabulary of ", model.vocab_size()));
    break;
  }
}

void CheckDependsOn(const char* field, const google::protobuf::RepeatedPtrField<std::string>& names, Checker* c) {
  constexpr int kMost = 64;
  if (names.size() > kMost) c->Fail(field, base::StrCat("has ", names.size(), " entries; at most ", kMost));
  for (const std::string& name : names) {
    if (name.empty()) return c->Fail(field, "holds an empty name");
    if (name.size() > kMaxLabel) return c->Label(field, name);
    // Keys of graphs are joined by zero bytes.
    if (name.find('\0') != name.npos) return c->Fail(field, "holds a name with a zero byte");
  }
}

void CheckLabels(const v1::GenerateRequest& req, Checker* c) {
  const cpb::AgentContext& a = req.agent();
  c->Label("agent.tenant_id", a.tenant_id());
  c->Label("agent.program_id", a.program_id());
  c->Label("agent.parent_program_id", a.parent_program_id());
  c->Label("agent.workflow_class", a.workflow_class());
  c->Label("agent.tool_name", a.tool_name());
  c->Label("agent.call_id", a.call_id());
  c->Label("agent.previous_response_id", a.previous_response_id());
  CheckDependsOn("agent.depends_on", a.depends_on(), c);
  if (!a.call_id().empty() && a.program_id().empty()) {
    c->Fail("agent.call_id", "names a call inside a program; send program_id too");
  }
  c->Label("trace.response_id", req.trace().response_id());
  c->Label("trace.client_request_id", req.trace().client_request_id(), 256);
  c->Label("trace.traceparent", req.trace().traceparent());
  c->Label("cache_salt", req.cache_salt(), 64);
  const bool clean = std::all_of(req.cache_salt().begin(), req.cache_salt().end(), [](unsigned char ch) {
    return std::isalnum(ch) != 0 || ch == '.' || ch == '_' || ch == '-';
  });
  if (!clean) c->Fail("cache_salt", "may hold only A-Z a-z 0-9 . _ -");
}

void CheckPrompt(const v1::GenerateRequest& req, const EdgeModel& model, Checker* c) {
  switch (req.prompt_case()) {
    case v1::GenerateRequest::kTokenIds:
      if (req.token_ids().ids().empty()) c->Fail("token_ids", "is empty; at least one token is needed");
      for (uint32_t id : req.token_ids().ids()) {
        if (id < model.vocab_size()) continue;
        c->Fail("token_ids", base::StrCat(id, " is outside the vocabulary of ", model.vocab_size()));
        break;
      }
      break;
    case v1::GenerateRequest::kText:
      if (req.text().empty() && !model.tokenizer->bos()) c->Fail("text", "is empty");
      break;
    case v1::GenerateRequest::kChat:
      if (req.chat().messages().empty()) c->Fail("chat.messages", "is empty; at least one message is needed");
      if (req.chat().messages_size() > static_cast<int>(kMaxMessages)) {
        c->Fail("chat.messages", base::StrCat("has ", req.chat().messages_size(), " messages; at most ", kMaxMessages));
      }
      if (model.chat_template == nullptr) c->Fail("chat", "this model has no chat template; send text or token ids");
      break;
    default:
      c->Fail("prompt", "is missing; set token_ids, text or chat");
  }
}

engine::SamplingParams ToSampling(const cpb::SamplingParams& p, const EdgeModel& model, uint32_t room) {
  const text::DefaultSampling& d = model.card.sampling;
  engine::SamplingParams s;
  s.temperature = p.has_temperature() ? p.temperature() : static_cast<float>(d.temperature.value_or(1.0));
  s.top_p = p.has_top_p() ? p.top_p() : static_cast<float>(d.top_p.value_or(1.0));
  s.min_p = p.has_min_p() ? p.min_p() : static_cast<float>(d.min_p.value_or(0.0));
  s.top_k = p.has_top_k() ? p.top_k() : static_cast<uint32_t>(std::max<int64_t>(0, d.top_k.value_or(0)));
  s.top_k = std::min(s.top_k, model.vocab_size());
  s.repetition_penalty =
      p.has_repetition_penalty() ? p.repetition_penalty() : static_cast<float>(d.repetition_penalty.value_or(1.0));
  s.presence_penalty = p.presence_penalty();
  s.frequency_penalty = p.frequency_penalty();
  for (const auto& b : p.logit_bias()) s.logit_bias.emplace_back(b.token_id(), b.bias());
  s.seed = p.has_seed() ? p.seed() : base::EntropyUint64();
  // More than fits is not an error: the sequence ends with "length" at the context's end.
  s.max_tokens = p.has_max_tokens() ? std::min(p.max_tokens(), room) : room;
  s.min_tokens = std::min(p.min_tokens(), s.max_tokens);
  s.stop_token_ids.assign(p.stop_token_ids().begin(), p.stop_token_ids().end());
  s.ignore_eos = p.ignore_eos();
  s.top_logprobs = p.has_top_logprobs() ? static_cast<int>(p.top_logprobs()) : -1;
  return s;
}

AgentInfo ToAgent(const cpb::AgentContext& a) {
  AgentInfo out;
  out.tenant_id = a.tenant_id();
  out.program_id = a.program_id();
  out.parent_program_id = a.parent_program_id();
  out.workflow_class = a.workflow_class();
  out.tool_name = a.tool_name();
  out.call_id = a.call_id();
  out.depends_on.assign(a.depends_on().begin(), a.depends_on().end());
  out.identity = ToIdentity(a.identity());
  out.turn = a.turn() == cpb::TURN_FIRST ? Turn::kFirst : a.turn() == cpb::TURN_LATER ? Turn::kLater : Turn::kUnknown;
  out.step_index = a.step_index();
  if (a.has_steps_left_hint()) out.steps_left_hint = a.steps_left_hint();
  if (a.has_osl_hint()) out.osl_hint = a.osl_hint();
  if (a.has_total_calls_hint()) out.total_calls_hint = a.total_calls_hint();
  if (a.has_tool_gap_ms_hint()) out.tool_gap_ms_hint = a.tool_gap_ms_hint();
  if (a.has_deadline_ms()) out.deadline_ms = a.deadline_ms();
  if (a.has_kv_retain_ms()) out.kv_retain_ms = a.kv_retain_ms();
  out.priority = std::clamp(a.priority(), -100, 100);
  out.strict_tier = std::min<uint32_t>(a.strict_tier(), 255);
  out.blocking = !a.has_blocking() || a.blocking();
  out.final = a.final();
  return out;
}

base::Hash128 Digest(const std::vector<uint32_t>& ids, const std::string& salt) {
  std::string bytes(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(uint32_t));
  bytes += salt;
  return base::Sha256Prefix(std::as_bytes(std::span(bytes)));
}

}  // namespace

size_t ChatBytes(const v1::Chat& chat) {
  size_t bytes = chat.tools_json().size() + chat.date_string().size();
  for (const v1::ChatMessage& m : chat.messages()) {
    bytes += m.role().size() + m.content().size() + 8;
    for (const v1::ToolCall& t : m.tool_calls()) bytes += t.name().size() + t.arguments_json().size() + 8;
  }
  return bytes;
}

size_t PromptBytes(const v1::GenerateRequest& req) {
  switch (req.prompt_case()) {
    case v1::GenerateRequest::kTokenIds:
      return req.token_ids().ids_size() * sizeof(uint32_t);
    case v1::GenerateRequest::kText:
      return req.text().size();
    case v1::GenerateRequest::kChat:
      return ChatBytes(req.chat());
    default:
      return 0;
  }
}

std::optional<Rejection> CheckProgramName(const std::string& tenant, const std::string& program) {
  Checker c;
  c.Label("tenant_id", tenant);
  c.Label("program_id", program);
  if (program.empty()) c.Fail("program_id", "is missing");
  return c.Take();
}

std::optional<Rejection> CheckDeclaration(const v1::DeclareProgramRequest& req) {
  if (auto bad = CheckProgramName(req.tenant_id(), req.program_id())) return bad;
  Checker c;
  for (const v1::DeclaredCall& call : req.calls()) {
    c.Label("calls.call_id", call.call_id());
    CheckDependsOn("calls.depends_on", call.depends_on(), &c);
  }
  return c.Take();
}

std::optional<Rejection> CheckRequest(const v1::GenerateRequest& req, const EdgeModel& model,
                                      const ServiceConfig& config) {
  if (!req.model().empty() && req.model() != model.model_id) {
    Rejection r;
    r.code = grpc::StatusCode::NOT_FOUND;
    r.reason = "MODEL_NOT_FOUND";
    r.message = base::StrCat("the model \"", req.model().substr(0, 200), "\" is not served here; this is \"",
                             model.model_id, "\"");
    r.metadata["model"] = req.model().substr(0, 200);
    return r;
  }
  const size_t context = model.card.context_length;
  if (req.prompt_case() == v1::GenerateRequest::kTokenIds) {
    const size_t n = static_cast<size_t>(req.token_ids().ids_size());
    if (n >= context) return ContextLengthExceeded(context, n);
  } else if (PromptBytes(req) > context * config.max_bytes_per_token) {
    Rejection r = ContextLengthExceeded(context, PromptBytes(req) / config.max_bytes_per_token);
    r.message = base::StrCat("this model's context length is ", context, " tokens, but the prompt has ",
                             PromptBytes(req), " bytes, which is more than fits; shorten the prompt");
    r.metadata["got_bytes"] = std::to_string(PromptBytes(req));
    return r;
  }
  Checker c;
  CheckPrompt(req, model, &c);
  CheckSampling(req.sampling(), model, &c);
  CheckLabels(req, &c);
  if (req.n() > config.core.max_n) {
    c.Fail("n", base::StrCat("is ", req.n(), "; at most ", config.core.max_n, " sequences per request"));
  }
  return c.Take();
}

std::optional<Rejection> ChatTokens(const v1::Chat& chat, const EdgeModel& model, std::vector<uint32_t>* ids,
                                    std::string* rendered) {
  if (model.chat_template == nullptr) {
    return InvalidField("chat", "this model has no chat template; send text or token ids");
  }
  text::ChatRequest req;
  for (const v1::ChatMessage& m : chat.messages()) {
    text::Message& out = req.messages.emplace_back();
    out.role = m.role();
    if (m.has_content()) out.content = m.content();
    for (const v1::ToolCall& t : m.tool_calls()) out.tool_calls.push_back({t.id(), t.name(), t.arguments_json()});
    out.tool_call_id = m.tool_call_id();
  }
  req.tools_json = chat.tools_json();
  req.date_string = chat.date_string().empty() ? model.chat_date : chat.date_string();
  req.continue_final_message = chat.continue_final_message();
  absl::StatusOr<text::RenderedChat> out = model.chat_template->Render(req);
  if (!out.ok()) return FromStatus(out.status(), "chat");
  *ids = std::move(out->ids);
  *rendered = std::move(out->text);
  return std::nullopt;
}

std::optional<Rejection> Prepare(const v1::GenerateRequest& req, const EdgeModel& model, const ChainParams& chain,
                                 Submission* out) {
  std::vector<uint32_t> ids;
  if (req.has_token_ids()) {
    ids.assign(req.token_ids().ids().begin(), req.token_ids().ids().end());
  } else if (req.has_chat()) {
    std::string rendered;
    if (auto bad = ChatTokens(req.chat(), model, &ids, &rendered)) return bad;
  } else {
    if (model.tokenizer->bos()) ids.push_back(*model.tokenizer->bos());
    const std::vector<uint32_t> body = model.tokenizer->Encode(req.text());
    ids.insert(ids.end(), body.begin(), body.end());
  }
  if (ids.empty()) return InvalidField("prompt", "has no tokens");
  const uint32_t context = model.card.context_length;
  if (ids.size() >= context) return ContextLengthExceeded(context, ids.size());
  out->sampling = ToSampling(req.sampling(), model, context - static_cast<uint32_t>(ids.size()));
  out->n = std::max<uint32_t>(1, req.n());
  out->agent = ToAgent(req.agent());
  if (out->agent.turn == Turn::kUnknown && req.has_chat()) {
    const auto& messages = req.chat().messages();
    const bool later =
        std::any_of(messages.begin(), messages.end(), [](const v1::ChatMessage& m) { return m.role() == "assistant"; });
    out->agent.turn = later ? Turn::kLater : Turn::kFirst;
  }
  // Tenants never share blocks; a salt divides a tenant further.
  out->cache_salt = base::StrCat(req.agent().tenant_id(), "/", req.cache_salt());
  out->traceparent = req.trace().traceparent();
  out->digest = Digest(ids, out->cache_salt);
  if (chain.block_tokens > 0) {
    out->block_tokens = chain.block_tokens;
    out->chain_root = engine::ChainRoot(out->cache_salt, chain.layout_fingerprint);
    engine::ExtendChain(out->chain_root, ids, chain.block_tokens, &out->chain);
  }
  out->bytes = ids.size() * sizeof(uint32_t) + out->chain.size() * sizeof(base::Hash128) + 1024;
  out->prompt = std::make_shared<const std::vector<uint32_t>>(std::move(ids));
  return std::nullopt;
}

}  // namespace agentserve::router
