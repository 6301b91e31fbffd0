// agentserve-kvstore: the block manager. Soft state only; may be killed at any moment.
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <signal.h>

#include <iostream>

#include "base/clock.h"
#include "base/flags.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/service.h"

namespace agentserve::kvstore {
namespace {

using base::Field;

struct Config {
  std::string host = "127.0.0.1";
  int port = 0;
  int metrics_port = 0;
  std::string log_level = "info";
  bool log_json = false;
  int lease_ms = 3000;
  int64_t max_blocks = 4 << 20;
  int max_watchers = 64;
  int drain_ms = 2000;
};

std::optional<int> ParseFlags(int argc, char** argv, Config* c) {
  base::FlagSet flags("agentserve-kvstore", "Directory of KV blocks: leases, tickets, change stream, audit.");
  flags.Add("host", &c->host, "address to listen on", "Network");
  flags.Add("port", &c->port, "gRPC port; 0 = any free one", "Network");
  flags.Add("metrics-port", &c->metrics_port, "HTTP port of /metrics; 0 = any free one, -1 = off", "Network");
  flags.Add("log-level", &c->log_level, "debug, info, warn or error", "Logs");
  flags.Add("log-json", &c->log_json, "logs as JSON lines", "Logs");
  flags.Add("lease-ms", &c->lease_ms, "a pool not heard of for so long is forgotten; 100..600000", "Limits");
  flags.Add("max-blocks", &c->max_blocks, "most blocks in the directory (about 120 bytes each)", "Limits");
  flags.Add("max-watchers", &c->max_watchers, "most Watch streams", "Limits");
  flags.Add("drain-ms", &c->drain_ms, "longest wait for running calls when stopped", "Limits");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return rc;
  const auto refuse = [](const std::string& what) {
    std::cerr << "agentserve-kvstore: " << what << "\n";
    return base::kExitConfig;
  };
  base::LogLevel level{};
  if (!base::ParseLogLevel(c->log_level, &level)) return refuse("--log-level: '" + c->log_level + "' is not a level");
  if (c->port < 0 || c->port > 65535) return refuse("--port must be 0..65535");
  if (c->metrics_port < -1 || c->metrics_port > 65535) return refuse("--metrics-port must be -1..65535");
  if (c->lease_ms < 100 || c->lease_ms > 600'000) return refuse("--lease-ms must be 100..600000");
  if (c->max_blocks < 1 || c->max_blocks > (int64_t{1} << 31)) return refuse("--max-blocks must be 1..2147483648");
  if (c->max_watchers < 1 || c->max_watchers > 4096) return refuse("--max-watchers must be 1..4096");
  if (c->drain_ms < 0 || c->drain_ms > 600'000) return refuse("--drain-ms must be 0..600000");
  base::InitLog("kvstore", level, c->log_json);
  return std::nullopt;
}

std::unique_ptr<grpc::Server> StartServer(const Config& config, KvStoreServiceImpl* service, int* port) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(base::StrCat(config.host, ":", config.port), grpc::InsecureServerCredentials(), port);
  builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(8 << 20);
  // A taken port must be an error, not a second listener that gets half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024);
  return builder.BuildAndStart();
}

int Main(int argc, char** argv) {
  Config config;
  if (const auto rc = ParseFlags(argc, argv, &config)) return *rc;
  // gRPC's own messages, in our format and only when asked for: ours say what to do.
  gpr_set_log_function([](gpr_log_func_args* args) {
    AS_LOG(kDebug, "grpc") << Field("message", args->message) << Field("file", args->file) << Field("line", args->line);
  });
  // Blocked before any thread starts, so that only sigwait below sees them.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  ServiceOptions options;
  options.incarnation = base::EntropyUint64() | 1;
  options.limits.lease = config.lease_ms * base::kNsPerMs;
  options.limits.max_blocks = static_cast<uint64_t>(config.max_blocks);
  options.max_watchers = static_cast<size_t>(config.max_watchers);
  base::MonotonicClock clock;
  base::Metrics metrics(base::Labels{{"service", "kvstore"}});
  int metrics_port = -1;
  if (config.metrics_port >= 0) {
    const auto listening = metrics.Listen(config.host, config.metrics_port);
    if (!listening.ok()) {
      AS_LOG(kError, "service.start_failed") << Field("error", base::MessageOf(listening.status()));
      return base::kExitConfig;
    }
    metrics_port = *listening;
  }
  KvStoreServiceImpl service(options, &clock, &metrics);
  int port = 0;
  const std::unique_ptr<grpc::Server> server = StartServer(config, &service, &port);
  if (server == nullptr || port == 0) {
    AS_LOG(kError, "service.start_failed")
        << Field("error", base::StrCat("cannot listen on ", config.host, ":", config.port,
                                       ": is the port in use? choose another with --port, or 0 for any free one"));
    return base::kExitConfig;
  }
  AS_LOG(kInfo, "service.ready") << Field("port", port) << Field("metrics_port", metrics_port)
                                 << Field("incarnation", options.incarnation) << Field("lease_ms", config.lease_ms);
  int signal_number = 0;
  sigwait(&stop_signals, &signal_number);
  AS_LOG(kInfo, "service.draining") << Field("signal", signal_number);
  server->GetHealthCheckService()->SetServingStatus(false);
  service.Stop();
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(config.drain_ms));
  server->Wait();
  AS_LOG(kInfo, "service.stopped");
  return base::kExitOk;
}

}  // namespace
}  // namespace agentserve::kvstore

int main(int argc, char** argv) { return agentserve::kvstore::Main(argc, argv); }
