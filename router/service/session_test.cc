// Session: many generations over one stream, against a whole router with fake workers.
#include <gmock/gmock.h>

#include <set>

#include "router/service/router_fixture.h"

namespace agentserve::router {
namespace {

using SessionStub = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;

class SessionTest : public RouterFixture {
 protected:
  void Open() {
    context_ = std::make_unique<grpc::ClientContext>();
    context_->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    stream_ = stub_->Session(context_.get());
  }
  void Begin(uint64_t call, const v1::GenerateRequest& request) {
    v1::SessionRequest m;
    m.set_call(call);
    *m.mutable_generate() = request;
    ASSERT_TRUE(stream_->Write(m));
  }
  void CancelCall(uint64_t call) {
    v1::SessionRequest m;
    m.set_call(call);
    m.mutable_cancel();
    ASSERT_TRUE(stream_->Write(m));
  }
  // Reads one message into `answers_`; false when the session is over.
  bool ReadOne() {
    v1::SessionResponse m;
    if (!stream_->Read(&m)) return false;
    ++messages_;
    EXPECT_GT(m.events_size(), 0);
    for (const v1::SessionEvent& e : m.events()) {
      EXPECT_EQ(ended_.count(e.call()), 0u) << "an event after the end of call " << e.call();
      if (e.has_end()) {
        ended_.insert(e.call());
        answers_[e.call()].status =
            grpc::Status(static_cast<grpc::StatusCode>(e.end().code()), e.end().message(), e.end().details());
      } else {
        Take(e.response(), &answers_[e.call()]);
      }
    }
    return true;
  }
  void ReadUntilEnded(size_t calls) {
    while (ended_.size() < calls && ReadOne()) {
    }
    ASSERT_EQ(ended_.size(), calls);
  }

  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<SessionStub> stream_;
  std::map<uint64_t, Answer> answers_;
  std::set<uint64_t> ended_;
  size_t messages_ = 0;
};

TEST_F(SessionTest, ManyGenerationsShareMessages) {
  StartRouter();
  auto d = Worker("decode-0", [](auto* o) { o->step_us = 500; });
  auto p = Worker("prefill-0");
  AwaitReady(2);
  Open();
  constexpr uint64_t kCalls = 64;
  constexpr uint32_t kTokens = 100;
  for (uint64_t i = 1; i <= kCalls; ++i) Begin(i, Ask(i % 8 == 0 ? std::string(200, 'x') : "hello", kTokens, i));
  ReadUntilEnded(kCalls);
  for (uint64_t i = 1; i <= kCalls; ++i) {
    const Answer& a = answers_[i];
    EXPECT_TRUE(a.status.ok()) << a.status.error_message();
    EXPECT_EQ(a.accepted, 1);
    EXPECT_EQ(a.done, 1);
    EXPECT_EQ(a.ids.at(0), Expected(i % 8 == 0 ? std::string(200, 'x') : "hello", kTokens, i)) << "call " << i;
    EXPECT_EQ(a.final.completion_tokens(), kTokens);
  }
  // One message carries the tokens of many calls.
  EXPECT_LT(messages_, kCalls * kTokens / 4);
  stream_->WritesDone();
  EXPECT_FALSE(ReadOne());
  EXPECT_TRUE(stream_->Finish().ok());
}

TEST_F(SessionTest, HalfClosedSessionFinishesWhatIsOpen) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  Open();
  Begin(1, Ask("hello", 50));
  Begin(2, Ask("there", 30));
  stream_->WritesDone();
  while (ReadOne()) {
  }
  EXPECT_TRUE(stream_->Finish().ok());
  EXPECT_EQ(answers_[1].ids.at(0), Expected("hello", 50, 5));
  EXPECT_EQ(answers_[2].ids.at(0), Expected("there", 30, 5));
}

TEST_F(SessionTest, CancelEndsOneGenerationOnly) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  Open();
  Begin(1, Ask("hello", 500));
  Begin(2, Ask("there", 100));
  while (answers_[1].ids[0].size() < 5 && ReadOne()) {
  }
  CancelCall(1);
  CancelCall(1);   // late: ignored
  CancelCall(77);  // unknown: ignored
  ReadUntilEnded(2);
  EXPECT_EQ(answers_[1].status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_LT(answers_[1].ids[0].size(), 500u);
  EXPECT_EQ(answers_[2].ids.at(0), Expected("there", 100, 5));
  Begin(1, Ask("again", 20));  // the number is free again
  ended_.erase(1);
  answers_.erase(1);
  ReadUntilEnded(2);
  EXPECT_EQ(answers_[1].ids.at(0), Expected("again", 20, 5));
}

TEST_F(SessionTest, RefusalsComeAsEnds) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  Open();
  v1::GenerateRequest bad = Ask("hello", 5);
  bad.set_model("other");
  Begin(1, bad);
  Begin(2, Ask("hello", 5));
  ReadUntilEnded(2);
  EXPECT_EQ(answers_[1].status.error_code(), grpc::StatusCode::NOT_FOUND) << answers_[1].status.error_message();
  EXPECT_FALSE(Reason(answers_[1].status).empty());
  EXPECT_TRUE(answers_[2].status.ok());
}

TEST_F(SessionTest, DisconnectFreesEverything) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  Open();
  for (uint64_t i = 1; i <= 8; ++i) Begin(i, Ask("hello", 500));
  while (answers_[8].ids[0].size() < 3 && ReadOne()) {
  }
  context_->TryCancel();
  AwaitIdle();
  for (int i = 0; i < 200 && d->live() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(d->live(), 0u);
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(SessionTest, BrokenRulesEndTheSession) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  Open();
  Begin(1, Ask("hello", 500));
  while (answers_[1].ids[0].size() < 3 && ReadOne()) {
  }
  Begin(1, Ask("hello", 5));  // still open
  while (ReadOne()) {
  }
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  AwaitIdle();
}

// A reader that never reads: its generations end, others go on.
TEST_F(SessionTest, SlowReaderIsEndedAndHurtsNobody) {
  StartRouter([](auto* c) { c->stream_buffer_bytes = 2'000; });
  auto d = Worker("decode-0", [](auto* o) { o->step_us = 0; });
  AwaitReady(1);
  Open();
  v1::GenerateRequest req = Ask("hello", 500);
  req.set_n(32);
  req.mutable_sampling()->set_top_logprobs(20);
  for (uint64_t i = 1; i <= 8; ++i) Begin(i, req);
  AwaitIdle();
  EXPECT_TRUE(Generate(Ask("hello", 50)).status.ok());
  ReadUntilEnded(8);
  int slow = 0;
  for (const auto& [id, a] : answers_) slow += Reason(a.status) == "SLOW_CLIENT";
  EXPECT_GT(slow, 0);
}

}  // namespace
}  // namespace agentserve::router
