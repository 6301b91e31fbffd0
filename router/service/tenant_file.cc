#include "router/service/tenant_file.h"

#include <cmath>

#include "base/status_macros.h"
#include "base/strings.h"
#include "router/core/policy.h"
#include "text/json_value.h"

namespace agentserve::router {
namespace {

using base::StrCat;
using text::JsonMember;
using text::JsonValue;

constexpr uint64_t kMaxFileBytes = 4 << 20;  // 4,096 tenants of 1 KiB

struct OneTenant {
  TenantRule rule;
  double share = 1;
  std::string tenant_class;
};

bool Number(const JsonValue& v, double low, double high, double* out) {
  const bool number = v.kind == JsonValue::Kind::kInt || v.kind == JsonValue::Kind::kFloat;
  if (!number || !(v.number >= low && v.number <= high)) return false;
  *out = v.number;
  return true;
}

template <typename T>
absl::Status Whole(const JsonMember& m, std::string_view where, double low, double high, T* out) {
  double v = 0;
  if (!Number(m.value, low, high, &v) || v != std::floor(v)) {
    return absl::InvalidArgumentError(StrCat(where, ".", m.key, " must be a whole number from ", low, " to ", high));
  }
  *out = static_cast<T>(v);
  return absl::OkStatus();
}

absl::Status Name(const JsonMember& m, std::string_view where, std::string* out) {
  if (!m.value.is_string() || m.value.string.empty() || m.value.string.size() > 128) {
    return absl::InvalidArgumentError(StrCat(where, ".", m.key, " must be a name of 1 to 128 bytes"));
  }
  *out = m.value.string;
  return absl::OkStatus();
}

absl::Status ReadMember(const JsonMember& m, std::string_view where, OneTenant* out) {
  TenantRule& r = out->rule;
  constexpr double kMostMs = 7.0 * 24 * 3600 * 1000;
  if (m.key == "share") {
    if (Number(m.value, 1e-3, 1e6, &out->share)) return absl::OkStatus();
    return absl::InvalidArgumentError(StrCat(where, ".share must be a number from 0.001 to 1000000"));
  }
  if (m.key == "class") return Name(m, where, &out->tenant_class);
  if (m.key == "workflow_class") return Name(m, where, &r.workflow_class);
  if (m.key == "min_priority") return Whole(m, where, -100, 100, &r.min_priority);
  if (m.key == "max_priority") return Whole(m, where, -100, 100, &r.max_priority);
  if (m.key == "max_strict_tier") return Whole(m, where, 0, 255, &r.max_strict_tier);
  if (m.key == "min_deadline_ms") return Whole(m, where, 0, kMostMs, &r.min_deadline_ms);
  if (m.key == "max_kv_retain_ms") return Whole(m, where, 0, kMostMs, &r.max_kv_retain_ms);
  if (m.key == "pin_share") {
    double v = 0;
    if (!Number(m.value, 0, 1, &v)) {
      return absl::InvalidArgumentError(StrCat(where, ".pin_share must be a number from 0 to 1"));
    }
    r.pin_share = v;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(StrCat(where, ": unknown member ", text::QuoteForError(m.key),
                                           "; known are share, class, workflow_class, min_priority, max_priority, "
                                           "max_strict_tier, min_deadline_ms, max_kv_retain_ms, pin_share"));
}

absl::Status ReadOne(const JsonValue& v, std::string_view where, OneTenant* out) {
  if (!v.is_object()) return absl::InvalidArgumentError(StrCat(where, " must be an object, not ", v.KindName()));
  for (const JsonMember& m : v.members) AS_RETURN_IF_ERROR(ReadMember(m, where, out));
  if (out->rule.min_priority > out->rule.max_priority) {
    return absl::InvalidArgumentError(StrCat(where, ": min_priority is above max_priority"));
  }
  return absl::OkStatus();
}

absl::Status ReadPolicies(const JsonValue& v, std::string_view what, CoreConfig* config) {
  if (!v.is_object()) return absl::InvalidArgumentError(StrCat(what, ": policies must be an object"));
  for (const JsonMember& m : v.members) {
    std::string policy;
    AS_RETURN_IF_ERROR(Name(m, StrCat(what, ": policies"), &policy));
    if (auto found = FindPolicy(policy); !found.ok()) {
      return absl::InvalidArgumentError(StrCat(what, ": policies.", m.key, ": ", base::MessageOf(found.status())));
    }
    config->tenant_policy[m.key] = policy;
  }
  return absl::OkStatus();
}

absl::Status ReadAll(const JsonValue& v, std::string_view what, CoreConfig* config) {
  if (!v.is_object()) return absl::InvalidArgumentError(StrCat(what, ": must be a JSON object"));
  for (const JsonMember& m : v.members) {
    if (m.key != "default" && m.key != "tenants" && m.key != "policies") {
      return absl::InvalidArgumentError(
          StrCat(what, ": unknown member ", text::QuoteForError(m.key), "; known are default, tenants, policies"));
    }
  }
  // First, for tenants begin with it.
  OneTenant common;
  if (const JsonValue* d = v.Find("default")) {
    AS_RETURN_IF_ERROR(ReadOne(*d, StrCat(what, ": default"), &common));
    if (common.share != 1 || !common.tenant_class.empty()) {
      return absl::InvalidArgumentError(
          StrCat(what, ": default has no share or class of its own: give them by tenant"));
    }
    config->tenant_rules.fallback = common.rule;
  }
  if (const JsonValue* p = v.Find("policies")) AS_RETURN_IF_ERROR(ReadPolicies(*p, what, config));
  const JsonValue* tenants = v.Find("tenants");
  if (tenants == nullptr) return absl::OkStatus();
  if (!tenants->is_object() || tenants->members.size() > TenantRules::kMaxTenants) {
    return absl::InvalidArgumentError(
        StrCat(what, ": tenants must be an object of at most ", TenantRules::kMaxTenants, " tenants"));
  }
  for (const JsonMember& m : tenants->members) {
    OneTenant one = common;
    AS_RETURN_IF_ERROR(ReadOne(m.value, StrCat(what, ": tenants.", m.key), &one));
    config->tenant_rules.by_tenant[m.key] = one.rule;
    config->tenant_share[m.key] = one.share;
    if (!one.tenant_class.empty()) config->tenant_class[m.key] = one.tenant_class;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTenants(std::string_view text, std::string_view what, CoreConfig* config) {
  auto json = text::ParseJson(text, what);
  if (!json.ok()) return json.status();
  return ReadAll(*json, what, config);
}

absl::Status ReadTenantFile(const std::string& path, CoreConfig* config) {
  auto text = text::ReadFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status();
  return ReadTenants(*text, path, config);
}

}  // namespace agentserve::router
