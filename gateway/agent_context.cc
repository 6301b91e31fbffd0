#include "gateway/agent_context.h"

#include <algorithm>
#include <charconv>
#include <span>

#include "base/hash.h"
#include "base/strings.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;
using common::v1::AgentContext;

constexpr uint64_t kMaxMs = 7ull * 24 * 3600 * 1000;  // a week: beyond any agent run

bool Printable(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return c >= 0x20 && c <= 0x7E; });
}

std::string_view Trim(std::string_view s) {
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  while (!s.empty() && s.back() == ' ') s.remove_suffix(1);
  return s;
}

// An id of another dialect: "" if it cannot be one.
std::string ForeignId(std::string_view s) {
  if (s.size() > kMaxForeignIdBytes || !Printable(s)) return "";
  if (s.size() <= kMaxProgramIdBytes) return std::string(s);
  constexpr size_t kHash = 32;
  return StrCat(s.substr(0, kMaxProgramIdBytes - kHash - 1), "~",
                base::Sha256Prefix(std::as_bytes(std::span(s.data(), s.size()))).Hex());
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

const Json* Member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> IntOf(const Json& v) {
  if (v.is_boolean()) return v.get<bool>() ? 1 : 0;
  if (v.is_number_unsigned()) return static_cast<int64_t>(std::min<uint64_t>(v.get<uint64_t>(), INT64_MAX));
  if (v.is_number_integer()) return v.get<int64_t>();
  if (v.is_number_float()) return static_cast<int64_t>(std::clamp(v.get<double>(), -9e15, 9e15));
  if (v.is_string()) return ParseInt(v.get_ref<const std::string&>());
  return std::nullopt;
}

std::string_view TextOf(const Json* v) {
  return v != nullptr && v->is_string() ? std::string_view(v->get_ref<const std::string&>()) : std::string_view();
}

// Sets the field called `name` (as in x-agentserve-*, with '_') unless it is set. Values out of range are clamped.
// False: `name` is no number.
bool SetInt(std::string_view name, int64_t v, AgentContext* out) {
  const auto u32 = static_cast<uint32_t>(std::clamp<int64_t>(v, 0, UINT32_MAX));
  const auto ms = static_cast<uint64_t>(std::clamp<int64_t>(v, 0, kMaxMs));
  if (name == "priority") {
    if (!out->has_priority()) out->set_priority(static_cast<int32_t>(std::clamp<int64_t>(v, -100, 100)));
  } else if (name == "strict_tier") {
    if (!out->has_strict_tier()) out->set_strict_tier(u32);
  } else if (name == "step_index") {
    if (!out->has_step_index()) out->set_step_index(u32);
  } else if (name == "steps_left") {
    if (!out->has_steps_left_hint()) out->set_steps_left_hint(u32);
  } else if (name == "osl") {
    if (!out->has_osl_hint()) out->set_osl_hint(u32);
  } else if (name == "total_calls") {
    if (!out->has_total_calls_hint()) out->set_total_calls_hint(u32);
  } else if (name == "deadline_ms") {
    if (!out->has_deadline_ms()) out->set_deadline_ms(ms);
  } else if (name == "tool_gap_ms") {
    if (!out->has_tool_gap_ms_hint()) out->set_tool_gap_ms_hint(ms);
  } else if (name == "kv_retain_ms") {
    if (!out->has_kv_retain_ms()) out->set_kv_retain_ms(ms);
  } else {
    return false;
  }
  return true;
}

constexpr std::string_view kIntFields[] = {"priority",    "strict_tier", "step_index",  "steps_left",  "osl",
                                           "total_calls", "deadline_ms", "tool_gap_ms", "kv_retain_ms"};
constexpr std::string_view kTextFields[] = {"program_id", "parent_program_id", "call_id", "workflow_class",
                                            "tool_name"};

template <size_t N>
bool In(const std::string_view (&list)[N], std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

// "" or what is wrong. Sets a field of our own dialect unless it is set; ids go to `program` and `parent`.
class OwnDialect {
 public:
  explicit OwnDialect(AgentContext* out) : out_(out) {}
  std::string program, parent;
  bool final_set() const { return final_set_; }

  static bool Knows(std::string_view name) {
    return In(kIntFields, name) || In(kTextFields, name) || name == "blocking" || name == "final" ||
           name == "depends_on";
  }

  std::string Set(std::string_view name, std::string_view v) {
    if (v.empty()) return "";
    if (In(kIntFields, name)) {
      const auto i = ParseInt(v);
      if (!i) return StrCat("must be a whole number, not '", Shorten(v, 40), "'");
      SetInt(name, *i, out_);
    } else if (In(kTextFields, name)) {
      return SetText(name, v);
    } else if (name == "depends_on") {
      return out_->depends_on_size() > 0 ? "" : SetDependsOn(v);
    } else {
      const auto b = ParseBool(v);
      if (!b) return StrCat("must be true or false, not '", Shorten(v, 40), "'");
      if (name == "blocking" && !out_->has_blocking()) out_->set_blocking(*b);
      if (name == "final" && !final_set_) out_->set_final(*b);
      final_set_ |= name == "final";
    }
    return "";
  }

 private:
  static std::string CheckId(std::string_view v) {
    if (v.size() > kMaxProgramIdBytes) {
      return StrCat("has ", v.size(), " bytes; at most ", kMaxProgramIdBytes, " are allowed");
    }
    return Printable(v) ? "" : "may hold printable ASCII characters only";
  }
  std::string SetText(std::string_view name, std::string_view v) {
    if (std::string bad = CheckId(v); !bad.empty()) return bad;
    const auto set = [&](const std::string& now, std::string* field) {
      if (now.empty()) *field = std::string(v);
    };
    if (name == "program_id") set(program, &program);
    if (name == "parent_program_id") set(parent, &parent);
    if (name == "call_id") set(out_->call_id(), out_->mutable_call_id());
    if (name == "workflow_class") set(out_->workflow_class(), out_->mutable_workflow_class());
    if (name == "tool_name") set(out_->tool_name(), out_->mutable_tool_name());
    return "";
  }
  std::string SetDependsOn(std::string_view list) {
    std::vector<std::string> names;
    while (!list.empty()) {
      const size_t comma = std::min(list.find(','), list.size());
      const std::string_view item = Trim(list.substr(0, comma));
      if (std::string bad = CheckId(item); !bad.empty()) return StrCat("name ", names.size() + 1, " ", bad);
      if (!item.empty()) names.emplace_back(item);
      list.remove_prefix(std::min(comma + 1, list.size()));
    }
    if (names.size() > kMaxDependsOn) return StrCat("has ", names.size(), " names; at most ", kMaxDependsOn);
    for (std::string& name : names) out_->add_depends_on(std::move(name));
    return "";
  }

  AgentContext* out_;
  bool final_set_ = false;
};

class Reader {
 public:
  Reader(const HttpRequest& request, const Json& body, AgentReading* out)
      : r_(request), body_(body), out_(out), ctx_(&out->context), own_(&out->context) {}

  void Read() {
    FromOwnHeaders();
    if (out_->error) return;
    const std::string own_parent = own_.parent;
    Take(common::v1::IDENTITY_SOURCE_OWN, own_.program, own_.parent);
    FromDynamo();
    FromClaudeCode();
    FromCodex();
    Take(common::v1::IDENTITY_SOURCE_OPENCODE, Id("x-session-id", "opencode"), Id("x-parent-session-id", "opencode"));
    Take(common::v1::IDENTITY_SOURCE_ROUTING_KEY, Id("x-smg-routing-key", "smg"), "");
    FromNvext();
    FromBody();
    FromMetadata();
    ctx_->set_previous_response_id(BodyId("previous_response_id", "body"));
    Take(common::v1::IDENTITY_SOURCE_CACHE_KEY, BodyId("prompt_cache_key", "body"), "");
    if (!own_parent.empty()) ctx_->set_parent_program_id(own_parent);
    if (ctx_->parent_program_id() == ctx_->program_id()) ctx_->clear_parent_program_id();
    FromMessages();
  }

 private:
  void Ignore(std::string_view source) { out_->ignored.push_back(source); }

  void Take(common::v1::IdentitySource source, const std::string& program, const std::string& parent) {
    if (program.empty() || !ctx_->program_id().empty()) return;
    ctx_->set_program_id(program);
    ctx_->set_parent_program_id(parent);
    ctx_->set_identity(source);
  }
  std::string Foreign(std::string_view v, std::string_view source) {
    v = Trim(v);
    std::string id = ForeignId(v);
    if (id.empty() && !v.empty()) Ignore(source);
    return id;
  }
  std::string Id(std::string_view header, std::string_view source) { return Foreign(r_.Header(header), source); }
  std::string BodyId(const char* member, std::string_view source) { return IdOf(Member(body_, member), source); }
  // Numbers are taken as ids too.
  std::string IdOf(const Json* v, std::string_view source) {
    if (v == nullptr) return "";
    if (v->is_string()) return Foreign(v->get_ref<const std::string&>(), source);
    if (v->is_number_integer()) return v->dump();
    Ignore(source);
    return "";
  }
  void HeaderInt(std::string_view header, std::string_view field) {
    const std::string_view v = Trim(r_.Header(header));
    if (v.empty()) return;
    const auto i = ParseInt(v);
    if (!i) return Ignore("dynamo");
    SetInt(field, *i, ctx_);
  }

  void FromOwnHeaders() {
    constexpr std::string_view kPrefix = "x-agentserve-";
    // Of the request, not of the agent; read elsewhere.
    constexpr std::string_view kOthers[] = {"timeline", "budget_ms"};
    for (const auto& [key, value] : r_.headers) {
      if (!key.starts_with(kPrefix)) continue;
      std::string name = key.substr(kPrefix.size());
      std::replace(name.begin(), name.end(), '-', '_');
      if (In(kOthers, name)) continue;
      if (!OwnDialect::Knows(name)) {
        Ignore("own_header");
        continue;
      }
      if (std::string bad = own_.Set(name, Trim(value)); !bad.empty()) {
        out_->error = InvalidRequest(StrCat("header ", Shorten(key, 60), " ", bad), key);
        return;
      }
    }
  }

  void FromDynamo() {
    for (const char* kind : {"session", "trajectory"}) {
      Take(common::v1::IDENTITY_SOURCE_DYNAMO, Id(StrCat("x-dynamo-", kind, "-id"), "dynamo"),
           Id(StrCat("x-dynamo-parent-", kind, "-id"), "dynamo"));
      // Also beside a native identity, as Dynamo takes it.
      const std::string_view final = Trim(r_.Header(StrCat("x-dynamo-", kind, "-final")));
      if (!final.empty() && !own_.Set("final", final).empty()) Ignore("dynamo");
    }
    HeaderInt("x-dynamo-request-priority", "priority");
    HeaderInt("x-dynamo-request-strict-priority", "strict_tier");
  }

  // Ids of agents are unique inside a session only, so a program's id holds both.
  static std::string Inside(const std::string& session, const std::string& part) {
    return part.empty() || part == session ? session : ForeignId(StrCat(session, "/", part));
  }
  void FromClaudeCode() {
    const std::string session = Id("x-claude-code-session-id", "claude_code");
    const std::string agent = Id("x-claude-code-agent-id", "claude_code");
    const std::string parent = Id("x-claude-code-parent-agent-id", "claude_code");
    if (session.empty()) return;
    Take(common::v1::IDENTITY_SOURCE_CLAUDE_CODE, Inside(session, agent),
         agent.empty() ? std::string() : Inside(session, parent));
  }
  void FromCodex() {
    const std::string session = Id("session-id", "codex");
    const std::string thread = Id("thread-id", "codex");
    const std::string parent = Id("x-codex-parent-thread-id", "codex");
    if (session.empty()) return Take(common::v1::IDENTITY_SOURCE_CODEX, thread, parent);
    Take(common::v1::IDENTITY_SOURCE_CODEX, Inside(session, thread),
         parent.empty() ? std::string() : Inside(session, parent));
  }

  void FromNvext() {
    const Json* nvext = Member(body_, "nvext");
    const Json* hints = nvext == nullptr ? nullptr : Member(*nvext, "agent_hints");
    if (hints == nullptr) return;
    const auto take = [&](const char* from, std::string_view to, std::span<const int64_t> levels) {
      const Json* v = Member(*hints, from);
      if (v == nullptr) return;
      auto i = IntOf(*v);
      constexpr std::string_view kLevels[] = {"LOW", "MEDIUM", "HIGH"};
      for (size_t k = 0; k < levels.size(); ++k) {
        if (TextOf(v) == kLevels[k]) i = levels[k];
      }
      if (!i) return Ignore("nvext");
      SetInt(to, *i, ctx_);
    };
    constexpr int64_t kOslLevels[] = {128, 512, 2048}, kIatLevels[] = {50, 250, 750};
    take("priority", "priority", {});
    take("strict_priority", "strict_tier", {});
    take("osl", "osl", kOslLevels);
    take("total_requests", "total_calls", {});
    take("iat", "tool_gap_ms", kIatLevels);
    Take(common::v1::IDENTITY_SOURCE_NVEXT, IdOf(Member(*hints, "prefix_id"), "nvext"), "");
  }

  void FromBody() {
    Take(common::v1::IDENTITY_SOURCE_BODY, BodyId("program_id", "body"), BodyId("parent_program_id", "body"));
    Take(common::v1::IDENTITY_SOURCE_BODY, BodyId("session_id", "body"), "");
    if (const Json* v = Member(body_, "priority")) {
      if (const auto i = IntOf(*v)) {
        SetInt("priority", -std::clamp<int64_t>(*i, -100, 100), ctx_);
      } else {
        Ignore("body");
      }
    }
  }

  void FromMetadata() {
    const Json* metadata = Member(body_, "metadata");
    if (metadata == nullptr || !metadata->is_object()) return;
    OwnDialect meta(ctx_);
    for (const auto& [key, v] : metadata->items()) {
      if (!key.starts_with("agent.")) continue;
      const std::string_view name = std::string_view(key).substr(6);
      if (!OwnDialect::Knows(name)) continue;  // metadata is anybody's
      const std::string text = v.is_string() ? v.get<std::string>() : v.is_primitive() ? v.dump() : std::string("{}");
      if (name == "final" && own_.final_set()) continue;
      if (!meta.Set(name, Trim(text)).empty()) Ignore("metadata");
    }
    Take(common::v1::IDENTITY_SOURCE_METADATA, meta.program, meta.parent);
  }

  // The turn, and the tool whose result the last message brings, found by its call id.
  void FromMessages() {
    const Json* messages = Member(body_, "messages");
    if (messages == nullptr || !messages->is_array() || messages->empty()) return;
    const bool later = std::any_of(messages->begin(), messages->end(),
                                   [](const Json& m) { return TextOf(Member(m, "role")) == "assistant"; });
    ctx_->set_turn(later ? common::v1::TURN_LATER : common::v1::TURN_FIRST);
    const std::string_view id = TextOf(Member(messages->back(), "tool_call_id"));
    if (id.empty() || !ctx_->tool_name().empty()) return;
    for (auto it = messages->rbegin(); it != messages->rend(); ++it) {
      const Json* calls = Member(*it, "tool_calls");
      if (calls == nullptr || !calls->is_array()) continue;
      for (const Json& call : *calls) {
        if (TextOf(Member(call, "id")) != id) continue;
        const Json* function = Member(call, "function");
        if (function != nullptr) ctx_->set_tool_name(ForeignId(TextOf(Member(*function, "name"))));
        return;
      }
    }
  }

  const HttpRequest& r_;
  const Json& body_;
  AgentReading* out_;
  AgentContext* ctx_;
  OwnDialect own_;
};

}  // namespace

std::optional<std::string> GoodProgramId(std::string_view s) {
  if (s.empty() || s.size() > kMaxProgramIdBytes || !Printable(s)) return std::nullopt;
  return std::string(s);
}

AgentReading ReadAgentContext(const HttpRequest& request, const Json& body, const CallerIdentity& caller) {
  AgentReading out;
  std::string tenant = caller.tenant;
  if (!caller.by_key) {
    for (const char* member : {"safety_identifier", "user"}) {
      const std::string_view named = TextOf(Member(body, member));
      if (named.empty()) continue;
      const std::string id = ForeignId(named);
      if (id.empty()) {
        out.ignored.push_back("tenant");
        continue;
      }
      tenant = id;
      break;
    }
  }
  out.context.set_tenant_id(tenant);
  Reader(request, body, &out).Read();
  return out;
}

}  // namespace agentserve::gateway
