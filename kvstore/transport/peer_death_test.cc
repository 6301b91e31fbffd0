// The owner is another process, killed with SIGKILL while its pool is read: the reader must not crash, must notice, and
// may still use what was complete.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iostream>

#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

using engine::BlockId;
using engine::Epoch;
using engine::PrefillProgress;
using namespace std::chrono_literals;

constexpr uint32_t kBlocks = 32;
constexpr uint32_t kSealed = 8;    // blocks [0, 8): sealed once, content = seed index
constexpr uint32_t kChurning = 8;  // block 8: reused without pause

// Body of the owner process: `--owner socket incarnation`. Prints "ready PORT TAG" and works until it is killed.
int OwnerMain(const std::string& socket, uint64_t incarnation) {
  auto pool = *KvPool::Create({TinyLayout(), kBlocks, 4, incarnation, "prefill-0", false});
  auto exporter = PoolExporter::Start(pool.get(), {socket, 4});
  AS_CHECK(exporter.ok()) << exporter.status().message();
  TransferService service(pool.get());
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  for (uint32_t b = 0; b < kSealed; ++b) {
    pool->SetBlockEpoch(BlockId(b), Epoch(1));
    FillRandom(pool->view(), b, b);
    pool->SealBlock(BlockId(b), 16);
  }
  const ProgressRef progress = *pool->AcquireProgress();
  pool->StoreProgress(progress, {0, 128, 1});
  std::cout << "ready " << port << " " << progress.tag << std::endl;
  for (uint32_t epoch = 1;; ++epoch) {
    pool->SetBlockEpoch(BlockId(kChurning), Epoch(epoch));
    FillRandom(pool->view(), kChurning, epoch);
    pool->SealBlock(BlockId(kChurning), 16);
  }
}

// Starts, and kills, the owner.
class OwnerProcess {
 public:
  OwnerProcess(const std::string& socket, uint64_t incarnation) : socket_(socket), incarnation_(incarnation) {
    int out[2];
    AS_CHECK_EQ(pipe(out), 0);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // a killed test leaves no owner behind
      dup2(out[1], STDOUT_FILENO);
      close(out[0]);
      close(out[1]);
      execl("/proc/self/exe", "owner", "--owner", socket.c_str(), std::to_string(incarnation).c_str(), nullptr);
      _exit(127);
    }
    close(out[1]);
    FILE* in = fdopen(out[0], "r");
    int port = 0;
    unsigned long long tag = 0;
    AS_CHECK_EQ(fscanf(in, "ready %d %llu", &port, &tag), 2) << "the owner process did not start";
    fclose(in);
    address_ = base::StrCat("127.0.0.1:", port);
    tag_ = tag;
  }
  ~OwnerProcess() { Kill(); }

  void Kill() {
    if (pid_ <= 0) return;
    AS_CHECK_EQ(kill(pid_, SIGKILL), 0);
    int status = 0;
    AS_CHECK_EQ(waitpid(pid_, &status, 0), pid_);
    AS_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the kill did not take effect";
    pid_ = -1;
  }
  PeerEndpoint endpoint() const {
    return {"prefill-0", incarnation_, socket_, address_, TinyLayout().Fingerprint(), kBlocks};
  }
  uint64_t tag() const { return tag_; }

 private:
  const std::string socket_;
  const uint64_t incarnation_;
  pid_t pid_ = -1;
  std::string address_;
  uint64_t tag_ = 0;
};

std::vector<BlockRef> SealedRefs() {
  std::vector<BlockRef> refs;
  LocalPool expected(TinyLayout(), 1);
  for (uint32_t b = 0; b < kSealed; ++b) {
    FillRandom(expected.view(), 0, b);
    refs.push_back({b, 1, 16, BlockDigest(TinyLayout(), expected.view().Block(0), 16)});
  }
  return refs;
}

class PeerDeathTest : public testing::TestWithParam<TransportMode> {
 protected:
  std::unique_ptr<PeerPool> Connect(const PeerEndpoint& e) {
    auto peer = PeerPool::Connect(e, {.layout = TinyLayout(), .mode = GetParam(), .read_timeout_ms = 3000});
    AS_CHECK(peer.ok()) << peer.status().message();
    return *std::move(peer);
  }
  TempDir dir_;
  const std::string socket_ = dir_.path() + "/kv.sock";
};
INSTANTIATE_TEST_SUITE_P(Transport, PeerDeathTest, testing::Values(TransportMode::kMapped, TransportMode::kStream),
                         [](const auto& param) { return param.param == TransportMode::kMapped ? "Mapped" : "Stream"; });

TEST_P(PeerDeathTest, KilledWhileItsPoolIsCopied) {
  OwnerProcess owner(socket_, 7);
  auto peer = Connect(owner.endpoint());
  const std::vector<BlockRef> refs = SealedRefs();
  LocalPool local(TinyLayout(), kSealed);
  ASSERT_TRUE(peer->ReadBlocks(refs, local.view(), BlockIds(0, kSealed)).ok());
  ASSERT_TRUE(peer->Validate(refs, local.view(), BlockIds(0, kSealed)).ok());

  std::atomic<bool> stop{false};
  std::atomic<uint64_t> copies{0}, failures{0};
  std::thread reader([&] {
    LocalPool mine(TinyLayout(), kSealed + 1);
    std::vector<BlockRef> all = refs;
    all.push_back({kChurning, 1, 16, 1});
    while (!stop) {
      // The mapped path copies whatever is there; the stream path may say that the churning block was reused.
      (peer->ReadBlocks(all, mine.view(), BlockIds(0, kSealed + 1)).ok() ? copies : failures).fetch_add(1);
    }
  });
  std::this_thread::sleep_for(50ms);
  owner.Kill();
  const uint64_t at_kill = copies + failures;
  std::this_thread::sleep_for(50ms);
  stop = true;
  reader.join();
  EXPECT_GT(at_kill, 0u);

  const auto begin = std::chrono::steady_clock::now();
  while (peer->PeerAlive() && std::chrono::steady_clock::now() - begin < 2s) std::this_thread::sleep_for(1ms);
  EXPECT_FALSE(peer->PeerAlive());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 1s);

  LocalPool after(TinyLayout(), kSealed);
  const absl::Status read = peer->ReadBlocks(refs, after.view(), BlockIds(0, kSealed));
  if (GetParam() == TransportMode::kMapped) {
    // What was sealed is still there, and is proved to be right.
    ASSERT_TRUE(read.ok());
    EXPECT_TRUE(peer->Validate(refs, after.view(), BlockIds(0, kSealed)).ok());
  } else {
    EXPECT_EQ(read.code(), absl::StatusCode::kUnavailable) << read.message();
    // What was copied before stays valid.
    EXPECT_TRUE(peer->Validate(refs, local.view(), BlockIds(0, kSealed)).ok());
  }
}

TEST_P(PeerDeathTest, WaitingForProgressEndsSoon) {
  OwnerProcess owner(socket_, 7);
  auto peer = Connect(owner.endpoint());
  const auto first = peer->WaitProgress(0, owner.tag(), {}, 2s);
  // Slot numbers are the owner's choice; the first one acquired is slot 0.
  ASSERT_TRUE(first.ok()) << first.status().message();
  EXPECT_EQ(*first, (PrefillProgress{0, 128, 1}));
  std::thread killer([&] {
    std::this_thread::sleep_for(50ms);
    owner.Kill();
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(peer->WaitProgress(0, owner.tag(), *first, 10s).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 1s);
  killer.join();
}

TEST_P(PeerDeathTest, RestartOnTheSameSocketIsAnotherProcess) {
  OwnerProcess owner(socket_, 7);
  const PeerEndpoint old = owner.endpoint();
  auto peer = Connect(old);
  owner.Kill();
  const PeerOptions options{.layout = TinyLayout(), .mode = GetParam(), .connect_timeout_ms = 300};
  EXPECT_EQ(PeerPool::Connect(old, options).status().code(), absl::StatusCode::kUnavailable);
  OwnerProcess next(socket_, 8);
  PeerEndpoint mixed = next.endpoint();
  mixed.incarnation = 7;
  EXPECT_EQ(PeerPool::Connect(mixed, options).status().code(), absl::StatusCode::kFailedPrecondition);
  auto fresh = Connect(next.endpoint());
  LocalPool local(TinyLayout(), kSealed);
  const std::vector<BlockRef> refs = SealedRefs();
  ASSERT_TRUE(fresh->ReadBlocks(refs, local.view(), BlockIds(0, kSealed)).ok());
  EXPECT_TRUE(fresh->Validate(refs, local.view(), BlockIds(0, kSealed)).ok());
  EXPECT_FALSE(peer->PeerAlive());
}

// Many times over: whatever validates after the kill is the content of exactly one epoch, never a torn block.
TEST(PeerDeathSweep, TornBlocksNeverValidate) {
  TempDir dir;
  int torn = 0, whole = 0;
  for (uint64_t round = 0; round < 20; ++round) {
    OwnerProcess owner(dir.path() + "/kv.sock", 100 + round);
    auto peer =
        PeerPool::Connect(owner.endpoint(), {.layout = TinyLayout(), .mode = TransportMode::kMapped, .probe_ms = 0});
    ASSERT_TRUE(peer.ok()) << peer.status().message();
    std::this_thread::sleep_for(std::chrono::microseconds(137 * round));
    owner.Kill();
    LocalPool local(TinyLayout(), 1), expected(TinyLayout(), 1);
    // The block was killed in some epoch; only that epoch's full content may pass.
    int valid = 0;
    for (uint32_t epoch = 1; epoch < 3000; ++epoch) {
      const BlockRef unknown{kChurning, epoch, 16, 1};
      ASSERT_TRUE((*peer)->ReadBlocks({&unknown, 1}, local.view(), BlockIds(0, 1)).ok());
      const ValidateResult v = (*peer)->Validate({&unknown, 1}, local.view(), BlockIds(0, 1));
      if (v.outcome == ReadOutcome::kStaleEpoch) continue;
      FillRandom(expected.view(), 0, epoch);
      const BlockRef ref{kChurning, epoch, 16, BlockDigest(TinyLayout(), expected.view().Block(0), 16)};
      const bool same = std::memcmp(local.view().Block(0), expected.view().Block(0), TinyLayout().BlockBytes()) == 0;
      EXPECT_EQ((*peer)->Validate({&ref, 1}, local.view(), BlockIds(0, 1)).ok(), same);
      ++valid;
      (same ? whole : torn)++;
    }
    EXPECT_LE(valid, 1) << "a block has one epoch";
  }
  RecordProperty("torn", torn);
  RecordProperty("whole", whole);
}

}  // namespace
}  // namespace agentserve::kvstore

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--owner") {
    return agentserve::kvstore::OwnerMain(argv[2], std::stoull(argv[3]));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
