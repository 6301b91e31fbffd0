// `agentserve probe`: a health check for containers, which have no curl. Exit code 0 = healthy, 1 = not.
#include <poll.h>

#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "base/flags.h"
#include "base/strings.h"
#include "tools/cli/cluster_client.h"
#include "tools/cli/commands.h"
#include "tools/cli/http/url.h"
#include "tools/cli/up/net.h"

namespace agentserve::tools {

namespace {

absl::Status ProbeHttp(const std::string& text, base::TimeNs timeout) {
  auto url = ParseUrl(text);
  if (!url.ok()) return url.status();
  const base::MonotonicClock clock;
  const base::TimeNs end = clock.Now() + timeout;
  HttpProbe probe(url->host, url->port, url->path.empty() ? "/ready" : url->path);
  std::optional<int> status;
  while (!status && clock.Now() < end) {
    probe.Tick(clock.Now());
    if (probe.fd() < 0) return absl::UnavailableError(base::StrCat(text, ": nothing listens there"));
    pollfd p{probe.fd(), POLLIN, 0};
    if (poll(&p, 1, 10) > 0) status = probe.OnReadable();
  }
  if (!status) return absl::DeadlineExceededError(base::StrCat(text, ": no answer in time"));
  if (*status != 200) return absl::UnavailableError(base::StrCat(text, ": answered with status ", *status));
  return absl::OkStatus();
}

}  // namespace

int RunProbe(int argc, const char* const* argv) {
  std::string url = "http://127.0.0.1:8000/ready", grpc_address, service;
  double timeout_s = 2;
  base::FlagSet flags("agentserve probe", "Health check: exit code 0 if the service is ready.");
  flags.Add("url", &url, "HTTP address that must answer 200");
  flags.Add("grpc", &grpc_address, "host:port of a gRPC service to ask instead (grpc.health.v1)");
  flags.Add("service", &service, "gRPC service name; none = the whole server");
  flags.Add("timeout", &timeout_s, "seconds to wait for the answer");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  if (!(timeout_s > 0 && timeout_s <= 600)) {
    std::fprintf(stderr, "agentserve probe: --timeout must be above 0 and at most 600 seconds\n");
    return base::kExitConfig;
  }
  const auto timeout = static_cast<base::TimeNs>(timeout_s * 1e9);
  const absl::Status s =
      grpc_address.empty() ? ProbeHttp(url, timeout) : CheckGrpcHealth(grpc_address, service, timeout);
  if (s.ok()) return base::kExitOk;
  std::fprintf(stderr, "agentserve probe: %s\n", base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace agentserve::tools
