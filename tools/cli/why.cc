// `agentserve why [REQUEST]`: why a request waited and went where it went.
#include <cstdio>
#include <string>
#include <vector>

#include "base/flags.h"
#include "base/strings.h"
#include "tools/cli/commands.h"
#include "tools/cli/decision_client.h"
#include "tools/cli/paths.h"

namespace agentserve::tools {

int RunWhy(int argc, const char* const* argv) {
  WhyQuery query;
  std::string state_file;
  int limit = 20;
  // The request is the one word that is no flag.
  std::vector<const char*> rest;
  for (int i = 0; i < argc; ++i) {
    const bool word = i == 1 && argv[i][0] != '-';
    if (word) {
      query.request = argv[i];
    } else {
      rest.push_back(argv[i]);
    }
  }
  base::FlagSet flags(
      "agentserve why",
      "Shows why a request waited and went where it went: agentserve why ID, where ID is the id of the "
      "reply (chatcmpl-..), the header x-agentserve-request-id, or x-request-id. Without ID, the newest "
      "requests.");
  flags.Add("router", &query.router, "host:port of the router's gRPC; none = from --state-file");
  flags.Add("state-file", &state_file, "state file of `agentserve up`; none = the newest running");
  flags.Add("tenant", &query.tenant, "only requests of this tenant; none = of any");
  flags.Add("program", &query.program, "list only requests of this program");
  flags.Add("limit", &limit, "list at most this many");
  flags.Add("json", &query.json, "print JSON");
  if (const auto rc = flags.ParseOrExit(static_cast<int>(rest.size()), rest.data())) return *rc;
  if (limit < 1 || limit > 200) {
    std::fprintf(stderr, "agentserve why: --limit must be 1 to 200\n");
    return base::kExitConfig;
  }
  query.limit = static_cast<uint32_t>(limit);
  absl::Status status;
  if (query.router.empty()) {
    auto found = RouterAddress(state_file);
    status = found.status();
    if (found.ok()) query.router = *found;
  }
  if (status.ok()) {
    const auto text = AskWhy(query);
    status = text.status();
    if (text.ok()) std::printf("%s\n", text->c_str());
  }
  if (status.ok()) return base::kExitOk;
  std::fprintf(stderr, "agentserve why: %s\n", base::MessageOf(status).c_str());
  return base::kExitFailure;
}

}  // namespace agentserve::tools
