// For tests: the router's part of the protocol with workers, over real gRPC, for one prefill and one decode worker.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "agentserve/decode/v1/decode.grpc.pb.h"
#include "agentserve/prefill/v1/prefill.grpc.pb.h"

namespace agentserve {

namespace dwire = agentserve::decode::v1;
namespace pwire = agentserve::prefill::v1;

// One Run stream and the thread that reads it.
template <typename Service, typename Request, typename Response>
class TestLink {
 public:
  TestLink(const std::string& address, std::function<void(Response)> on_response)
      : stub_(Service::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        stream_(stub_->Run(&context_)) {
    reader_ = std::thread([this, on_response] {
      Response response;
      while (stream_->Read(&response)) on_response(std::move(response));
      status_ = stream_->Finish();
      closed_ = true;
    });
  }
  ~TestLink() {
    context_.TryCancel();
    Join();
  }
  bool Send(const Request& request) { return stream_->Write(request); }
  bool Hello(uint64_t expected_worker, uint64_t incarnation = 42) {
    Request request;
    request.mutable_hello()->set_incarnation(incarnation);
    request.mutable_hello()->set_peer_incarnation(expected_worker);
    return Send(request);
  }
  void Cancel() { context_.TryCancel(); }
  // After the worker or Cancel ended the stream.
  grpc::Status Join() {
    if (reader_.joinable()) reader_.join();
    return status_;
  }
  bool closed() const { return closed_; }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<typename Service::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<Request, Response>> stream_;
  std::thread reader_;
  grpc::Status status_;
  std::atomic<bool> closed_{false};
};
using PrefillLink = TestLink<pwire::PrefillService, pwire::RunRequest, pwire::RunResponse>;
using DecodeLink = TestLink<dwire::DecodeService, dwire::RunRequest, dwire::RunResponse>;

struct TestRequest {
  std::vector<uint32_t> tokens;
  uint32_t prompt_tokens = 0;  // 0 = all
  agentserve::common::v1::SamplingParams sampling;
  bool remote = false;
  uint64_t budget_ms = 60'000;
  // Result.
  std::vector<uint32_t> out;
  bool ended = false;
  std::string failure;
  std::string transport;
  uint32_t cached_tokens = 0, host_tokens = 0;
  uint64_t seq = 0;
};

// Runs requests to their ends, all at once. Single-threaded besides the links' readers.
class MiniRouter {
 public:
  MiniRouter(const std::string& p_address, const std::string& d_address, std::vector<uint32_t> end_tokens)
      : end_tokens_(std::move(end_tokens)),
        p_(p_address.empty() ? nullptr
                             : std::make_unique<PrefillLink>(p_address, [this](pwire::RunResponse r) { Post(r); })),
        d_(std::make_unique<DecodeLink>(d_address, [this](dwire::RunResponse r) { Post(r); })) {
    if (p_) p_->Hello(0);
    d_->Hello(0);
  }

  // Waits for the answer. Returns the transport in use.
  dwire::PeerConnected Connect(const agentserve::common::v1::KvEndpoint& endpoint) {
    dwire::RunRequest request;
    *request.mutable_connect_peer()->mutable_endpoint() = endpoint;
    d_->Send(request);
    Pump([&] { return peer_.has_value(); });
    return *std::exchange(peer_, std::nullopt);
  }

  // False: not all ended within 60 s.
  bool RunAll(std::vector<TestRequest*> requests) {
    for (TestRequest* r : requests) {
      const uint64_t seq = next_seq_++;
      live_[seq] = r;
      r->seq = seq;
      if (r->prompt_tokens == 0) r->prompt_tokens = static_cast<uint32_t>(r->tokens.size());
      dwire::RunRequest request = Command(seq);
      Fill(*r, request.mutable_reserve());
      d_->Send(request);
    }
    return Pump([&] { return live_.empty(); });
  }

  std::optional<agentserve::common::v1::WorkerLoad> d_load, p_load;
  // Waits until both loads say that nothing is held.
  bool WaitIdle() {
    const auto idle = [](const auto& load) {
      return load && load->running() == 0 && load->waiting() == 0 && load->available_blocks() == load->total_blocks();
    };
    return Pump([&] { return idle(d_load) && (!p_ || idle(p_load)); });
  }
  // What the router says of an ended request's KV.
  void Retain(const TestRequest& r, dwire::KeepWhere where, uint64_t ttl_ms = 0) {
    dwire::RunRequest request = Command(r.seq);
    request.mutable_retain()->set_where(where);
    request.mutable_retain()->set_ttl_ms(ttl_ms);
    request.mutable_retain()->set_worth(8);
    d_->Send(request);
  }
  void Prefetch(const TestRequest& r, uint64_t ttl_ms) {
    dwire::RunRequest request = Command(r.seq);
    request.mutable_prefetch()->set_ttl_ms(ttl_ms);
    d_->Send(request);
  }
  bool WaitLoad(const std::function<bool(const agentserve::common::v1::WorkerLoad&)>& done) {
    return Pump([&] { return d_load && done(*d_load); });
  }
  PrefillLink* p() { return p_.get(); }
  DecodeLink* d() { return d_.get(); }
  // Loses the prefill worker: what waits for it is prefilled at the decode worker.
  bool lose_prefill = false;

 private:
  using Response = std::variant<pwire::RunResponse, dwire::RunResponse>;

  void Post(Response r) {
    const std::lock_guard lock(mu_);
    queue_.push_back(std::move(r));
    cv_.notify_all();
  }
  bool Pump(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!done()) {
      Response r;
      {
        std::unique_lock lock(mu_);
        if (!cv_.wait_until(lock, deadline, [&] { return !queue_.empty(); })) return false;
        r = std::move(queue_.front());
        queue_.pop_front();
      }
      std::visit([&](auto& x) { On(x); }, r);
    }
    return true;
  }
  dwire::RunRequest Command(uint64_t seq) {
    dwire::RunRequest r;
    r.set_seq(seq);
    r.set_attempt(1);
    return r;
  }
  template <typename Message>
  void Fill(const TestRequest& r, Message* m) {
    m->set_request_id("test");
    m->mutable_tokens()->Add(r.tokens.begin(), r.tokens.end());
    m->set_prompt_tokens(r.prompt_tokens);
    *m->mutable_sampling() = r.sampling;
    m->set_budget_ms(r.budget_ms);
  }
  void ReleaseP(uint64_t seq) {
    if (!p_) return;
    pwire::RunRequest release;
    release.set_seq(seq);
    release.set_attempt(1);
    release.mutable_release_kv();
    p_->Send(release);
  }
  void PrefillLocal(uint64_t seq) {
    dwire::RunRequest local = Command(seq);
    local.mutable_prefill_local();
    d_->Send(local);
  }
  void End(uint64_t seq, const std::string& failure = "") {
    live_[seq]->ended = true;
    live_[seq]->failure = failure;
    live_.erase(seq);
  }

  void On(pwire::RunResponse& e) {
    if (e.has_load()) p_load = e.load();
    const auto it = live_.find(e.seq());
    if (it == live_.end()) return;
    TestRequest& r = *it->second;
    if (e.has_admitted()) {
      if (lose_prefill) return PrefillLocal(e.seq());
      r.cached_tokens = e.admitted().cached_tokens();
      dwire::RunRequest attach = Command(e.seq());
      *attach.mutable_attach()->mutable_kv() = e.admitted().kv();
      d_->Send(attach);
    } else if (e.has_first_token() && !lose_prefill) {
      const uint32_t token = e.first_token().token();
      r.out.push_back(token);
      const bool end_token = std::find(end_tokens_.begin(), end_tokens_.end(), token) != end_tokens_.end();
      if (end_token || r.sampling.max_tokens() == 1) {
        dwire::RunRequest cancel = Command(e.seq());
        cancel.mutable_cancel();
        d_->Send(cancel);
        ReleaseP(e.seq());
        return End(e.seq());
      }
      dwire::RunRequest admit = Command(e.seq());
      admit.mutable_admit()->set_first_token(token);
      *admit.mutable_admit()->mutable_kv() = e.first_token().kv();
      d_->Send(admit);
    } else if (e.has_failed()) {
      PrefillLocal(e.seq());
    }
  }

  void On(dwire::RunResponse& e) {
    if (e.has_load()) d_load = e.load();
    if (e.has_peer_connected()) peer_ = e.peer_connected();
    if (e.has_step_result()) {
      for (const auto& t : e.step_result().tokens()) {
        if (const auto it = live_.find(t.seq()); it != live_.end()) it->second->out.push_back(t.token());
      }
    }
    const auto it = live_.find(e.seq());
    if (it == live_.end()) return;
    TestRequest& r = *it->second;
    if (e.has_reserved()) {
      if (!r.remote || !p_) return PrefillLocal(e.seq());
      pwire::RunRequest start;
      start.set_seq(e.seq());
      start.set_attempt(1);
      Fill(r, start.mutable_start());
      p_->Send(start);
    } else if (e.has_kv_ready()) {
      r.transport = e.kv_ready().transport();
      ReleaseP(e.seq());
    } else if (e.has_finished()) {
      if (r.cached_tokens == 0) r.cached_tokens = e.finished().cached_tokens();
      r.host_tokens = e.finished().host_tokens();
      ReleaseP(e.seq());
      End(e.seq());
    } else if (e.has_failed()) {
      End(e.seq(), e.failed().reason());
    }
  }

  const std::vector<uint32_t> end_tokens_;
  std::mutex mu_;
  std::condition_variable cv_;
  std::deque<Response> queue_;  // guarded by mu_
  std::map<uint64_t, TestRequest*> live_;
  std::optional<dwire::PeerConnected> peer_;
  uint64_t next_seq_ = 1;
  std::unique_ptr<PrefillLink> p_;  // last: their threads post to what is above
  std::unique_ptr<DecodeLink> d_;
};

}  // namespace agentserve
