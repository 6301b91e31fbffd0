#include "router/core/agent_options.h"

#include "base/strings.h"

namespace agentserve::router {
namespace {

struct Layer {
  std::string_view name;
  bool AgentPolicyOptions::*on;
};
constexpr Layer kLayers[] = {
    {"L1", &AgentPolicyOptions::gate},      {"L2", &AgentPolicyOptions::order},   {"L3", &AgentPolicyOptions::dag},
    {"L4", &AgentPolicyOptions::placement}, {"L5", &AgentPolicyOptions::decode},  {"L6", &AgentPolicyOptions::retain},
    {"L7", &AgentPolicyOptions::route},     {"L8", &AgentPolicyOptions::tenants},
};

void SetAll(AgentPolicyOptions* o, bool on) {
  for (const Layer& l : kLayers) o->*l.on = on;
}

}  // namespace

absl::Status ParseAgentLayers(std::string_view list, AgentPolicyOptions* out) {
  SetAll(out, false);
  size_t at = 0;
  while (at <= list.size()) {
    const size_t comma = std::min(list.find(',', at), list.size());
    std::string_view piece = list.substr(at, comma - at);
    at = comma + 1;
    const bool off = !piece.empty() && piece[0] == '-';
    if (off) piece.remove_prefix(1);
    if (piece == "all" || piece == "none") {
      SetAll(out, (piece == "all") != off);
      continue;
    }
    bool found = piece == "L0";
    for (const Layer& l : kLayers) {
      if (l.name == piece) out->*l.on = !off, found = true;
    }
    if (!found) {
      return absl::InvalidArgumentError(base::StrCat("unknown layer \"", piece, "\" in \"", list,
                                                     "\"; use all, none, L0 to L8 and -L1 to -L8, with commas"));
    }
  }
  return absl::OkStatus();
}

std::string AgentLayers(const AgentPolicyOptions& o) {
  std::string out = "L0";
  for (const Layer& l : kLayers) {
    if (o.*l.on) base::StrAppend(&out, ",", l.name);
  }
  return out;
}

}  // namespace agentserve::router
