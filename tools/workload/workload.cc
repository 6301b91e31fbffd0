#include "tools/workload/workload.h"

#include <algorithm>

#include "base/rng.h"
#include "base/strings.h"

namespace agentserve::workload {
namespace {

using base::StrCat;

uint16_t PlaceOf(const std::string& name, std::vector<std::string>* names) {
  const auto it = std::find(names->begin(), names->end(), name);
  if (it != names->end()) return static_cast<uint16_t>(it - names->begin());
  names->push_back(name);
  return static_cast<uint16_t>(names->size() - 1);
}

absl::Status Bad(const Program& p, size_t call, const std::string& what) {
  return absl::InvalidArgumentError(base::ToAbsl(StrCat("program ", p.id, " call ", call, ": ", what)));
}

// Longest prompt or output of a row: beyond any model's context, so that sums stay in 32 bits.
constexpr uint32_t kMostTokens = 1u << 24;

absl::Status ValidateCall(const Workload& w, size_t program, size_t i) {
  const Program& p = w.programs[program];
  const Call& c = p.calls[i];
  if (c.in < 1 || c.out < 1) return Bad(p, i, "in and out must be at least 1");
  if (c.in > kMostTokens || c.out > kMostTokens) return Bad(p, i, "in or out is beyond 16 Mi tokens");
  if (!(c.wait_ms >= 0)) return Bad(p, i, "the wait is negative");
  if (i > 0 && c.wait_for.empty()) return Bad(p, i, "only a program's first call may wait for nothing");
  for (uint32_t d : c.wait_for) {
    if (d >= i) return Bad(p, i, StrCat("it waits for call ", d, ", which is not earlier"));
  }
  if (c.tool >= w.tools.size()) return Bad(p, i, "unknown tool");
  if (c.ref == kNone) return c.lcp == 0 ? absl::OkStatus() : Bad(p, i, "a shared prefix without a reference");
  const size_t rp = c.ref_program == kNone ? program : c.ref_program;
  if (rp > program) return Bad(p, i, "it refers to a later program");
  const Program& other = w.programs[rp];
  if (c.ref >= other.calls.size() || (rp == program && c.ref >= i)) {
    return Bad(p, i, StrCat("it shares a prefix with call ", c.ref, ", which is not earlier"));
  }
  const Call& r = other.calls[c.ref];
  if (c.lcp > c.in || c.lcp > r.in + r.out) return Bad(p, i, "the shared prefix is longer than a call");
  return absl::OkStatus();
}

}  // namespace

size_t Workload::calls() const {
  size_t n = 0;
  for (const Program& p : programs) n += p.calls.size();
  return n;
}

uint16_t Workload::ClassOf(const std::string& class_name) { return PlaceOf(class_name, &classes); }
uint16_t Workload::ToolOf(const std::string& tool_name) { return PlaceOf(tool_name, &tools); }

absl::Status Validate(const Workload& w) {
  if (w.programs.empty()) return absl::InvalidArgumentError("the workload has no program");
  for (size_t program = 0; program < w.programs.size(); ++program) {
    const Program& p = w.programs[program];
    if (p.calls.empty()) return Bad(p, 0, "a program needs a call");
    if (p.workflow >= w.classes.size() || p.tenant >= w.tenants.size()) return Bad(p, 0, "unknown class or tenant");
    for (size_t i = 0; i < p.calls.size(); ++i) {
      if (absl::Status s = ValidateCall(w, program, i); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

void Scale(double in, double out, Workload* w) {
  const auto scaled = [](uint32_t tokens, double by) { return static_cast<uint32_t>(std::max(1.0, tokens * by)); };
  for (Program& p : w->programs) {
    p.prefix_tokens = p.prefix_tokens == 0 ? 0 : scaled(p.prefix_tokens, in);
    for (Call& c : p.calls) c.in = scaled(c.in, in), c.out = scaled(c.out, out);
  }
  for (Program& p : w->programs) {
    for (Call& c : p.calls) {
      if (c.ref == kNone) continue;
      const Call& r = (c.ref_program == kNone ? p : w->programs[c.ref_program]).calls[c.ref];
      c.lcp = std::min({scaled(c.lcp, in), c.in, r.in + r.out});
    }
  }
}

void ForgetOutputs(Workload* w) {
  for (Program& p : w->programs) {
    for (Call& c : p.calls) {
      if (c.ref == kNone) continue;
      c.lcp = std::min(c.lcp, (c.ref_program == kNone ? p : w->programs[c.ref_program]).calls[c.ref].in);
    }
  }
}

uint64_t OriginOf(uint64_t program, uint64_t call, uint64_t instance) {
  base::SplitMix64 mix(program * 0x9e3779b97f4a7c15ull ^ (call + 1) * 0xc2b2ae3d27d4eb4full ^
                       instance * 0x165667b19e3779f9ull);
  return mix.Next() | 1;
}

std::vector<Span> Spans(const Workload& w, uint32_t program, uint32_t call, uint64_t instance) {
  // From the end to the start: each reference contributes what lies below the shortest prefix seen so far.
  std::vector<Span> reversed;
  uint32_t limit = w.programs[program].calls[call].in + w.programs[program].calls[call].out;
  uint32_t p = program, c = call;
  for (;;) {
    const Program& owner = w.programs[p];
    const Call& at = owner.calls[c];
    const uint32_t own_from = std::min(limit, at.ref != kNone ? at.lcp : std::min(owner.prefix_tokens, at.in));
    if (limit > own_from) reversed.push_back({limit, OriginOf(p, c, instance)});
    limit = own_from;
    if (limit == 0) break;
    if (at.ref == kNone) {
      reversed.push_back({limit, OriginOf(owner.prefix_id, 0, 0xfeedull)});
      break;
    }
    p = at.ref_program == kNone ? p : at.ref_program;
    c = at.ref;
  }
  std::reverse(reversed.begin(), reversed.end());
  return reversed;
}

}  // namespace agentserve::workload
