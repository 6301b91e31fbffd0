// Scenarios of the router core, message by message.
#include "router/core/router_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/block_hash.h"

namespace agentserve::router {
namespace {

using ::testing::HasSubstr;

constexpr TimeNs kMs = base::kNsPerMs;
constexpr TimeNs kSecond = base::kNsPerSecond;

class CoreTest : public ::testing::Test {
 protected:
  void Make(std::function<void(CoreConfig*)> tweak = nullptr) {
    CoreConfig c;
    c.prefill_threshold = 32;
    c.expected_output_tokens = 16;
    c.end_tokens = {1};
    if (tweak) tweak(&c);
    core_ = std::make_unique<RouterCore>(c, now_);
  }
  Effects Take() {
    core_->CheckInvariants();
    Effects e;
    core_->TakeEffects(&e);
    return e;
  }
  WorkerInfo Info(const std::string& name, uint64_t incarnation = 1) {
    WorkerInfo w;
    w.name = name;
    w.incarnation = incarnation;
    w.role = name[0] == 'p' ? Role::kPrefill : Role::kDecode;
    w.address = "a:1";
    w.model_id = "m";
    w.model_fingerprint = "f";
    w.layout_fingerprint = 7;
    w.block_tokens = 16;
    w.num_blocks = 100;
    w.context_length = 4096;
    w.max_batch = 4;
    return w;
  }
  WorkerId Add(const std::string& name, uint64_t incarnation = 1, uint32_t max_batch = 4) {
    WorkerInfo info = Info(name, incarnation);
    info.max_batch = max_batch;
    const auto id = core_->RegisterWorker(info, now_);
    EXPECT_TRUE(id.ok()) << std::string(id.status().message());
    core_->OnLinkUp(*id, now_);
    return *id;
  }
  Submission Sub(size_t prompt, uint32_t max_tokens = 50) {
    Submission s;
    s.request_id = "r" + std::to_string(++subs_);
    auto tokens = std::make_shared<std::vector<TokenId>>();
    for (size_t i = 0; i < prompt; ++i) tokens->push_back(static_cast<TokenId>(10 + subs_ * 1000 + i));
    s.prompt = tokens;
    s.block_tokens = 16;
    engine::ExtendChain(s.chain_root, *tokens, 16, &s.chain);
    s.digest = {subs_, 1};
    s.sampling.max_tokens = max_tokens;
    s.arrival = now_;
    s.deadline = now_ + 100 * kSecond;
    s.bytes = 100;
    return s;
  }
  RequestKey Submit(Submission s) {
    const SubmitResult r = core_->Submit(std::move(s), now_);
    EXPECT_TRUE(r.ok()) << r.message;
    return r.key;
  }
  void Token(WorkerId w, SeqId seq, uint32_t attempt, TokenId token, FinishReason finish = FinishReason::kNone) {
    core_->OnStep(w, ++step_, {{seq, attempt, token, nullptr, finish}}, now_);
  }
  static std::vector<CommandKind> Kinds(const Effects& e) {
    std::vector<CommandKind> kinds;
    for (const Command& c : e.commands) kinds.push_back(c.kind);
    return kinds;
  }
  using K = CommandKind;

  TimeNs now_ = 5 * kSecond;
  std::unique_ptr<RouterCore> core_;
  uint64_t subs_ = 0, step_ = 0;
};

TEST_F(CoreTest, DisaggregatedRequestFromBeginToEnd) {
  Make();
  const WorkerId d = Add("d0"), p = Add("p0");
  Effects e = Take();
  ASSERT_EQ(Kinds(e), std::vector{K::kConnectPeer});
  EXPECT_EQ(e.commands[0].worker, d);
  core_->OnPeerConnected(d, "p0", 1, true, now_);
  const RequestKey key = Submit(Sub(100));
  e = Take();
  ASSERT_EQ(Kinds(e), std::vector{K::kReserve});
  const SeqId seq = e.commands[0].seq;
  EXPECT_EQ(e.commands[0].attempt, 1u);
  EXPECT_EQ(e.commands[0].spec->tokens.size(), 100u);
  core_->OnReserved(d, seq, 1, 0, now_);
  e = Take();
  ASSERT_EQ(Kinds(e), std::vector{K::kStart});
  EXPECT_EQ(e.commands[0].worker, p);
  auto kv = std::make_shared<Opaque>();
  core_->OnAdmitted(p, seq, 1, kv, 16, now_);
  e = Take();
  ASSERT_EQ(Kinds(e), std::vector{K::kAttach});
  EXPECT_EQ(e.commands[0].kv, kv);
  now_ += 7 * kMs;
  core_->OnFirstToken(p, seq, 1, {42, nullptr, kv, 1, 6}, now_);
  e = Take();
  ASSERT_EQ(Kinds(e), std::vector{K::kAdmit}) << "the token goes out at once, the transfer goes on";
  EXPECT_EQ(e.commands[0].first_token, 42u);
  ASSERT_EQ(e.tokens.size(), 1u);
  EXPECT_EQ(e.tokens[0].token, 42u);
  core_->OnKvReady(d, seq, 1, {1000, "mapped", 2, 0.5}, now_);
  EXPECT_EQ(Kinds(Take()), std::vector{K::kReleaseKv});
  Token(d, seq, 1, 43);
  Token(d, seq, 1, 1, FinishReason::kStop);
  e = Take();
  ASSERT_EQ(e.tokens.size(), 2u);
  EXPECT_EQ(e.tokens[1].finish, FinishReason::kStop);
  EXPECT_TRUE(e.request_ends.empty());
  core_->OnFinished(d, seq, 1, {2, 0, 0, 0, 0, 1, 2}, now_);
  e = Take();
  ASSERT_EQ(e.request_ends.size(), 1u);
  const RequestDone& done = e.request_ends[0];
  EXPECT_EQ(done.request, key);
  EXPECT_EQ(done.completion_tokens, 3u);
  EXPECT_EQ(done.cached_tokens, 16u);
  EXPECT_EQ(done.timeline.ttft_ms, 7);
  EXPECT_EQ(done.timeline.transfer_path, "mapped");
  EXPECT_EQ(done.timeline.prefill_worker, "p0");
  EXPECT_EQ(done.timeline.decode_worker, "d0");
  core_->OnFinished(d, seq, 1, {}, now_);  // repeated: ignored
  EXPECT_TRUE(Take().empty());
  EXPECT_EQ(core_->stats().late_messages, 1u);
}

TEST_F(CoreTest, FirstTokenThatEndsNeedsNoDecode) {
  Make();
  const WorkerId d = Add("d0"), p = Add("p0");
  core_->OnPeerConnected(d, "p0", 1, true, now_);
  Take();
  Submit(Sub(100));
  const SeqId seq = Take().commands[0].seq;
  core_->OnReserved(d, seq, 1, 0, now_);
  core_->OnFirstToken(p, seq, 1, {1, nullptr, nullptr, 0, 0}, now_);
  const Effects e = Take();
  EXPECT_THAT(Kinds(e), ::testing::ElementsAre(K::kStart, K::kReleaseKv, K::kCancel));
  ASSERT_EQ(e.sequence_ends.size(), 1u);
  EXPECT_EQ(e.sequence_ends[0].reason, FinishReason::kStop);
  EXPECT_EQ(e.request_ends.size(), 1u);
}

TEST_F(CoreTest, ShortOrCachedPromptsArePrefilledLocally) {
  Make();
  const WorkerId d = Add("d0");
  Add("p0");
  core_->OnPeerConnected(d, "p0", 1, true, now_);
  Take();
  Submit(Sub(31));
  EXPECT_THAT(Kinds(Take()), ::testing::ElementsAre(K::kReserve, K::kPrefillLocal));
  // The decode worker says that it has nearly all of it: no hand-off.
  Submit(Sub(100));
  const SeqId seq = Take().commands[0].seq;
  core_->OnReserved(d, seq, 1, 80, now_);
  EXPECT_EQ(Kinds(Take()), std::vector{K::kPrefillLocal});
  // An idle decode worker does not wait for a busy prefill worker.
  Submit(Sub(100));
  EXPECT_EQ(Kinds(Take()), std::vector{K::kReserve});
}

TEST_F(CoreTest, PrefillDeathFallsBackToTheDecodeWorker) {
  Make();
  const WorkerId d = Add("d0"), p = Add("p0");
  core_->OnPeerConnected(d, "p0", 1, true, now_);
  Take();
  Submit(Sub(100));
  const SeqId seq = Take().commands[0].seq;
  core_->OnReserved(d, seq, 1, 0, now_);
  core_->OnAdmitted(p, seq, 1, std::make_shared<Opaque>(), 0, now_);
  Take();
  core_->OnLinkDown(p, now_);
  const Effects e = Take();
  ASSERT_EQ(Kinds(e), std::vector{K::kPrefillLocal});
  EXPECT_EQ(e.commands[0].attempt, 1u) << "the reserved blocks stay";
  core_->OnFirstToken(p, seq, 1, {42, nullptr, nullptr, 0, 0}, now_);  // from beyond the grave
  EXPECT_TRUE(Take().empty());
  Token(d, seq, 1, 42);
  EXPECT_EQ(Take().tokens.size(), 1u);
}

TEST_F(CoreTest, DecodeDeathResumesFromCommittedTokens) {
  Make();
  const WorkerId d0 = Add("d0"), d1 = Add("d1");
  Take();
  Submit(Sub(10));
  Effects e = Take();
  const SeqId seq = e.commands[0].seq;
  const WorkerId first = e.commands[0].worker, second = first == d0 ? d1 : d0;
  Token(first, seq, 1, 50);
  Token(first, seq, 1, 51);
  Take();
  core_->OnLinkDown(first, now_);
  e = Take();
  ASSERT_THAT(Kinds(e), ::testing::ElementsAre(K::kReserve, K::kPrefillLocal));
  EXPECT_EQ(e.commands[0].worker, second);
  EXPECT_EQ(e.commands[0].attempt, 2u);
  EXPECT_EQ(e.commands[0].spec->tokens.size(), 12u);
  EXPECT_EQ(e.commands[0].spec->tokens.back(), 51u);
  EXPECT_EQ(e.commands[0].spec->prompt_tokens, 10u);
  step_ = 0;
  Token(second, seq, 1, 99);  // an answer to the old attempt
  EXPECT_TRUE(Take().tokens.empty());
  Token(second, seq, 2, 52);
  EXPECT_EQ(Take().tokens.size(), 1u);
}

TEST_F(CoreTest, SecondCrashIsPoisonAndItsLikeIsRefused) {
  Make();
  WorkerId d = Add("d0");
  Take();
  Submission s = Sub(10);
  const base::Hash128 digest = s.digest;
  Submit(std::move(s));
  core_->OnLinkDown(d, now_);
  Take();
  d = Add("d0", 2);
  EXPECT_THAT(Kinds(Take()), ::testing::ElementsAre(K::kReserve, K::kPrefillLocal));
  core_->OnLinkDown(d, now_);
  const Effects e = Take();
  ASSERT_EQ(e.request_ends.size(), 1u);
  EXPECT_EQ(e.request_ends[0].reason, EndReason::kPoison);
  s = Sub(10);
  s.digest = digest;
  EXPECT_EQ(core_->Submit(s, now_).refused, EndReason::kPoison);
  now_ += core_->config().poison_ttl + kSecond;
  s.deadline = now_ + kSecond;
  s.arrival = now_;
  Add("d0", 3);
  EXPECT_TRUE(core_->Submit(s, now_).ok()) << "for a while only";
}

TEST_F(CoreTest, DrainingWorkersDeathIsNoCrash) {
  Make();
  WorkerId d = Add("d0");
  Submit(Sub(10));
  Take();
  for (uint64_t incarnation = 2; incarnation < 5; ++incarnation) {
    WorkerInfo info = Info("d0", incarnation - 1);
    info.draining = true;
    ASSERT_TRUE(core_->RegisterWorker(info, now_).ok());
    core_->OnLinkDown(d, now_);
    d = Add("d0", incarnation);
    EXPECT_TRUE(Take().request_ends.empty());
  }
}

TEST_F(CoreTest, LeaseEndsSilentWorkersAndOldIncarnationsStayOut) {
  Make();
  const WorkerId d = Add("d0", 1);
  Take();
  ASSERT_TRUE(core_->RegisterWorker(Info("d0", 2), now_).ok());
  Effects e = Take();
  ASSERT_EQ(e.links.size(), 2u);
  EXPECT_FALSE(e.links[0].open);
  EXPECT_EQ(e.links[0].worker, d);
  EXPECT_TRUE(e.links[1].open);
  const auto zombie = core_->RegisterWorker(Info("d0", 1), now_);
  EXPECT_EQ(zombie.status().code(), absl::StatusCode::kFailedPrecondition);
  now_ += core_->config().lease + 1;
  core_->Tick(now_);
  e = Take();
  ASSERT_EQ(e.links.size(), 1u);
  EXPECT_FALSE(e.links[0].open);
  EXPECT_TRUE(core_->workers().all().empty());
}

TEST_F(CoreTest, OtherModelsAreRefusedUntilTheOldOneIsGone) {
  Make();
  Add("d0");
  WorkerInfo other = Info("d1");
  other.model_fingerprint = "g";
  auto s = core_->RegisterWorker(other, now_).status();
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(s.message()), ::testing::AllOf(HasSubstr("fingerprint g"), HasSubstr("fingerprint f")));
  now_ += 10 * kSecond;
  core_->Tick(now_);
  EXPECT_TRUE(core_->RegisterWorker(other, now_).ok());
}

TEST_F(CoreTest, QueueBoundsAndTimeouts) {
  Make([](CoreConfig* c) {
    c->max_queued = 3;
    c->max_queued_tokens = 1000;
    c->max_queue_wait = 2 * kSecond;
    c->no_worker_grace = 1000 * kSecond;
  });
  Submit(Sub(10));
  Submission big = Sub(995);
  EXPECT_EQ(core_->Submit(big, now_).refused, EndReason::kQueueFull);
  Submission three = Sub(10);
  three.n = 3;
  EXPECT_EQ(core_->Submit(three, now_).refused, EndReason::kQueueFull);
  Submission hasty = Sub(10);
  hasty.deadline = now_ + kSecond;
  Submit(hasty);
  EXPECT_EQ(core_->NextWake(), now_ + kSecond);
  now_ += kSecond;
  core_->Tick(now_);
  Effects e = Take();
  ASSERT_EQ(e.request_ends.size(), 1u);
  EXPECT_EQ(e.request_ends[0].reason, EndReason::kQueueTimeout) << "it never reached a worker";
  now_ += kSecond;
  core_->Tick(now_);
  e = Take();
  ASSERT_EQ(e.request_ends.size(), 1u);
  EXPECT_EQ(e.request_ends[0].reason, EndReason::kQueueTimeout);
  EXPECT_GT(e.request_ends[0].retry_after, 0);
}

TEST_F(CoreTest, DeadlineWhileDecodingStopsTheWorker) {
  Make();
  Add("d0");
  Take();
  Submission s = Sub(10);
  s.deadline = now_ + kSecond;
  Submit(s);
  Take();
  now_ += kSecond;
  core_->RegisterWorker(Info("d0"), now_).status().IgnoreError();
  core_->Tick(now_);
  const Effects e = Take();
  EXPECT_EQ(Kinds(e), std::vector{K::kCancel});
  ASSERT_EQ(e.request_ends.size(), 1u);
  EXPECT_EQ(e.request_ends[0].reason, EndReason::kDeadline);
}

TEST_F(CoreTest, NoWorkersEndsTheWaitAfterItsGrace) {
  Make();
  Submit(Sub(10));
  now_ += core_->config().no_worker_grace;
  core_->Tick(now_);
  const Effects e = Take();
  ASSERT_EQ(e.request_ends.size(), 1u);
  EXPECT_EQ(e.request_ends[0].reason, EndReason::kNoWorkers);
  now_ += 1;
  EXPECT_EQ(core_->Submit(Sub(10), now_).refused, EndReason::kNoWorkers);
}

TEST_F(CoreTest, ProgramsStickToTheWorkerThatHasTheirBlocks) {
  Make();
  const WorkerId d0 = Add("d0"), d1 = Add("d1");
  Take();
  Submission turn1 = Sub(64);
  turn1.agent.program_id = "p";
  Submit(turn1);
  Effects e = Take();
  const WorkerId home = e.commands[0].worker;
  const SeqId seq = e.commands[0].seq;
  Token(home, seq, 1, 50);
  Token(home, seq, 1, 1, FinishReason::kStop);
  core_->OnFinished(home, seq, 1, {}, now_);
  EXPECT_THAT(Kinds(Take()), ::testing::ElementsAre(K::kRetain));
  // Work elsewhere does not draw it away: its prompt is nearly all cached at home.
  Submit(Sub(64));
  Submit(Sub(64));
  Take();
  Submission turn2 = turn1;
  auto longer = std::make_shared<std::vector<TokenId>>(*turn1.prompt);
  for (TokenId t : {50u, 7u, 8u, 9u}) longer->push_back(t);
  turn2.prompt = longer;
  Submit(turn2);
  e = Take();
  EXPECT_EQ(e.commands[0].worker, home);
  (void)d0;
  (void)d1;
}

TEST_F(CoreTest, LoadSpreadsOverWorkers) {
  Make();
  const WorkerId d0 = Add("d0"), d1 = Add("d1");
  Take();
  std::map<WorkerId, int> placed;
  for (int i = 0; i < 8; ++i) {
    Submit(Sub(10));
    ++placed[Take().commands[0].worker];
  }
  EXPECT_EQ(placed[d0], 4);
  EXPECT_EQ(placed[d1], 4);
  Submit(Sub(10));
  EXPECT_TRUE(Take().empty()) << "both batches are full";
  EXPECT_EQ(core_->queued_sequences(), 1u);
}

TEST_F(CoreTest, AdmissionCountsBlocks) {
  Make();
  const WorkerId d = Add("d0", 1, 64);
  core_->OnLoad(d, {0, 0, 0, 100, 100, 0, 0, 0}, now_);
  Take();
  int placed = 0;
  for (int i = 0; i < 10; ++i) {
    Submit(Sub(200));  // 13 blocks, and 1 for 16 tokens of output
    placed += Take().commands.empty() ? 0 : 1;
  }
  EXPECT_EQ(placed, 7);
  // What the worker says counts once the reservation is part of it.
  Submission huge = Sub(3000);
  EXPECT_EQ(core_->Submit(huge, now_).refused, EndReason::kTooLong);
}

TEST_F(CoreTest, PoliciesOrderTheQueue) {
  struct Case {
    const char* policy;
    std::vector<std::string> want;
  };
  const Case cases[] = {{"fifo", {"r2", "r3", "r4", "r5"}},
                        {"program-fifo", {"r3", "r2", "r4", "r5"}},
                        {"hint-priority", {"r5", "r4", "r2", "r3"}}};
  for (const Case& c : cases) {
    subs_ = 0;
    Make([&](CoreConfig* cfg) { cfg->policy = c.policy; });
    const WorkerId d = Add("d0", 1, 1);
    Take();
    Submission s = Sub(10);  // r1 takes the only slot, as the first call of program p
    s.agent.program_id = "p";
    Submit(s);
    std::vector<std::string> order;
    SeqId running = Take().commands[0].seq;
    Submit(Sub(10));
    s = Sub(10);
    s.agent.program_id = "p";
    Submit(s);
    s = Sub(10);
    s.agent.priority = 5;
    Submit(s);
    s = Sub(10);
    s.agent.priority = -5;
    s.agent.strict_tier = 1;
    Submit(s);
    step_ = 0;
    while (order.size() < 4) {
      Token(d, running, 1, 9, FinishReason::kLength);
      core_->OnFinished(d, running, 1, {}, now_);
      const Effects e = Take();
      for (const Command& cmd : e.commands) {
        if (cmd.kind != K::kReserve) continue;
        order.push_back(cmd.spec->request_id);
        running = cmd.seq;
      }
    }
    EXPECT_EQ(order, c.want) << c.policy;
  }
}

TEST_F(CoreTest, FanOutSharesThePrompt) {
  Make();
  const WorkerId d = Add("d0");
  Take();
  Submission s = Sub(64);
  s.n = 3;
  s.sampling.seed = 7;
  Submit(s);
  Effects e = Take();
  ASSERT_THAT(Kinds(e), ::testing::ElementsAre(K::kReserve, K::kPrefillLocal)) << "siblings wait for the prompt";
  Token(d, e.commands[0].seq, 1, 50);
  e = Take();
  ASSERT_THAT(Kinds(e), ::testing::ElementsAre(K::kReserve, K::kPrefillLocal, K::kReserve, K::kPrefillLocal));
  EXPECT_EQ(e.commands[0].spec->sampling.seed, 8u);
  EXPECT_EQ(e.commands[2].spec->sampling.seed, 9u);
}

TEST_F(CoreTest, DrainRefusesTheNewAndKeepsTheOld) {
  Make();
  const WorkerId d = Add("d0");
  Take();
  Submit(Sub(10));
  const SeqId seq = Take().commands[0].seq;
  core_->BeginDrain();
  EXPECT_EQ(core_->Submit(Sub(10), now_).refused, EndReason::kDraining);
  Token(d, seq, 1, 1, FinishReason::kStop);
  core_->OnFinished(d, seq, 1, {}, now_);
  EXPECT_EQ(Take().request_ends.size(), 1u);
}

TEST_F(CoreTest, TablesStayBounded) {
  Make([](CoreConfig* c) {
    c->max_programs = 10;
    c->max_prefix_blocks = 20;
  });
  const WorkerId d = Add("d0");
  Take();
  for (int i = 0; i < 100; ++i) {
    Submission s = Sub(64);
    s.agent.program_id = "p" + std::to_string(i);
    Submit(s);
    const Effects e = Take();
    const SeqId seq = e.commands[0].seq;
    Token(d, seq, 1, 1, FinishReason::kStop);
    core_->OnFinished(d, seq, 1, {}, now_);
    Take();
  }
  EXPECT_EQ(core_->programs().size(), 10u);
  EXPECT_EQ(core_->live_sequences(), 0u);
}

}  // namespace
}  // namespace agentserve::router
