// Operation sequences from bytes against the reference model: three workers, one reader, virtual time. After each
// operation the answers and the state must equal the model's, and all invariants must hold.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kvstore/core/core_test_util.h"
#include "kvstore/core/kv_store_core.h"
#include "kvstore/core/mirror_table.h"
#include "kvstore/core/reference_model.h"

namespace agentserve::kvstore {
namespace {

constexpr TimeNs kMs = base::kNsPerMs;
constexpr uint32_t kBlocks = 4;

// Takes bytes until they end; then zeros.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t Next() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

CoreLimits Limits() {
  CoreLimits l;
  l.max_pools = 2;
  l.max_log = 16;
  l.max_tickets = 8;
  l.max_tickets_per_reader = 4;
  l.lease = 50 * kMs;
  l.max_ticket_ttl = 40 * kMs;
  return l;
}

// One fuzzed life of a kvstore.
class Life {
 public:
  Life() : core_(Limits()), model_(Limits()) {}

  void Step(Bytes* in) {
    const uint8_t op = in->Next();
    const PoolIdent pool{std::string(1, static_cast<char>('a' + op / 64 % 3)), uint64_t{1} + in->Next() % 3};
    switch (op % 8) {
      case 0:
        AS_CHECK_EQ(static_cast<int>(core_.RegisterPool(Spec(pool.worker_id, pool.incarnation, kBlocks), now_).code()),
                    static_cast<int>(model_.Register(Spec(pool.worker_id, pool.incarnation, kBlocks), now_)));
        break;
      case 1:
        AS_CHECK_EQ(core_.Renew(pool, now_).ok(), model_.Live(pool));
        if (model_.Live(pool)) model_.Extend(pool, now_);
        break;
      case 2:
        core_.Release(pool);
        model_.Release(pool);
        break;
      case 3:
        now_ += in->Next() % 32 * kMs;
        core_.Tick(now_);
        model_.Tick(now_);
        break;
      case 4:
      case 5:
        Publish(pool, op % 8 == 5, in);
        break;
      case 6:
        Ticket(pool, in);
        break;
      default:
        core_.CloseTicket(H(in->Next()));
    }
    core_.CheckInvariants(now_);
    AS_CHECK(Truth() == model_.Truth());
  }

 private:
  void Publish(const PoolIdent& pool, bool drop, Bytes* in) {
    const uint32_t index = in->Next() % (kBlocks + 1), epoch = in->Next() % 8;
    SealedBlock block = Sealed(index, epoch, in->Next() % 8);
    block.ref.tokens = in->Next() % 18;
    const std::vector<SealedBlock> sealed = drop ? std::vector<SealedBlock>() : std::vector<SealedBlock>{block};
    const std::vector<BlockRef> dropped = drop ? std::vector<BlockRef>{block.ref} : std::vector<BlockRef>();
    const auto got = core_.Publish(pool, sealed, dropped, now_);
    const bool valid = index < kBlocks && (drop || (block.ref.tokens >= 1 && block.ref.tokens <= 16));
    AS_CHECK_EQ(got.ok(), model_.Live(pool) && valid);
    if (!got.ok()) return;
    if (drop) model_.DropBlock(pool, block.ref);
    if (!drop) model_.Seal(pool, block);
    model_.Extend(pool, now_);
  }
  void Ticket(const PoolIdent& pool, Bytes* in) {
    const TicketRequest r{{"r", in->Next()},
                          pool,
                          {{in->Next() % (kBlocks + 1u), in->Next(), 1, 1}},
                          in->Next() * kMs,
                          in->Next() % 2 == 0 ? "" : std::string(1, static_cast<char>(in->Next()))};
    const auto got = core_.OpenTicket(r, H(in->Next()), now_);
    if (got.ok()) AS_CHECK(model_.Live(pool)) << "a ticket on a dead pool";
    AS_CHECK_LE(core_.tickets().tickets(), 4u);
  }
  // What a watcher that takes a snapshot now would know.
  std::set<std::string> Truth() const {
    MirrorTable mirror;
    SnapshotCursor cursor;
    while (!cursor.done) {
      const SnapshotPart part = core_.Snapshot(&cursor, 2);
      for (const SealedBlock& b : part.sealed) mirror.Seal(*part.pool, b);
    }
    std::set<std::string> all;
    for (const auto& [pool, b] : mirror.All()) all.insert(Model::Line(pool.worker_id, pool.incarnation, b));
    return all;
  }

  KvStoreCore core_;
  Model model_;
  TimeNs now_ = 1000;
};

}  // namespace
}  // namespace agentserve::kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  agentserve::kvstore::Bytes in(data, size);
  agentserve::kvstore::Life life;
  for (int i = 0; i < 256 && !in.empty(); ++i) life.Step(&in);
  return 0;
}
