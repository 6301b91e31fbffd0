// Random operation sequences against a small reference model, with restarts, repeated and late messages, and virtual
// time. Also: a watcher that replays the log over a snapshot taken in parts always ends with the truth.
//
// AGENTSERVE_SEED=n replays one sequence; AGENTSERVE_SEEDS=n runs more of them.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/core/core_test_util.h"
#include "kvstore/core/kv_store_core.h"
#include "kvstore/core/mirror_table.h"
#include "kvstore/core/reference_model.h"

namespace agentserve::kvstore {
namespace {

constexpr TimeNs kMs = base::kNsPerMs;

// Follows the core as a router does: snapshot in parts, then the log; starts over when it fell behind.
class Watcher {
 public:
  void Step(const KvStoreCore& core, base::SplitMix64* rng) {
    if (!started_) {
      table_.Clear();
      cursor_ = {};
      started_ = true;
      sequence_ = core.log().last_sequence();
    }
    if (!cursor_.done) {
      const SnapshotPart part = core.Snapshot(&cursor_, 1 + rng->Below(4));
      for (const SealedBlock& b : part.sealed) table_.Seal(*part.pool, b);
      return;
    }
    const auto changes = core.log().Read(sequence_, 1 + rng->Below(8));
    if (!changes.ok()) {
      started_ = false;
      ++restarts_;
      return;
    }
    for (const Change& c : *changes) {
      EXPECT_EQ(c.sequence, sequence_ + 1);
      sequence_ = c.sequence;
      if (c.kind == Change::Kind::kSealed) table_.Seal(*c.pool, c.block);
      if (c.kind == Change::Kind::kDropped) table_.Drop(*c.pool, c.block.ref);
      if (c.kind == Change::Kind::kPoolGone) table_.PoolGone(*c.pool);
    }
  }
  bool CaughtUp(const KvStoreCore& core) const {
    return started_ && cursor_.done && sequence_ == core.log().last_sequence();
  }
  std::set<std::string> Truth() const {
    std::set<std::string> all;
    for (const auto& [pool, b] : table_.All()) all.insert(Model::Line(pool.worker_id, pool.incarnation, b));
    return all;
  }
  const MirrorTable& table() const { return table_; }

 private:
  bool started_ = false;
  SnapshotCursor cursor_;
  uint64_t sequence_ = 0;
  int restarts_ = 0;
  MirrorTable table_;
};

// A worker as seen from the network: it restarts, and its messages are repeated and delayed.
struct Worker {
  std::string id;
  uint64_t incarnation = 1;
  std::map<uint32_t, uint32_t> epochs;  // by block
};

class Scenario {
 public:
  explicit Scenario(uint64_t seed) : rng_(seed), limits_(Limits()), core_(limits_), model_(limits_) {
    for (int i = 0; i < 4; ++i) workers_.push_back({base::StrCat("w", i), 1, {}});
  }

  void Execute(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) {
      Step();
      core_.CheckInvariants(now_);
      for (Watcher& w : watchers_) {
        if (rng_.Below(3) == 0) w.Step(core_, &rng_);
        if (w.CaughtUp(core_)) {
          ASSERT_EQ(w.Truth(), model_.Truth()) << "step " << i;
          ++compared_;
        }
      }
      if (rng_.Below(4) == 0) CompareLocate();
    }
    EXPECT_GT(compared_, 0);
  }

 private:
  static CoreLimits Limits() {
    CoreLimits l;
    l.max_pools = 3;  // of four workers
    l.max_log = 40;   // so that watchers do fall behind
    l.lease = 100 * kMs;
    l.default_ticket_ttl = 50 * kMs;
    l.max_ticket_ttl = 80 * kMs;
    return l;
  }

  struct Message {
    PoolIdent pool;
    std::vector<SealedBlock> sealed;
    std::vector<BlockRef> dropped;
  };

  void Send(const Message& m) {
    const auto got = core_.Publish(m.pool, m.sealed, m.dropped, now_);
    ASSERT_EQ(got.ok(), model_.Live(m.pool)) << got.status().message();
    if (!got.ok()) return;
    for (const auto& b : m.sealed) model_.Seal(m.pool, b);
    for (const auto& b : m.dropped) model_.DropBlock(m.pool, b);
    model_.Extend(m.pool, now_);
  }

  void PublishSome(Worker& w) {
    Message m{{w.id, w.incarnation}, {}, {}};
    for (uint64_t n = 1 + rng_.Below(3); n > 0; --n) {
      const auto index = static_cast<uint32_t>(rng_.Below(8));
      if (rng_.Below(3) == 0) {
        m.dropped.push_back(Dropped(index, w.epochs[index]));
      } else {
        m.sealed.push_back(Sealed(index, ++w.epochs[index], rng_.Below(12)));
      }
    }
    if (rng_.Below(4) != 0) Send(m);  // else it is delayed
    sent_.push_back(m);
    if (sent_.size() > 32) sent_.erase(sent_.begin());
  }

  void OpenOne(const Worker& w) {
    TicketRequest r{{"r", 1}, {w.id, w.incarnation}, {Dropped(static_cast<uint32_t>(rng_.Below(8)), 0xffff)}, 0, ""};
    r.ttl = static_cast<TimeNs>(rng_.Below(200)) * kMs;
    if (rng_.Below(2) == 0) r.idempotency_key = base::StrCat("k", ++keys_);
    const Hash128 id{rng_.Next(), rng_.Next()};
    const auto got = core_.OpenTicket(r, id, now_);
    ASSERT_EQ(got.ok(), model_.Live(r.owner)) << got.status().message();
    if (!got.ok()) return;
    ASSERT_EQ(got->ticket, id);
    ASSERT_EQ(got->ttl, r.ttl == 0 ? limits_.default_ticket_ttl : std::min(r.ttl, limits_.max_ticket_ttl));
    model_.Open(r, id, now_ + got->ttl);
    tickets_.push_back(id);
    if (!r.idempotency_key.empty()) {
      ASSERT_EQ(core_.OpenTicket(r, H(rng_.Next()), now_)->ticket, id);
    }
  }

  void Step() {
    Worker& w = workers_[rng_.Below(workers_.size())];
    const PoolIdent ident{w.id, w.incarnation};
    switch (rng_.Below(16)) {
      case 0: {  // restart
        ++w.incarnation;
        w.epochs.clear();
        break;
      }
      case 1:
      case 2: {  // register: the present incarnation, or a late message of an old one
        const uint64_t incarnation = rng_.Below(5) == 0 && w.incarnation > 1 ? w.incarnation - 1 : w.incarnation;
        ASSERT_EQ(core_.RegisterPool(Spec(w.id, incarnation, 8), now_).code(),
                  model_.Register(Spec(w.id, incarnation, 8), now_));
        break;
      }
      case 3: {
        ASSERT_EQ(core_.Renew(ident, now_).ok(), model_.Live(ident));
        if (model_.Live(ident)) model_.Extend(ident, now_);
        break;
      }
      case 4: {
        if (rng_.Below(4) != 0) break;
        core_.Release(ident);
        model_.Release(ident);
        break;
      }
      case 5: {
        now_ += static_cast<TimeNs>(rng_.Below(40)) * kMs;
        core_.Tick(now_);
        model_.Tick(now_);
        ASSERT_EQ(core_.tickets().tickets(), model_.tickets());
        break;
      }
      case 6:
        if (!sent_.empty()) Send(sent_[rng_.Below(sent_.size())]);  // repeated or late
        break;
      case 7:
        OpenOne(w);
        break;
      case 8:
        for (int i = 0; i < 2 && !tickets_.empty(); ++i) {  // closed, expired and repeated alike
          const Hash128 id = tickets_[rng_.Below(tickets_.size())];
          core_.CloseTicket(id);
          model_.Close(id);
        }
        break;
      default:
        PublishSome(w);
    }
  }

  void CompareLocate() {
    const std::vector<Hash128> chain = Chain({rng_.Below(12), rng_.Below(12), rng_.Below(12)});
    auto expected = model_.Locate(chain);
    const auto got = core_.Locate(chain, 16);
    ASSERT_TRUE(got.ok());
    ASSERT_EQ(got->size(), expected.size());
    size_t last = SIZE_MAX;
    for (const Place& p : *got) {
      ASSERT_LE(p.blocks.size(), last);
      last = p.blocks.size();
      ASSERT_EQ(p.blocks.size(), expected[p.pool.worker_id].size());
    }
    for (const Watcher& w : watchers_) {
      if (!w.CaughtUp(core_)) continue;
      const auto matches = w.table().Lookup(chain);
      ASSERT_EQ(matches.size(), got->size());
      for (size_t i = 0; i < matches.size(); ++i) {
        ASSERT_EQ(matches[i].pool.worker_id, (*got)[i].pool.worker_id);
        ASSERT_EQ(matches[i].blocks, (*got)[i].blocks.size());
      }
    }
  }

  base::SplitMix64 rng_;
  const CoreLimits limits_;
  KvStoreCore core_;
  Model model_;
  TimeNs now_ = 1000;
  std::vector<Worker> workers_;
  std::vector<Message> sent_;
  std::vector<Hash128> tickets_;
  std::vector<Watcher> watchers_{3};
  uint64_t keys_ = 0;
  int compared_ = 0;
};

uint64_t Env(const char* name, uint64_t otherwise) {
  const char* v = std::getenv(name);
  return v == nullptr ? otherwise : std::strtoull(v, nullptr, 10);
}

TEST(KvStoreProperty, MatchesTheReferenceModel) {
  const uint64_t first = Env("AGENTSERVE_SEED", 1);
  const uint64_t seeds = std::getenv("AGENTSERVE_SEED") != nullptr ? 1 : Env("AGENTSERVE_SEEDS", 150);
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    SCOPED_TRACE(base::StrCat("replay with AGENTSERVE_SEED=", seed));
    Scenario scenario(seed);
    scenario.Execute(600);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace agentserve::kvstore
