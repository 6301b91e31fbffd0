#include "kvstore/transport/handshake.h"

#include <algorithm>
#include <cstddef>
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
  uint32_t memory_kind;
  uint32_t digest_algorithm;
  uint64_t allocation_bytes;
  uint8_t device_uuid[16];
};
static_assert(sizeof(Wire) == 72);

}  // namespace

std::string EncodeHello(const PoolHello& hello) {
  Wire w{kHandshakeMagic,
         kHandshakeVersion,
         static_cast<uint32_t>(hello.worker_id.size()),
         hello.incarnation,
         hello.layout_fingerprint,
         hello.file_bytes,
         static_cast<uint32_t>(hello.memory.kind),
         kPositionalSum,
         hello.memory.allocation_bytes,
         {}};
  std::memcpy(w.device_uuid, hello.memory.device_uuid.data(), sizeof(w.device_uuid));
  std::string out(sizeof(w), '\0');
  std::memcpy(out.data(), &w, sizeof(w));
  return out + hello.worker_id;
}

absl::StatusOr<PoolHello> DecodeHello(std::string_view payload) {
  Wire w{};
  // The version first: other versions may be shorter.
  if (payload.size() < offsetof(Wire, id_bytes)) {
    return absl::DataLossError(base::StrCat("pool handshake of ", payload.size(), " bytes; at least ", sizeof(w)));
  }
  std::memcpy(&w, payload.data(), std::min(sizeof(w), payload.size()));
  if (w.magic != kHandshakeMagic) return absl::DataLossError("pool handshake: the socket does not belong to a KV pool");
  if (w.version != kHandshakeVersion) {
    return absl::FailedPreconditionError(
        base::StrCat("pool handshake version ", w.version, "; this program speaks ", kHandshakeVersion));
  }
  if (w.id_bytes == 0 || w.id_bytes >= kWorkerIdBytes || payload.size() != sizeof(w) + w.id_bytes) {
    return absl::DataLossError(base::StrCat("pool handshake: worker id of ", w.id_bytes, " bytes in a message of ",
                                            payload.size(), "; 1..", kWorkerIdBytes - 1));
  }
  if (w.memory_kind > static_cast<uint32_t>(MemoryKind::kCuda) || w.digest_algorithm != kPositionalSum) {
    return absl::DataLossError(base::StrCat("pool handshake: memory kind ", w.memory_kind, " and digest algorithm ",
                                            w.digest_algorithm, " are not known"));
  }
  PoolHello hello{std::string(payload.substr(sizeof(w))), w.incarnation, w.layout_fingerprint, w.file_bytes, {}};
  hello.memory.kind = static_cast<MemoryKind>(w.memory_kind);
  hello.memory.allocation_bytes = w.allocation_bytes;
  std::memcpy(hello.memory.device_uuid.data(), w.device_uuid, sizeof(w.device_uuid));
  return hello;
}

}  // namespace agentserve::kvstore
