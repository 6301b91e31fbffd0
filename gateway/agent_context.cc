#include "gateway/agent_context.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/strings.h"

namespace agentserve::gateway {
namespace {

using common::v1::AgentContext;
using Json = nlohmann::json;

constexpr uint64_t kMaxMs = 7ull * 24 * 3600 * 1000;  // a week: beyond any agent run

// Printable ASCII of bounded length, or "" if there is anything else in it.
std::string CleanId(std::string_view s) {
  if (s.size() > kMaxProgramIdBytes) s = s.substr(0, kMaxProgramIdBytes);
  for (char c : s) {
    if (c < 0x20 || c > 0x7E) return "";
  }
  return std::string(s);
}

std::optional<int64_t> ParseInt(std::string_view s) {
  int64_t v = 0;
  const auto r = std::from_chars(s.data(), s.data() + s.size(), v);
  if (r.ec != std::errc() || r.ptr != s.data() + s.size()) return std::nullopt;
  return v;
}

std::optional<bool> ParseBool(std::string_view s) {
  if (s == "true" || s == "1" || s == "True") return true;
  if (s == "false" || s == "0" || s == "False") return false;
  return std::nullopt;
}

// Sets fields that nobody set before.
class Filler {
 public:
  explicit Filler(AgentContext* out) : out_(out) {}

  void Program(std::string_view v) {
    if (out_->program_id().empty()) out_->set_program_id(CleanId(v));
  }
  void Parent(std::string_view v) {
    if (out_->parent_program_id().empty()) out_->set_parent_program_id(CleanId(v));
  }
  // `name` is the field name with '_' as written in x-agentserve-*, e.g. "steps_left".
  void Set(std::string_view name, std::string_view v) {
    if (v.empty()) return;
    if (name == "program_id") return Program(v);
    if (name == "parent_program_id") return Parent(v);
    if (name == "workflow_class" && out_->workflow_class().empty()) return out_->set_workflow_class(CleanId(v));
    if (name == "tool_name" && out_->tool_name().empty()) return out_->set_tool_name(CleanId(v));
    if (name == "depends_on" && out_->depends_on_size() == 0) return DependsOn(v);
    if (name == "final" || name == "blocking") {
      const auto b = ParseBool(v);
      if (b && name == "final" && !final_set_) {
        final_set_ = true;
        out_->set_final(*b);
      } else if (b && name == "blocking" && !out_->has_blocking()) {
        out_->set_blocking(*b);
      }
      return;
    }
    if (const auto i = ParseInt(v)) SetInt(name, *i);
  }
  void SetInt(std::string_view name, int64_t v) {
    const auto u32 = static_cast<uint32_t>(std::clamp<int64_t>(v, 0, UINT32_MAX));
    const auto ms = static_cast<uint64_t>(std::clamp<int64_t>(v, 0, kMaxMs));
    if (name == "priority" && !out_->has_priority()) {
      out_->set_priority(static_cast<int32_t>(std::clamp<int64_t>(v, -100, 100)));
    } else if (name == "strict_tier" && !out_->has_strict_tier()) {
      out_->set_strict_tier(u32);
    } else if (name == "step_index" && !out_->has_step_index()) {
      out_->set_step_index(u32);
    } else if (name == "steps_left" && !out_->has_steps_left_hint()) {
      out_->set_steps_left_hint(u32);
    } else if (name == "osl" && !out_->has_osl_hint()) {
      out_->set_osl_hint(u32);
    } else if (name == "total_calls" && !out_->has_total_calls_hint()) {
      out_->set_total_calls_hint(u32);
    } else if (name == "deadline_ms" && !out_->has_deadline_ms()) {
      out_->set_deadline_ms(ms);
    } else if (name == "tool_gap_ms" && !out_->has_tool_gap_ms_hint()) {
      out_->set_tool_gap_ms_hint(ms);
    } else if (name == "kv_retain_ms" && !out_->has_kv_retain_ms()) {
      out_->set_kv_retain_ms(ms);
    }
  }

 private:
  void DependsOn(std::string_view list) {
    while (!list.empty() && out_->depends_on_size() < kMaxDependsOn) {
      const size_t comma = std::min(list.find(','), list.size());
      std::string_view item = list.substr(0, comma);
      while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
      while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
      if (std::string id = CleanId(item); !id.empty()) out_->add_depends_on(id);
      list.remove_prefix(std::min(comma + 1, list.size()));
    }
  }

  AgentContext* out_;
  bool final_set_ = false;
};

constexpr std::string_view kOwnFields[] = {
    "program_id",  "parent_program_id", "workflow_class", "step_index", "steps_left",  "blocking",
    "priority",    "strict_tier",       "deadline_ms",    "osl",        "total_calls", "tool_name",
    "tool_gap_ms", "kv_retain_ms",      "final",          "depends_on"};

void FromOwnHeaders(const HttpRequest& request, Filler& fill) {
  constexpr std::string_view kPrefix = "x-agentserve-";
  for (const auto& [key, value] : request.headers) {
    if (!key.starts_with(kPrefix)) continue;
    std::string name = key.substr(kPrefix.size());
    std::replace(name.begin(), name.end(), '-', '_');
    fill.Set(name, value);
  }
}

void FromSessionHeaders(const HttpRequest& r, Filler& fill) {
  for (const char* family : {"x-dynamo-session", "x-dynamo-trajectory"}) {
    const std::string name = family;
    fill.Program(r.Header(name + "-id"));
    const std::string kind = name.substr(sizeof("x-dynamo-") - 1);
    fill.Parent(r.Header("x-dynamo-parent-" + kind + "-id"));
    fill.Set("final", r.Header(name + "-final"));
  }
  // Sub-agents of one session are programs of their own whose parent is the session or the agent that spawned them.
  if (const auto session = r.Header("x-claude-code-session-id"); !session.empty()) {
    const auto agent = r.Header("x-claude-code-agent-id");
    const auto parent = r.Header("x-claude-code-parent-agent-id");
    if (agent.empty()) {
      fill.Program(session);
    } else {
      fill.Program(base::StrCat(session, "/", agent));
      fill.Parent(parent.empty() ? std::string(session) : base::StrCat(session, "/", parent));
    }
  }
  fill.Program(r.Header("session-id"));
  fill.Program(r.Header("thread-id"));
  fill.Program(r.Header("x-session-id"));
  fill.Parent(r.Header("x-parent-session-id"));
  fill.Program(r.Header("x-smg-routing-key"));
}

const Json* Member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

std::optional<int64_t> IntOf(const Json* v) {
  if (v == nullptr) return std::nullopt;
  if (v->is_boolean()) return v->get<bool>() ? 1 : 0;
  if (v->is_number_unsigned()) return static_cast<int64_t>(std::min<uint64_t>(v->get<uint64_t>(), INT64_MAX));
  if (v->is_number_integer()) return v->get<int64_t>();
  if (v->is_number_float()) return static_cast<int64_t>(std::clamp(v->get<double>(), -9e15, 9e15));
  if (v->is_string()) return ParseInt(v->get_ref<const std::string&>());
  return std::nullopt;
}

std::string_view TextOf(const Json* v) {
  return v != nullptr && v->is_string() ? std::string_view(v->get_ref<const std::string&>()) : std::string_view();
}

void FromNvext(const Json& body, Filler& fill) {
  const Json* nvext = Member(body, "nvext");
  const Json* hints = nvext == nullptr ? nullptr : Member(*nvext, "agent_hints");
  if (hints == nullptr) return;
  const auto take = [&](const char* from, std::string_view to) {
    if (const auto v = IntOf(Member(*hints, from))) fill.SetInt(to, *v);
  };
  take("priority", "priority");
  take("strict_priority", "strict_tier");
  take("osl", "osl");
  take("total_requests", "total_calls");
  fill.Program(TextOf(Member(*hints, "prefix_id")));
}

void FromBody(const Json& body, Filler& fill) {
  fill.Program(TextOf(Member(body, "program_id")));
  fill.Program(TextOf(Member(body, "session_id")));
  if (const auto v = IntOf(Member(body, "priority"))) {
    fill.SetInt("priority", -std::clamp<int64_t>(*v, -100, 100));
  }
  if (const Json* metadata = Member(body, "metadata")) {
    for (const std::string_view name : kOwnFields) {
      const Json* v = Member(*metadata, base::StrCat("agent.", name).c_str());
      if (v == nullptr) continue;
      fill.Set(name, v->is_string() ? v->get<std::string>() : v->is_primitive() ? v->dump() : std::string());
    }
  }
  fill.Program(TextOf(Member(body, "prompt_cache_key")));
}

// The tool whose result the last message brings, found by its call id.
std::string ToolOfLastMessage(const Json& body) {
  const Json* messages = Member(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) return "";
  const std::string_view id = TextOf(Member(messages->back(), "tool_call_id"));
  if (id.empty()) return "";
  for (auto it = messages->rbegin(); it != messages->rend(); ++it) {
    const Json* calls = Member(*it, "tool_calls");
    if (calls == nullptr || !calls->is_array()) continue;
    for (const Json& call : *calls) {
      if (TextOf(Member(call, "id")) != id) continue;
      const Json* function = Member(call, "function");
      return function == nullptr ? "" : std::string(TextOf(Member(*function, "name")));
    }
  }
  return "";
}

}  // namespace

AgentContext ReadAgentContext(const HttpRequest& request, const Json& body, const std::string& tenant) {
  AgentContext out;
  out.set_tenant_id(tenant);
  Filler fill(&out);
  FromOwnHeaders(request, fill);
  FromSessionHeaders(request, fill);
  FromNvext(body, fill);
  FromBody(body, fill);
  fill.Set("tool_name", ToolOfLastMessage(body));
  return out;
}

}  // namespace agentserve::gateway
