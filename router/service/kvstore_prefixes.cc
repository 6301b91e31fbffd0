#include "router/service/kvstore_prefixes.h"

#include "base/log.h"

namespace agentserve::router {
namespace {

kvstore::DirectoryMirrorOptions Options(const std::string& address) {
  kvstore::DirectoryMirrorOptions o;
  o.address = address;
  o.on_state = [address](bool complete) {
    AS_LOG(kInfo, complete ? "kvstore.mirrored" : "kvstore.away") << base::Field("address", address);
  };
  return o;
}

}  // namespace

KvStorePrefixes::KvStorePrefixes(const std::string& address, const WorkerTable& workers)
    : workers_(workers), mirror_(kvstore::DirectoryMirror::Start(Options(address))) {}

void KvStorePrefixes::Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const {
  for (const kvstore::PrefixMatch& m : mirror_->Lookup(chain)) {
    const Worker* w = workers_.FindByName(m.pool.worker_id);
    if (w != nullptr && w->info.incarnation == m.pool.incarnation) RaiseMatch(w->id, m.blocks, out);
  }
}

}  // namespace agentserve::router
