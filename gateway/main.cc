// agentserve-gateway: wiring, signals, drain.
#include <sys/resource.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdio>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/flags.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/version.h"
#include "gateway/gateway.h"
#include "gateway/gateway_flags.h"
#include "gateway/http/server.h"

namespace agentserve::gateway {
namespace {

using base::Field;

// Descriptors beside client connections: router channels, epoll, logs.
constexpr size_t kOtherDescriptors = 128;

// Raises the soft limit of open files to the hard one and fits the connection limit into it.
void FitDescriptors(HttpLimits* limits) {
  rlimit r{};
  if (getrlimit(RLIMIT_NOFILE, &r) != 0) return;
  r.rlim_cur = r.rlim_max;
  setrlimit(RLIMIT_NOFILE, &r);
  getrlimit(RLIMIT_NOFILE, &r);
  const size_t room = r.rlim_cur > 2 * kOtherDescriptors ? r.rlim_cur - kOtherDescriptors : r.rlim_cur / 2;
  if (limits->connections > room) {
    AS_LOG(kWarn, "http.connections_reduced") << Field("from", limits->connections) << Field("to", room)
                                              << Field("open_files", r.rlim_cur) << Field("hint", "raise `ulimit -n`");
    limits->connections = room;
  }
}

// Waits for the running requests after a signal, at most --drain-timeout, then ends everything.
class Drainer {
 public:
  Drainer(boost::asio::io_context& io, const GatewayConfig& config, Gateway* gateway, HttpServer* server)
      : io_(io), config_(config), gateway_(gateway), server_(server), signals_(io, SIGINT, SIGTERM), timer_(io) {}

  void Start() {
    signals_.async_wait([this](boost::system::error_code ec, int signal) {
      if (!ec) OnSignal(signal);
    });
  }

 private:
  void OnSignal(int signal) {
    if (draining_) {
      AS_LOG(kWarn, "service.drain_cut_short") << Field("signal", signal);
      left_ms_ = 0;
      return;
    }
    draining_ = true;
    left_ms_ = config_.drain_timeout_ms;
    AS_LOG(kInfo, "service.draining") << Field("signal", signal) << Field("connections", server_->connections());
    gateway_->BeginDrain();
    server_->BeginDrain();
    Start();
    Tick();
  }

  void Tick() {
    constexpr int64_t kTickMs = 20;
    if (server_->connections() == 0) return Finish();
    if (left_ms_ <= 0 && !aborted_) {
      aborted_ = true;
      server_->AbortAll();
      left_ms_ = 1'000;
    } else if (left_ms_ <= 0) {
      return Finish();
    }
    left_ms_ -= kTickMs;
    timer_.expires_after(std::chrono::milliseconds(kTickMs));
    timer_.async_wait([this](boost::system::error_code ec) {
      if (!ec) Tick();
    });
  }

  void Finish() {
    signals_.cancel();
    gateway_->model().Stop();
    io_.stop();
  }

  boost::asio::io_context& io_;
  const GatewayConfig& config_;
  Gateway* gateway_;
  HttpServer* server_;
  boost::asio::signal_set signals_;
  boost::asio::steady_timer timer_;
  std::atomic<bool> draining_{false};
  bool aborted_ = false;
  std::atomic<int64_t> left_ms_{0};
};

int Run(GatewayOptions options) {
  FitDescriptors(&options.config.http);
  const GatewayConfig& config = options.config;
  base::MonotonicClock clock;
  boost::asio::io_context io(config.io_threads);
  Gateway gateway(io, config, &clock);
  HttpServer server(io, config.http, &gateway, &gateway.metrics(), &clock);
  const auto port = server.Listen(config.host, config.port);
  if (!port.ok()) {
    AS_LOG(kError, "service.cannot_listen") << Field("error", base::MessageOf(port.status()));
    return base::kExitConfig;
  }
  Drainer drainer(io, config, &gateway, &server);
  drainer.Start();
  gateway.Start();
  AS_LOG(kInfo, "service.ready") << Field("port", *port) << Field("metrics_port", *port) << Field("host", config.host)
                                 << Field("router", config.router) << Field("api_keys", config.api_keys.size())
                                 << Field("version", base::Version()) << Field("commit", base::Commit());
  std::vector<std::thread> threads;
  for (int i = 1; i < config.io_threads; ++i) threads.emplace_back([&io] { io.run(); });
  io.run();
  for (auto& t : threads) t.join();
  gateway.Stop();
  AS_LOG(kInfo, "service.stopped");
  return base::kExitOk;
}

}  // namespace
}  // namespace agentserve::gateway

int main(int argc, char** argv) {
  agentserve::gateway::GatewayOptions options;
  if (const auto rc = agentserve::gateway::ParseGatewayFlags(argc, argv, &options)) return *rc;
  agentserve::base::LogLevel level{};
  if (!agentserve::base::ParseLogLevel(options.log_level, &level)) {
    std::fprintf(stderr, "agentserve-gateway: --log-level is '%s'; use debug, info, warn or error\n",
                 options.log_level.c_str());
    return agentserve::base::kExitConfig;
  }
  agentserve::base::InitLog("gateway", level, options.log_json);
  return agentserve::gateway::Run(std::move(options));
}
