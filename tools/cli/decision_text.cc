#include "tools/cli/decision_text.h"

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "base/strings.h"

namespace agentserve::tools {
namespace {

using base::StrAppend;
using base::StrCat;
namespace rpc = agentserve::router::v1;

// What the names of reasons mean. Names that are not here (of a newer router) are shown as they are.
struct Meaning {
  const char* name;
  const char* text;
};
constexpr Meaning kWaits[] = {
    {"no_worker", "no decode worker was ready"},
    {"no_slot", "all batches were full"},
    {"no_blocks", "too few free KV blocks for prompt and expected output"},
    {"gated", "new programs were held back: the pools are spoken for by running ones"},
    {"saturated", "workers had refused work since their last report"},
    {"too_long_here", "no ready worker has a context this long"},
    {"behind", "others were ahead in its tenant's order"},
    {"share", "it was another tenant's turn"},
    {"sibling", "it waited for the first sequence's prefill, which it shares"},
    {"preempted", "it ran and gave way"},
};
constexpr Meaning kPicks[] = {
    {"order", "first in the policy's order"},
    {"oldest_program", "a turn kept for the oldest program, against starvation"},
    {"aged", "it had waited past the aging bound"},
    {"strict_tier", "strict tier"},
    {"deadline", "its deadline was near"},
    {"backfill", "those ahead fitted nowhere, this one did"},
    {"overflow", "an easy call above the batch cap"},
    {"window", "in the window of calls most alike in length"},
};
constexpr Meaning kPlaces[] = {
    {"local_short", "few new tokens: moving KV would cost more than computing it there"},
    {"local_append", "a short addition to KV that the decode worker holds"},
    {"local_idle", "the decode worker was idle, the prefill workers were not"},
    {"local_no_prefill", "no prefill worker was ready with room"},
    {"remote", "cold or long: a prefill worker computes it"},
};

template <size_t N>
std::string Explained(const Meaning (&table)[N], const std::string& name) {
  for (const Meaning& m : table) {
    if (name == m.name) return StrCat(name, " (", m.text, ")");
  }
  return name;
}

std::string NamedBy(common::v1::IdentitySource s) {
  switch (s) {
    case common::v1::IDENTITY_SOURCE_OWN:
      return "x-agentserve headers or gRPC fields";
    case common::v1::IDENTITY_SOURCE_DYNAMO:
      return "x-dynamo headers";
    case common::v1::IDENTITY_SOURCE_CLAUDE_CODE:
      return "x-claude-code headers";
    case common::v1::IDENTITY_SOURCE_CODEX:
      return "the session-id header";
    case common::v1::IDENTITY_SOURCE_OPENCODE:
      return "the x-session-id header";
    case common::v1::IDENTITY_SOURCE_ROUTING_KEY:
      return "the x-smg-routing-key header";
    case common::v1::IDENTITY_SOURCE_NVEXT:
      return "nvext.agent_hints";
    case common::v1::IDENTITY_SOURCE_BODY:
      return "the request's body";
    case common::v1::IDENTITY_SOURCE_METADATA:
      return "the request's metadata";
    case common::v1::IDENTITY_SOURCE_PREVIOUS_RESPONSE:
      return "previous_response_id";
    case common::v1::IDENTITY_SOURCE_CACHE_KEY:
      return "prompt_cache_key";
    case common::v1::IDENTITY_SOURCE_PREFIX:
      return "its prompt, which continues an earlier call";
    case common::v1::IDENTITY_SOURCE_NEW:
      return "nobody: its prompt continues no earlier call";
    default:
      return "nobody";
  }
}

std::string Format(const char* format, double v) {
  char out[64];
  std::snprintf(out, sizeof(out), format, v);
  return out;
}
std::string Ms(double v) { return StrCat(Format("%.1f", v), " ms"); }

template <typename Strings>
std::string Join(const Strings& strings) {
  std::string out;
  for (const auto& s : strings) StrAppend(&out, out.empty() ? "" : ", ", s);
  return out;
}

void Line(std::string* out, const char* head, const std::string& text) {
  char label[32];
  std::snprintf(label, sizeof(label), "%-10s", head);
  StrAppend(out, label, text, "\n");
}

void AppendState(const rpc::Decision& d, std::string* out) {
  std::string text = d.state();
  if (d.state() == "ended") {
    StrAppend(&text, ": ", d.end_reason());
    if (d.has_timeline()) StrAppend(&text, " after ", Ms(d.timeline().total_ms()));
  } else {
    StrAppend(&text, " for ", Ms(static_cast<double>(d.age_ms())), " since it came");
  }
  StrAppend(&text, "; ", d.prompt_tokens(), " prompt tokens, ", d.completion_tokens(), " generated");
  Line(out, "state", text);
  if (!d.end_message().empty()) Line(out, "", d.end_message());
  if (!d.tool_name().empty()) Line(out, "", StrCat("its answer called the tool ", d.tool_name()));
}

void AppendIdentity(const rpc::Decision& d, std::string* out) {
  if (d.program_id().empty()) {
    Line(out, "program", "none: nothing names one, and the prompt is too short to tell");
  } else {
    Line(out, "program", StrCat(d.program_id(), ", named by ", NamedBy(d.identity())));
  }
  std::string more = StrCat("tenant ", d.tenant_id().empty() ? "(none)" : d.tenant_id());
  if (!d.parent_program_id().empty()) StrAppend(&more, "; child of ", d.parent_program_id());
  if (!d.workflow_class().empty()) StrAppend(&more, "; class ", d.workflow_class());
  if (!d.call_id().empty()) StrAppend(&more, "; call ", d.call_id());
  Line(out, "", more);
  if (d.clamped_hints_size() > 0) Line(out, "hints cut", StrCat(Join(d.clamped_hints()), " to the tenant's terms"));
  if (d.waits_for_size() > 0) Line(out, "waits for", Join(d.waits_for()));
}

void AppendOrder(const rpc::Decision& d, std::string* out) {
  Line(out, "order",
       StrCat("policy ", d.policy(), ", tier ", d.tier(), "; ", d.difficulty(), ", about ",
              Format("%.0f", d.predicted_output()), " output tokens expected"));
  Line(out, "",
       StrCat("costs in prefilled tokens: this call ", Format("%.0f", d.call_cost()), "; its program had ",
              Format("%.0f", d.program_attained()), " and may need ", Format("%.0f", d.program_remaining()), " more"));
  Line(out, "waited", StrCat(d.queue_depth(), " calls were queued when it came"));
  for (const auto& w : d.waited_for()) {
    Line(out, "",
         StrCat("passed over ", w.count(), w.count() == 1 ? " time: " : " times: ", Explained(kWaits, w.reason())));
  }
  if (!d.last_wait().empty()) Line(out, "", StrCat("last: ", Explained(kWaits, d.last_wait())));
  if (d.overtaken() > 0) Line(out, "", StrCat(d.overtaken(), " later calls went first, for this one fitted nowhere"));
  if (!d.pick().empty()) Line(out, "turn", Explained(kPicks, d.pick()));
}

void AppendPlace(const rpc::Decision& d, std::string* out) {
  if (d.place().empty()) return;
  const bool remote = !d.prefill_worker().empty();
  Line(out, "place",
       StrCat("decode on ", d.decode_worker(), ", prefill on ", remote ? d.prefill_worker() : "the same",
              d.attempt() > 1 ? StrCat("; attempt ", d.attempt()) : std::string()));
  Line(out, "", Explained(kPlaces, d.place()));
  Line(out, "",
       StrCat(d.new_tokens(), " tokens to compute, ", d.cached_tokens(), " in its cache, ", d.booked_blocks(),
              " KV blocks set aside"));
  char row[160];
  std::snprintf(row, sizeof(row), "  %-16s %-10s %12s %10s %6s %12s", "worker", "verdict", "score", "to compute",
                "batch", "free blocks");
  Line(out, "", row);
  for (const auto& c : d.candidates()) {
    std::snprintf(row, sizeof(row), "%s %-16s %-10s %12llu %10u %6u %12lld%s", c.verdict() == "chosen" ? "*" : " ",
                  c.worker_id().substr(0, 40).c_str(), c.verdict().substr(0, 20).c_str(),
                  static_cast<unsigned long long>(c.score()), c.new_tokens(), c.batch(),
                  static_cast<long long>(c.free_blocks()), c.sticky() ? "  had the program's last call" : "");
    Line(out, "", row);
  }
  const auto shown = static_cast<uint32_t>(d.candidates_size());
  if (d.candidates_seen() > shown) Line(out, "", StrCat("  and ", d.candidates_seen() - shown, " more"));
  if (d.preempted_size() > 0) Line(out, "gave way", Join(d.preempted()));
  if (d.evicted_size() > 0) Line(out, "evicted", Join(d.evicted()));
}

void AppendTimes(const rpc::Decision& d, std::string* out) {
  if (!d.has_timeline()) return;
  const auto& t = d.timeline();
  const std::string moved =
      t.transfer_bytes() == 0
          ? std::string()
          : StrCat(t.transfer_path(), ", ", Format("%.1f", double(t.transfer_bytes()) / 1e6), " MB at ",
                   Format("%.1f", t.transfer_gb_per_s()), " GB/s; this part nothing hid");
  const std::tuple<const char*, double, std::string> rows[] = {
      {"other calls", t.dependency_ms(), ""},
      {"queue", t.queue_ms(), ""},
      {"prefill wait", t.prefill_wait_ms(), ""},
      {"prefill", t.prefill_ms(), t.prefill_worker()},
      {"KV transfer", t.transfer_exposed_ms(), moved},
      {"decode wait", t.decode_wait_ms(), ""},
      {"decode", t.decode_ms(), StrCat(t.decode_steps(), " steps on ", t.decode_worker())},
  };
  const double total = std::max(t.total_ms(), 1e-9);
  Line(out, "time", StrCat("first token after ", Ms(t.ttft_ms()), ", all after ", Ms(t.total_ms())));
  for (const auto& [name, ms, note] : rows) {
    if (ms <= 0) continue;
    constexpr size_t kWidth = 30;
    const auto bar = static_cast<size_t>(std::clamp(ms / total, 0.0, 1.0) * kWidth + 0.5);
    char row[128];
    const char* const format = note.empty() ? "  %-13s %10.1f ms  %s" : "  %-13s %10.1f ms  %-30s";
    std::snprintf(row, sizeof(row), format, name, ms, std::string(bar, '#').c_str());
    Line(out, "", StrCat(row, note.empty() ? "" : " ", note));
  }
  if (t.migrations() > 0) Line(out, "", StrCat("moved to another worker ", t.migrations(), " times"));
  if (t.preemptions() > 0) Line(out, "", StrCat("preempted ", t.preemptions(), " times for lack of blocks"));
}

// Control characters of names would change the terminal.
std::string Printable(std::string s) {
  for (char& c : s) {
    if (static_cast<unsigned char>(c) < 0x20 && c != '\n') c = '?';
    if (c == 0x7F) c = '?';
  }
  return s;
}

}  // namespace

std::string DecisionText(const rpc::Decision& d) {
  std::string out;
  Line(&out, "request", d.request_id());
  std::string also;
  if (!d.response_id().empty()) StrAppend(&also, "reply ", d.response_id());
  if (!d.client_request_id().empty()) StrAppend(&also, also.empty() ? "" : ", ", "label ", d.client_request_id());
  if (!also.empty()) Line(&out, "", also);
  AppendState(d, &out);
  AppendIdentity(d, &out);
  if (d.has_record()) {
    AppendOrder(d, &out);
    AppendPlace(d, &out);
  } else {
    Line(&out, "order",
         d.state() == "waiting" ? "not queued yet" : "the router no longer has the record of this decision");
  }
  AppendTimes(d, &out);
  return Printable(std::move(out));
}

std::string DecisionLineHeader() {
  char row[200];
  std::snprintf(row, sizeof(row), "%-32s %-9s %-28s %8s %8s %10s %10s  %s\n", "request", "state", "program", "prompt",
                "output", "queue ms", "total ms", "where");
  return row;
}

std::string DecisionLine(const rpc::Decision& d) {
  char row[400];
  const auto& t = d.timeline();
  const std::string where =
      d.prefill_worker().empty() ? d.decode_worker() : StrCat(d.prefill_worker(), " > ", d.decode_worker());
  std::snprintf(row, sizeof(row), "%-32.40s %-9.12s %-28.28s %8u %8u %10.1f %10.1f  %.60s\n", d.request_id().c_str(),
                d.state().c_str(), d.program_id().c_str(), d.prompt_tokens(), d.completion_tokens(), t.queue_ms(),
                d.has_timeline() ? t.total_ms() : static_cast<double>(d.age_ms()), where.c_str());
  return Printable(row);
}

}  // namespace agentserve::tools
