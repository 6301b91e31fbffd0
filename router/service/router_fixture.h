// A router with real gRPC and the small tokenizer, fake workers, and a client, for tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "agentserve/common/v1/rpc_error.pb.h"
#include "router/service/fake_worker.h"
#include "router/service/router_server.h"

namespace agentserve::router {

inline constexpr uint32_t kContext = 600;

inline std::string ModelDir() {
  static const std::string dir = [] {
    const char* source = std::getenv("AGENTSERVE_SOURCE");
    const std::string from = std::string(source == nullptr ? "." : source) + "/text/testdata/tiny/tokenizer.json";
    const std::string to = ::testing::TempDir() + "/router_model_" + std::to_string(getpid());
    std::filesystem::create_directories(to);
    std::filesystem::copy_file(from, to + "/tokenizer.json", std::filesystem::copy_options::overwrite_existing);
    std::ofstream(to + "/config.json") << R"({"model_type":"llama","max_position_embeddings":600,"vocab_size":1212,)"
                                       << R"("eos_token_id":[957,965],"bos_token_id":956})";
    std::ofstream(to + "/generation_config.json") << R"({"temperature":0.6,"top_p":0.9})";
    return to;
  }();
  return dir;
}

inline std::string Reason(const grpc::Status& s, common::v1::RetryInfo* retry = nullptr) {
  common::v1::RpcStatus status;
  if (!status.ParseFromString(s.error_details())) return "unparsable";
  std::string reason;
  for (const auto& d : status.details()) {
    common::v1::ErrorInfo info;
    if (d.type_url() == "type.googleapis.com/google.rpc.ErrorInfo" && info.ParseFromString(d.value())) {
      reason = info.reason();
    }
    if (retry != nullptr && d.type_url() == "type.googleapis.com/google.rpc.RetryInfo")
      retry->ParseFromString(d.value());
  }
  return reason;
}

struct Answer {
  std::string request_id;
  uint32_t prompt_tokens = 0;
  uint64_t seed = 0;
  std::map<uint32_t, std::string> text;
  std::map<uint32_t, std::vector<uint32_t>> ids;
  std::map<uint32_t, v1::SequenceEnd> ends;
  std::vector<common::v1::Logprobs> logprobs;
  std::vector<std::string> logprob_texts;
  int accepted = 0, done = 0;
  v1::Done final;
  grpc::Status status;
};

class RouterFixture : public ::testing::Test {
 protected:
  void StartRouter(std::function<void(ServiceConfig*)> tweak = nullptr) {
    ServiceConfig config;
    config.model_dir = ModelDir();
    config.model_id = "tiny";
    config.metrics_port = -1;
    config.core.prefill_threshold = 32;
    config.core.heartbeat = 200 * base::kNsPerMs;
    config.core.lease = 1 * base::kNsPerSecond;
    if (tweak) tweak(&config);
    auto server = RouterServer::Start(config);
    ASSERT_TRUE(server.ok()) << std::string(server.status().message());
    router_ = std::move(*server);
    channel_ = grpc::CreateChannel(Address(), grpc::InsecureChannelCredentials());
    stub_ = v1::RouterService::NewStub(channel_);
  }
  std::string Address() const { return "127.0.0.1:" + std::to_string(router_->port()); }
  std::unique_ptr<FakeWorker> Worker(const std::string& id, std::function<void(FakeWorkerOptions*)> tweak = nullptr) {
    FakeWorkerOptions o;
    o.id = id;
    o.router = Address();
    o.prefill = id.rfind("prefill", 0) == 0;
    if (tweak) tweak(&o);
    auto w = std::make_unique<FakeWorker>(o);
    const grpc::Status s = w->Join();
    EXPECT_TRUE(s.ok()) << s.error_message();
    return w;
  }
  // Waits until so many workers are ready (and pools connected, which follows at once).
  void AwaitReady(int workers) {
    for (int i = 0; i < 500; ++i) {
      v1::WatchClusterResponse state;
      int ready = 0;
      router_->shell().loop().Call([&] { router_->shell().FillCluster(&state); });
      for (const auto& w : state.workers()) ready += w.state() == "ready";
      if (ready >= workers) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "workers did not become ready";
  }
  void AwaitIdle() {
    for (int i = 0; i < 500; ++i) {
      uint32_t live = 1;
      router_->shell().loop().Call([&] { live = router_->shell().core().live_requests(); });
      if (live == 0) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "requests did not end";
  }
  Answer Generate(const v1::GenerateRequest& req,
                  std::function<bool(const Answer&, grpc::ClientContext*)> each = nullptr) {
    Answer a;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    auto reader = stub_->Generate(&context, req);
    v1::GenerateResponse e;
    while (reader->Read(&e)) {
      EXPECT_EQ(a.done, 0) << "an event after Done";
      Take(e, &a);
      if (each && !each(a, &context)) break;
    }
    a.status = reader->Finish();
    return a;
  }
  static void Take(const v1::GenerateResponse& e, Answer* a) {
    if (e.has_accepted()) {
      ++a->accepted;
      a->request_id = e.accepted().request_id();
      a->prompt_tokens = e.accepted().prompt_tokens();
      a->seed = e.accepted().seed();
    } else if (e.has_delta()) {
      EXPECT_EQ(a->accepted, 1) << "Accepted must be first";
      a->text[e.delta().index()] += e.delta().text();
      for (uint32_t id : e.delta().token_ids()) a->ids[e.delta().index()].push_back(id);
      for (const auto& l : e.delta().logprobs()) a->logprobs.push_back(l);
      for (const auto& t : e.delta().logprob_texts()) a->logprob_texts.push_back(t);
    } else if (e.has_sequence_end()) {
      EXPECT_EQ(a->ends.count(e.sequence_end().index()), 0u);
      a->ends[e.sequence_end().index()] = e.sequence_end();
    } else if (e.has_done()) {
      ++a->done;
      a->final = e.done();
    }
  }
  static v1::GenerateRequest Ask(const std::string& text, uint32_t max_tokens, uint64_t seed = 5) {
    v1::GenerateRequest r;
    r.set_text(text);
    r.mutable_sampling()->set_max_tokens(max_tokens);
    r.mutable_sampling()->set_seed(seed);
    r.set_return_token_ids(true);
    return r;
  }
  std::vector<uint32_t> Expected(const std::string& text, uint32_t max_tokens, uint64_t seed, uint32_t end_every = 0) {
    const auto& tok = *router_->model().tokenizer;
    std::vector<uint32_t> tokens = {*tok.bos()};
    for (uint32_t id : tok.Encode(text)) tokens.push_back(id);
    const auto prompt = static_cast<uint32_t>(tokens.size());
    std::vector<uint32_t> out;
    while (out.size() < max_tokens && (out.empty() || out.back() != 957)) {
      out.push_back(ToyToken(tokens, prompt, seed, 957, end_every));
      tokens.push_back(out.back());
    }
    return out;
  }
  static std::string Letters(const std::vector<uint32_t>& ids) {
    std::string s;
    for (uint32_t id : ids) s += id == 957 ? "" : std::string(1, static_cast<char>(id));
    return s;
  }

  std::unique_ptr<RouterServer> router_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::RouterService::Stub> stub_;
};

}  // namespace agentserve::router
