#include "tools/cli/bench/hold.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>  // before Asio, see sse_client.h

#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/http/sse_client.h"
#include "tools/cli/up/net.h"

namespace agentserve::tools {

namespace asio = boost::asio;
using asio::ip::tcp;
using base::StrCat;
using nlohmann::json;

namespace {

// After closing: cancelled work is gone within half a second, and allocators need a moment to give memory back.
constexpr auto kSettle = std::chrono::milliseconds(1500);
// Connections per turn: a listen backlog of 128 is a common default.
constexpr int kConnectBatch = 64;
constexpr auto kBatchPause = std::chrono::milliseconds(20);
constexpr size_t kMaxHeadBytes = 16 << 10;

struct Held {
  explicit Held(asio::io_context& io) : socket(io) {}
  tcp::socket socket;
  std::string head;
  bool connected = false;
  bool dropped = false;
};

asio::awaitable<void> Hold(Held& held, tcp::endpoint server, std::string message) {
  boost::system::error_code ec;
  auto token = asio::redirect_error(asio::use_awaitable, ec);
  co_await held.socket.async_connect(server, token);
  if (ec) co_return;
  held.connected = true;
  // A small window, so that "not reading" is felt by the server and not by the kernel's buffers.
  held.socket.set_option(asio::socket_base::receive_buffer_size(4096), ec);
  co_await asio::async_write(held.socket, asio::buffer(message), token);
  if (!ec) co_await asio::async_read_until(held.socket, asio::dynamic_buffer(held.head, kMaxHeadBytes), "\r\n", token);
  held.dropped = ec && ec != asio::error::operation_aborted;
}

std::string RawRequest(const LoadConfig& config, const WorkItem& item) {
  const std::string body = RequestBody(config, item);
  return StrCat("POST ", config.url.path, config.chat ? "/v1/chat/completions" : "/v1/completions",
                " HTTP/1.1\r\nHost: ", config.url.host,
                config.api_key.empty() ? "" : StrCat("\r\nAuthorization: Bearer ", config.api_key),
                "\r\nContent-Type: application/json\r\nContent-Length: ", body.size(), "\r\n\r\n", body);
}

void RunFor(asio::io_context& io, std::chrono::nanoseconds time) {
  io.restart();
  io.run_for(time);
}

json ToJson(const std::vector<ProcessUse>& uses) {
  json out = json::array();
  for (const ProcessUse& u : uses) {
    out.push_back({{"name", u.name}, {"pid", u.pid}, {"rss_mib", u.rss_mib}, {"open_files", u.open_files}});
  }
  return out;
}

const ProcessUse* Find(const std::vector<ProcessUse>& uses, const std::string& name) {
  for (const ProcessUse& u : uses) {
    if (u.name == name) return &u;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::vector<ProcessUse>> ReadProcessUse(const std::string& state_file) {
  std::ifstream in(state_file);
  const json state = json::parse(in, nullptr, false);
  if (!state.is_object() || !state.contains("processes") || !state["processes"].is_array()) {
    return absl::NotFoundError(StrCat("--state-file ", state_file, " is no state file of `agentserve up`"));
  }
  std::vector<ProcessUse> out;
  for (const json& p : state["processes"]) {
    ProcessUse use;
    use.name = p.value("name", "");
    use.pid = p.value("pid", 0);
    std::ifstream status(StrCat("/proc/", use.pid, "/status"));
    for (std::string line; std::getline(status, line);) {
      double kib = 0;
      if (std::sscanf(line.c_str(), "VmRSS: %lf kB", &kib) == 1) use.rss_mib = kib / 1024;
    }
    if (use.rss_mib == 0) continue;
    std::error_code ec;
    for (auto it = std::filesystem::directory_iterator(StrCat("/proc/", use.pid, "/fd"), ec);
         !ec && it != std::filesystem::directory_iterator(); it.increment(ec)) {
      ++use.open_files;
    }
    out.push_back(std::move(use));
  }
  return out;
}

absl::StatusOr<HoldReport> HoldStreams(const LoadConfig& config, const Workload& workload, int streams, double seconds,
                                       const std::string& state_file) {
  AS_ASSIGN_OR_RETURN(const tcp::endpoint server, ResolveUrl(config.url));
  HoldReport report;
  AS_ASSIGN_OR_RETURN(report.before, ReadProcessUse(state_file));
  asio::io_context io(1);
  std::vector<std::unique_ptr<Held>> held;
  for (int i = 0; i < streams; ++i) {
    held.push_back(std::make_unique<Held>(io));
    const WorkItem item = workload.Item(static_cast<uint64_t>(i));
    asio::co_spawn(io, Hold(*held.back(), server, RawRequest(config, item)), asio::detached);
    if (i % kConnectBatch == kConnectBatch - 1) RunFor(io, kBatchPause);
  }
  RunFor(io, std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
  AS_ASSIGN_OR_RETURN(report.during, ReadProcessUse(state_file));
  for (const auto& h : held) {
    const int status = ParseHttpStatus(h->head).value_or(0);
    report.connected += h->connected ? 1 : 0;
    report.dropped += h->dropped ? 1 : 0;
    report.streaming += status == 200 ? 1 : 0;
    report.refused += status != 200 && status != 0 ? 1 : 0;
    report.silent += h->connected && !h->dropped && status == 0 ? 1 : 0;
  }
  boost::system::error_code ec;
  for (const auto& h : held) h->socket.close(ec);
  RunFor(io, std::chrono::milliseconds(10));  // lets the coroutines see that their sockets are gone
  held.clear();
  asio::steady_timer settle(io, kSettle);
  settle.wait(ec);
  AS_ASSIGN_OR_RETURN(report.after, ReadProcessUse(state_file));
  return report;
}

std::string HoldTable(const HoldReport& r) {
  std::string out = StrCat("\n  connected ", r.connected, ", streaming ", r.streaming, ", waiting ", r.silent,
                           ", refused ", r.refused, ", dropped ", r.dropped, "\n\n");
  char line[160];
  std::snprintf(line, sizeof(line), "  %-14s %12s %12s %12s %16s %10s\n", "memory (MiB)", "before", "during", "after",
                "KiB per stream", "files");
  out += line;
  for (const ProcessUse& during : r.during) {
    const ProcessUse* before = Find(r.before, during.name);
    const ProcessUse* after = Find(r.after, during.name);
    const double grown = before == nullptr ? 0 : during.rss_mib - before->rss_mib;
    std::snprintf(line, sizeof(line), "  %-14s %12.1f %12.1f %12.1f %16.1f %10d\n", during.name.c_str(),
                  before == nullptr ? 0 : before->rss_mib, during.rss_mib, after == nullptr ? 0 : after->rss_mib,
                  r.connected == 0 ? 0 : grown * 1024 / static_cast<double>(r.connected), during.open_files);
    out += line;
  }
  return out;
}

std::string HoldJson(const HoldReport& r) {
  return json{{"connected", r.connected},   {"streaming", r.streaming}, {"waiting", r.silent},
              {"refused", r.refused},       {"dropped", r.dropped},     {"before", ToJson(r.before)},
              {"during", ToJson(r.during)}, {"after", ToJson(r.after)}}
      .dump(2);
}

}  // namespace agentserve::tools
