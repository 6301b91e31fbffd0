#include "tools/cli/up/banner.h"

#include <algorithm>
#include <cstdio>

#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

std::string Seconds(double s) {
  char buf[32];
  std::snprintf(buf, sizeof(buf), "%.2f s", s);
  return buf;
}

std::string Timings(const std::vector<ManagedChild>& children, const ReadyReport& report) {
  std::string out;
  for (size_t i = 0; i < children.size(); ++i) {
    if (report.child_s[i] < 0) continue;
    base::StrAppend(&out, out.empty() ? "" : ", ", children[i].rule.name, " ", Seconds(report.child_s[i]));
  }
  return StrCat(out, out.empty() ? "" : ", ", "whole cluster ", Seconds(report.total_s));
}

std::string Capacity(const ClusterSummary& info) {
  std::string out;
  for (const ClusterSummary::Worker& w : info.workers) {
    if (w.role != "decode" || w.total_blocks == 0) continue;
    const uint64_t tokens = uint64_t{w.total_blocks} * info.block_tokens;
    base::StrAppend(&out, "  KV capacity  ", w.id, ": ", tokens, " tokens (", w.total_blocks, " blocks of ",
                    info.block_tokens, ")");
    if (info.context_length > 0) {
      char full[32];
      std::snprintf(full, sizeof(full), "%.1f", static_cast<double>(tokens) / info.context_length);
      base::StrAppend(&out, " = ", full, " requests at the full context of ", info.context_length);
    }
    out += "\n";
  }
  return out;
}

}  // namespace

std::string ClientHost(const std::string& host) {
  if (host == "0.0.0.0" || host.empty()) return "127.0.0.1";
  if (host == "::") return "::1";
  return host;
}

std::string ReadyBanner(const UpConfig& config, const std::vector<ManagedChild>& children, const ReadyReport& report,
                        const ClusterSummary* info) {
  const std::string url = StrCat("http://", HostPort(ClientHost(config.host), config.port));
  std::string router;
  for (const ManagedChild& c : children) {
    if (c.role == "router") router = HostPort(c.host, c.port);
  }
  std::string out = StrCat("\nAgentServe is ready: ", config.model_id, " on ", config.device, ", ", config.prefill,
                           " prefill + ", config.decode, " decode\n  start-up     ", Timings(children, report), "\n");
  if (info != nullptr) out += Capacity(*info);
  for (const char* route : {"POST /v1/chat/completions", "POST /v1/completions", "GET  /v1/models",
                            "POST /tokenize, /detokenize", "GET  /health, /live, /ready, /version, /metrics"}) {
    base::StrAppend(&out, out.find("  routes") == out.npos ? "  routes       " : "               ", route, "\n");
  }
  base::StrAppend(&out, "  base URL     ", url, "/v1\n  gRPC         ", router,
                  " (agentserve.router.v1.RouterService)\n");
  base::StrAppend(&out, "  state        ", config.state_file, "\n\nTry it:\n  curl -N ", url,
                  "/v1/chat/completions -H 'content-type: application/json' \\\n");
  if (!config.api_keys.empty()) base::StrAppend(&out, "    -H \"authorization: Bearer $API_KEY\" \\\n");
  base::StrAppend(&out, "    -d '{\"model\":\"", config.model_id,
                  "\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello! What can you do?\"}]}'\n"
                  "  agentserve chat --url ",
                  url, "\n\nCtrl-C stops the cluster.\n\n");
  return out;
}

}  // namespace agentserve::tools
