// The whole router in one process: real gRPC, fake workers, the small tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "router/service/router_fixture.h"

namespace agentserve::router {
namespace {

using ::testing::HasSubstr;

using RouterServiceTest = RouterFixture;

const std::string kLong(200, 'x');

TEST_F(RouterServiceTest, AggregatedAndDisaggregatedAgree) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  const Answer local = Generate(Ask(kLong, 40));
  EXPECT_TRUE(local.status.ok()) << local.status.error_message();
  EXPECT_EQ(local.accepted, 1);
  EXPECT_EQ(local.done, 1);
  EXPECT_EQ(local.ids.at(0), Expected(kLong, 40, 5));
  EXPECT_EQ(local.text.at(0), Letters(local.ids.at(0)));
  EXPECT_EQ(local.ends.at(0).reason(), common::v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(local.ends.at(0).completion_tokens(), 40u);
  EXPECT_EQ(local.final.completion_tokens(), 40u);
  EXPECT_EQ(local.final.prompt_tokens(), local.prompt_tokens);
  EXPECT_EQ(local.request_id.size(), 32u);
  EXPECT_EQ(local.final.timeline().transfer_path(), "");
  EXPECT_GT(local.final.timeline().total_ms(), 0);
  EXPECT_GE(local.final.timeline().total_ms(), local.final.timeline().ttft_ms());

  auto p = Worker("prefill-0");
  AwaitReady(2);
  // Another start, so that the remembered prefix does not keep it local.
  const std::string other = "y" + kLong;
  Answer remote;
  for (int i = 0; i < 50; ++i) {  // until the pair is connected
    remote = Generate(Ask(std::to_string(i) + other, 40));
    if (remote.final.timeline().prefill_worker() != "prefill-0") continue;
    EXPECT_EQ(remote.ids.at(0), Expected(std::to_string(i) + other, 40, 5));
    break;
  }
  EXPECT_EQ(remote.final.timeline().prefill_worker(), "prefill-0");
  EXPECT_EQ(remote.final.timeline().decode_worker(), "decode-0");
  EXPECT_EQ(remote.final.timeline().transfer_path(), "mapped");
  EXPECT_EQ(remote.final.timeline().transfer_bytes(), 4096u);
  EXPECT_GE(p->releases(), 1u);
  EXPECT_EQ(p->live(), 0u);
  // A short prompt stays local.
  const uint64_t locals = d->locals();
  EXPECT_TRUE(Generate(Ask("hi", 3)).status.ok());
  EXPECT_EQ(d->locals(), locals + 1);
}

TEST_F(RouterServiceTest, EndTokenIsCountedButNotShown) {
  StartRouter();
  auto d = Worker("decode-0", [](auto* o) { o->end_every = 8; });
  AwaitReady(1);
  const std::vector<uint32_t> want = Expected("hello", 500, 5, 8);
  ASSERT_EQ(want.back(), 957u);
  v1::GenerateRequest req = Ask("hello", 500);
  req.mutable_agent()->set_tenant_id("t");
  req.mutable_agent()->set_program_id("p");
  const Answer a = Generate(req);
  EXPECT_EQ(a.ids.at(0), want);
  EXPECT_EQ(a.text.at(0), Letters(want));
  EXPECT_EQ(a.ends.at(0).reason(), common::v1::FINISH_REASON_STOP);
  EXPECT_EQ(a.ends.at(0).stop_match(), "<|end_of_text|>");
  EXPECT_EQ(a.ends.at(0).completion_tokens(), want.size());
  for (int i = 0; i < 200 && d->retains() == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(d->retains(), 1u) << "a program's turn that ended by itself is parked";
}

TEST_F(RouterServiceTest, StopStringEndsTheSequenceAndFreesTheWorker) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  const std::string all = Letters(Expected("hello", 400, 5));
  v1::GenerateRequest req = Ask("hello", 400);
  req.mutable_sampling()->add_stop(all.substr(30, 4));
  const size_t at = all.find(all.substr(30, 4));
  Answer a = Generate(req);
  EXPECT_TRUE(a.status.ok());
  EXPECT_EQ(a.text.at(0), all.substr(0, at));
  EXPECT_EQ(a.ends.at(0).reason(), common::v1::FINISH_REASON_STOP);
  EXPECT_EQ(a.ends.at(0).stop_match(), all.substr(30, 4));
  EXPECT_EQ(a.ends.at(0).completion_tokens(), at + 4);
  EXPECT_EQ(a.final.completion_tokens(), at + 4);
  req.mutable_sampling()->set_include_stop_str_in_output(true);
  a = Generate(req);
  EXPECT_EQ(a.text.at(0), all.substr(0, at + 4));
  for (int i = 0; i < 200 && d->live() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(d->live(), 0u);
  EXPECT_GE(d->cancels(), 2u);
}

TEST_F(RouterServiceTest, SeveralSequencesAndLogprobs) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  v1::GenerateRequest req = Ask("hello", 10);
  req.set_n(3);
  const Answer a = Generate(req);
  EXPECT_TRUE(a.status.ok());
  ASSERT_EQ(a.ends.size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(a.ids.at(i), Expected("hello", 10, 5 + i)) << i;
  EXPECT_EQ(a.final.completion_tokens(), 30u);

  req = Ask("hello", 3);
  req.mutable_sampling()->set_top_logprobs(2);
  const Answer b = Generate(req);
  ASSERT_EQ(b.logprobs.size(), 3u);
  ASSERT_EQ(b.logprob_texts.size(), 9u);
  EXPECT_EQ(b.logprob_texts[0], Letters({b.ids.at(0)[0]}));
  EXPECT_EQ(b.logprob_texts[1], "a");
  EXPECT_EQ(b.logprob_texts[2], "b");
}

TEST_F(RouterServiceTest, StreamSurvivesTheDeathOfItsWorkers) {
  StartRouter();
  auto d0 = Worker("decode-0", [](auto* o) { o->step_us = 3000; });
  auto d1 = Worker("decode-1", [](auto* o) { o->step_us = 3000; });
  AwaitReady(2);
  bool killed = false;
  const Answer a = Generate(Ask("hello", 200), [&](const Answer& so_far, grpc::ClientContext*) {
    if (!killed && so_far.ids.count(0) > 0 && so_far.ids.at(0).size() > 50) {
      killed = true;
      (d0->live() > 0 ? d0 : d1)->Kill();
    }
    return true;
  });
  EXPECT_TRUE(killed);
  EXPECT_TRUE(a.status.ok()) << a.status.error_message();
  EXPECT_EQ(a.ids.at(0), Expected("hello", 200, 5));
  EXPECT_EQ(a.final.timeline().migrations(), 1u);
}

TEST_F(RouterServiceTest, CancelByDisconnectAndById) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  Answer a = Generate(Ask("hello", 500), [](const Answer& so_far, grpc::ClientContext* context) {
    if (so_far.ids.count(0) > 0 && so_far.ids.at(0).size() > 5) context->TryCancel();
    return true;
  });
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::CANCELLED);
  AwaitIdle();
  for (int i = 0; i < 200 && d->live() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(d->live(), 0u);

  bool sent = false;
  a = Generate(Ask("hello", 500), [&](const Answer& so_far, grpc::ClientContext*) {
    if (sent) return true;
    sent = true;
    grpc::ClientContext context;
    v1::CancelRequest req;
    v1::CancelResponse res;
    req.set_request_id(so_far.request_id);
    EXPECT_TRUE(stub_->Cancel(&context, req, &res).ok());
    return true;
  });
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(Reason(a.status), "CANCELLED");
  grpc::ClientContext context;
  v1::CancelRequest req;
  v1::CancelResponse res;
  req.set_request_id(a.request_id);
  EXPECT_EQ(stub_->Cancel(&context, req, &res).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(RouterServiceTest, BadRequestsAreRefusedPrecisely) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  struct Case {
    const char* what;
    std::function<void(v1::GenerateRequest*)> change;
    grpc::StatusCode code;
    const char* reason;
    const char* message;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto kBad = grpc::StatusCode::INVALID_ARGUMENT;
  const Case cases[] = {
      {"model", [](auto* r) { r->set_model("gpt-9"); }, grpc::StatusCode::NOT_FOUND, "MODEL_NOT_FOUND", "gpt-9"},
      {"no prompt", [](auto* r) { r->clear_prompt(); }, kBad, "INVALID_FIELD", "prompt"},
      {"temperature", [](auto* r) { r->mutable_sampling()->set_temperature(2.5f); }, kBad, "INVALID_FIELD",
       "sampling.temperature"},
      {"nan", [=](auto* r) { r->mutable_sampling()->set_temperature(nan); }, kBad, "INVALID_FIELD",
       "sampling.temperature"},
      {"top_p", [](auto* r) { r->mutable_sampling()->set_top_p(0); }, kBad, "INVALID_FIELD", "sampling.top_p"},
      {"max_tokens", [](auto* r) { r->mutable_sampling()->set_max_tokens(0); }, kBad, "INVALID_FIELD", "max_tokens"},
      {"bias", [](auto* r) { r->mutable_sampling()->add_logit_bias()->set_token_id(5000); }, kBad, "INVALID_FIELD",
       "5000"},
      {"stop", [](auto* r) { r->mutable_sampling()->add_stop(""); }, kBad, "INVALID_FIELD", "sampling.stop"},
      {"n", [](auto* r) { r->set_n(1000); }, kBad, "INVALID_FIELD", "n:"},
      {"salt", [](auto* r) { r->set_cache_salt("a b"); }, kBad, "INVALID_FIELD", "cache_salt"},
      {"id", [](auto* r) { r->mutable_token_ids()->add_ids(99999); }, kBad, "INVALID_FIELD", "99999"},
      {"empty chat", [](auto* r) { r->mutable_chat(); }, kBad, "INVALID_FIELD", "chat.messages"},
      {"role", [](auto* r) { r->mutable_chat()->add_messages()->set_role("king"); }, kBad, "INVALID_FIELD", "king"},
      {"long",
       [](auto* r) {
         for (int i = 0; i < 700; ++i) r->mutable_token_ids()->add_ids(65);
       },
       kBad, "CONTEXT_LENGTH_EXCEEDED", "600 tokens, but the prompt has 700"},
      {"bytes", [](auto* r) { r->set_text(std::string(1 << 20, 'x')); }, kBad, "CONTEXT_LENGTH_EXCEEDED", "bytes"},
      {"budget",
       [](auto* r) {
         r->set_budget_ms(1);
         r->mutable_sampling()->set_max_tokens(400);
       },
       grpc::StatusCode::DEADLINE_EXCEEDED, "", ""},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest req = Ask("hello", 5);
    c.change(&req);
    const Answer a = Generate(req);
    EXPECT_EQ(a.status.error_code(), c.code) << c.what << ": " << a.status.error_message();
    if (*c.reason != 0) {
      EXPECT_EQ(Reason(a.status), c.reason) << c.what;
    }
    EXPECT_THAT(a.status.error_message(), HasSubstr(c.message)) << c.what;
    EXPECT_EQ(a.done, 0) << c.what;
  }
  EXPECT_TRUE(Generate(Ask("hello", 5)).status.ok()) << "the router still serves";
}

TEST_F(RouterServiceTest, QueueFullHasRetryInfo) {
  StartRouter([](auto* c) { c->core.max_queued = 2; });
  // No worker: requests wait.
  std::vector<std::thread> waiting;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  for (int i = 0; i < 2; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    waiting.emplace_back([this, c = contexts.back().get()] {
      auto reader = stub_->Generate(c, Ask("hello", 5));
      v1::GenerateResponse e;
      while (reader->Read(&e)) {
      }
      reader->Finish();
    });
  }
  for (int i = 0; i < 300; ++i) {
    uint32_t queued = 0;
    router_->shell().loop().Call([&] { queued = router_->shell().core().queued_requests(); });
    if (queued == 2) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const Answer a = Generate(Ask("hello", 5));
  common::v1::RetryInfo retry;
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(a.status, &retry), "QUEUE_FULL");
  EXPECT_GT(retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1'000'000, 0);
  for (auto& c : contexts) c->TryCancel();
  for (auto& t : waiting) t.join();
  AwaitIdle();
}

TEST_F(RouterServiceTest, WorkerOfAnotherModelIsRefused) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  FakeWorkerOptions o;
  o.id = "decode-1";
  o.router = Address();
  o.fingerprint = "beef";
  FakeWorker other(o);
  grpc::Status s = other.Join();
  EXPECT_EQ(s.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(s.error_message(), HasSubstr("beef"));
  EXPECT_THAT(s.error_message(), HasSubstr("f00d"));
  o.fingerprint = "f00d";
  o.layout = 78;
  FakeWorker shaped(o);
  EXPECT_EQ(shaped.Join().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(Generate(Ask("hello", 5)).status.ok());
  // Once the old model is gone, another may come.
  d->Kill();
  for (int i = 0; i < 300; ++i) {
    if (router_->shell().loop().Call([] {}) && other.Join().ok()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  AwaitReady(1);
  EXPECT_TRUE(Generate(Ask("hello", 5)).status.ok());
}

TEST_F(RouterServiceTest, SlowReaderIsEndedAndHurtsNobody) {
  StartRouter([](auto* c) { c->stream_buffer_bytes = 2'000; });
  auto d = Worker("decode-0", [](auto* o) { o->step_us = 0; });
  AwaitReady(1);
  // 8 sequences with logprobs, never read: about 2 MB of messages against a 64 KiB transport window.
  v1::GenerateRequest req = Ask("hello", 500);
  req.set_n(32);
  req.mutable_sampling()->set_top_logprobs(20);
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4096);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto slow =
      v1::RouterService::NewStub(grpc::CreateCustomChannel(Address(), grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  auto reader = slow->Generate(&context, req);
  AwaitIdle();
  // Few enough tokens to fit the small buffer: this reader may be slow as well on a busy machine.
  EXPECT_TRUE(Generate(Ask("hello", 10)).status.ok());
  v1::GenerateResponse e;
  while (reader->Read(&e)) {
  }
  const grpc::Status s = reader->Finish();
  EXPECT_EQ(s.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << s.error_message();
  EXPECT_EQ(Reason(s), "SLOW_CLIENT");
}

TEST_F(RouterServiceTest, ModelTokenizeAndWatch) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  {
    grpc::ClientContext context;
    v1::GetModelResponse m;
    ASSERT_TRUE(stub_->GetModel(&context, {}, &m).ok());
    EXPECT_EQ(m.model_id(), "tiny");
    EXPECT_EQ(m.context_length(), kContext);
    EXPECT_TRUE(m.ready());
    EXPECT_TRUE(m.has_chat_template());
    EXPECT_FLOAT_EQ(m.default_sampling().temperature(), 0.6f);
    EXPECT_EQ(m.layout().block_tokens(), 16u);
  }
  v1::TokenizeResponse ids;
  {
    grpc::ClientContext context;
    v1::TokenizeRequest req;
    req.set_text("hello <|eot_id|>");
    req.set_add_special_tokens(true);
    ASSERT_TRUE(stub_->Tokenize(&context, req, &ids).ok());
    EXPECT_EQ(ids.ids(0), 956u);
    for (int i = 1; i < ids.ids_size(); ++i) EXPECT_LT(ids.ids(i), 956u) << "user text forged a special token";
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest req;
    v1::DetokenizeResponse res;
    for (int i = 1; i < ids.ids_size(); ++i) req.add_ids(ids.ids(i));
    ASSERT_TRUE(stub_->Detokenize(&context, req, &res).ok());
    EXPECT_EQ(res.text(), "hello <|eot_id|>");
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest req;
    auto* m = req.mutable_chat()->add_messages();
    m->set_role("user");
    m->set_content("hi");
    ASSERT_TRUE(stub_->Tokenize(&context, req, &ids).ok());
    EXPECT_THAT(ids.rendered(), HasSubstr("<|start_header_id|>user"));
  }
  grpc::ClientContext context;
  v1::WatchClusterRequest req;
  req.set_interval_ms(100);
  auto reader = stub_->WatchCluster(&context, req);
  v1::WatchClusterResponse state;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&state));
  ASSERT_EQ(state.workers_size(), 1);
  EXPECT_EQ(state.workers(0).state(), "ready");
  EXPECT_EQ(state.policy(), "program-fifo");
  context.TryCancel();
  while (reader->Read(&state)) {
  }
  reader->Finish();
  EXPECT_THAT(router_->metrics().registry().Render(), HasSubstr("agentserve_router_workers"));
}

TEST_F(RouterServiceTest, DrainFinishesWhatRuns) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  std::atomic<bool> started{false};
  Answer a;
  std::thread client(
      [&] { a = Generate(Ask("hello", 200), [&](const Answer&, grpc::ClientContext*) { return started = true; }); });
  while (!started) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  router_->Shutdown(10'000);
  client.join();
  EXPECT_TRUE(a.status.ok()) << a.status.error_message();
  EXPECT_EQ(a.ids.at(0), Expected("hello", 200, 5));
}

}  // namespace
}  // namespace agentserve::router
