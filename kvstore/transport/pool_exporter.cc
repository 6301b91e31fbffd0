#include "kvstore/transport/pool_exporter.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/handshake.h"

namespace agentserve::kvstore {

using base::Field;

absl::StatusOr<std::unique_ptr<PoolExporter>> PoolExporter::Start(const KvPool* pool,
                                                                  const PoolExporterOptions& options) {
  std::unique_ptr<PoolExporter> exporter(new PoolExporter(pool, options));
  AS_ASSIGN_OR_RETURN(exporter->read_only_, pool->OpenReadOnly());
  if (pool->memory().facts().kind != MemoryKind::kHost) {
    AS_ASSIGN_OR_RETURN(exporter->blocks_, pool->memory().Export());
  }
  AS_ASSIGN_OR_RETURN(exporter->listener_, base::ListenUnix(options.socket_path));
  exporter->stop_event_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!exporter->stop_event_.valid()) return absl::UnavailableError(base::StrCat("eventfd: ", strerror(errno)));
  exporter->thread_ = std::thread([e = exporter.get()] { e->Run(); });
  return exporter;
}

PoolExporter::~PoolExporter() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_event_.get(), &one, sizeof(one));
  thread_.join();
  unlink(options_.socket_path.c_str());
}

base::UniqueFd PoolExporter::AcceptOne() {
  base::UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) {
    // Out of descriptors, say: the pending connection keeps the listener readable, so do not spin on it.
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      AS_LOG(kWarn, "kv.export.accept") << Field("error", strerror(errno));
      usleep(100'000);
    }
    return {};
  }
  ucred who{};
  socklen_t len = sizeof(who);
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &len) != 0 || (who.uid != geteuid() && who.uid != 0)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    AS_LOG(kWarn, "kv.export.refused") << Field("reason", "peer runs as another user") << Field("uid", who.uid);
    return {};
  }
  const PoolHello hello{pool_->options().worker_id, pool_->options().incarnation, pool_->layout().Fingerprint(),
                        pool_->file_bytes(), pool_->memory().facts()};
  const int fds[] = {read_only_.get(), blocks_.get()};
  const absl::Status sent = base::SendFds(fd.get(), std::span(fds, blocks_.valid() ? 2 : 1), EncodeHello(hello));
  if (!sent.ok()) {
    AS_LOG(kWarn, "kv.export.send") << Field("error", base::MessageOf(sent));
    return {};
  }
  return fd;
}

void PoolExporter::Run() {
  std::vector<base::UniqueFd> peers;
  std::vector<pollfd> polled;
  for (;;) {
    polled.clear();
    polled.push_back({stop_event_.get(), POLLIN, 0});
    // Full: leave the listener alone until a peer goes; connecting peers wait in the backlog and time out.
    const bool full = peers.size() >= static_cast<size_t>(options_.max_peers);
    polled.push_back({listener_.get(), static_cast<short>(full ? 0 : POLLIN), 0});
    for (const auto& p : peers) polled.push_back({p.get(), POLLIN, 0});
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    if (polled[0].revents != 0) return;
    // Peers never send: anything readable is the end of the connection (or a peer that breaks the protocol).
    for (size_t i = polled.size(); i > 2; --i) {
      if (polled[i - 1].revents != 0) peers.erase(peers.begin() + static_cast<std::ptrdiff_t>(i - 3));
    }
    if (polled[1].revents != 0) {
      if (base::UniqueFd fd = AcceptOne(); fd.valid()) peers.push_back(std::move(fd));
    }
    peers_.store(static_cast<int>(peers.size()), std::memory_order_relaxed);
  }
}

}  // namespace agentserve::kvstore
