#include "kvstore/transport/handshake.h"

#include <cstring>

#include "base/strings.h"
#include "kvstore/transport/control_page.h"

namespace agentserve::kvstore {
namespace {

struct Wire {
  uint64_t magic;
  uint32_t version;
  uint32_t id_bytes;
  uint64_t incarnation;
  uint64_t layout_fingerprint;
  uint64_t file_bytes;
};
static_assert(sizeof(Wire) == 40);

}  // namespace

std::string EncodeHello(const PoolHello& hello) {
  const Wire w{kHandshakeMagic,   kHandshakeVersion,        static_cast<uint32_t>(hello.worker_id.size()),
               hello.incarnation, hello.layout_fingerprint, hello.file_bytes};
  std::string out(sizeof(w), '\0');
  std::memcpy(out.data(), &w, sizeof(w));
  return out + hello.worker_id;
}

absl::StatusOr<PoolHello> DecodeHello(std::string_view payload) {
  Wire w{};
  if (payload.size() < sizeof(w)) {
    return absl::DataLossError(base::StrCat("pool handshake of ", payload.size(), " bytes; at least ", sizeof(w)));
  }
  std::memcpy(&w, payload.data(), sizeof(w));
  if (w.magic != kHandshakeMagic) return absl::DataLossError("pool handshake: the socket does not belong to a KV pool");
  if (w.version != kHandshakeVersion) {
    return absl::FailedPreconditionError(
        base::StrCat("pool handshake version ", w.version, "; this program speaks ", kHandshakeVersion));
  }
  if (w.id_bytes == 0 || w.id_bytes >= kWorkerIdBytes || payload.size() != sizeof(w) + w.id_bytes) {
    return absl::DataLossError(base::StrCat("pool handshake: worker id of ", w.id_bytes, " bytes in a message of ",
                                            payload.size(), "; 1..", kWorkerIdBytes - 1));
  }
  return PoolHello{std::string(payload.substr(sizeof(w))), w.incarnation, w.layout_fingerprint, w.file_bytes};
}

}  // namespace agentserve::kvstore
