#include "router/service/fake_worker.h"

#include <chrono>

#include "base/rng.h"

namespace agentserve::router {

uint32_t ToyToken(const std::vector<uint32_t>& tokens, uint32_t prompt_tokens, uint64_t seed, uint32_t end,
                  uint32_t end_every) {
  uint64_t h = seed * 0x9e3779b97f4a7c15ull + tokens.size();
  for (size_t i = tokens.size() > 8 ? tokens.size() - 8 : 0; i < tokens.size(); ++i) {
    h = (h ^ tokens[i]) * 0x100000001b3ull;
  }
  const uint64_t r = base::SplitMix64(h).Next();
  if (end_every > 0 && tokens.size() > prompt_tokens && (r >> 32) % end_every == 0) return end;
  return static_cast<uint32_t>('a' + r % 26);
}

FakeWorker::FakeWorker(FakeWorkerOptions options)
    : options_(std::move(options)), incarnation_(base::EntropyUint64() | 1) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  if (options_.prefill) {
    builder.RegisterService(&prefill_);
  } else {
    builder.RegisterService(&decode_);
  }
  server_ = builder.BuildAndStart();
  router_ = v1::ClusterService::NewStub(grpc::CreateChannel(options_.router, grpc::InsecureChannelCredentials()));
}

v1::RegisterRequest FakeWorker::Registration() const {
  v1::RegisterRequest r;
  auto* e = r.mutable_endpoint();
  e->set_worker_id(options_.id);
  e->set_incarnation(incarnation_);
  e->set_grpc_address("127.0.0.1:" + std::to_string(port_));
  e->set_num_blocks(options_.blocks);
  e->mutable_layout()->set_block_tokens(16);
  e->mutable_layout()->set_fingerprint(options_.layout);
  r.set_role(options_.prefill ? v1::WORKER_ROLE_PREFILL : v1::WORKER_ROLE_DECODE);
  r.set_address(e->grpc_address());
  r.set_model_id(options_.model_id);
  r.set_model_fingerprint(options_.fingerprint);
  r.set_context_length(100'000);
  r.set_max_batch(options_.max_batch);
  return r;
}

grpc::Status FakeWorker::Join() {
  auto once = [this](v1::RegisterResponse* out) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    return router_->Register(&context, Registration(), out);
  };
  v1::RegisterResponse terms;
  const grpc::Status status = once(&terms);
  if (!status.ok()) return status;
  heartbeat_ = std::thread([this, once, wait = terms.heartbeat_ms()] {
    std::unique_lock lock(mu_);
    while (!changed_.wait_for(lock, std::chrono::milliseconds(wait / 2), [this] { return dead_; })) {
      lock.unlock();
      v1::RegisterResponse ignored;
      once(&ignored);
      lock.lock();
    }
  });
  return status;
}

void FakeWorker::Kill() {
  {
    std::lock_guard lock(mu_);
    if (dead_) return;
    dead_ = true;
  }
  changed_.notify_all();
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  if (heartbeat_.joinable()) heartbeat_.join();
}

uint32_t FakeWorker::live() const {
  std::lock_guard lock(mu_);
  return static_cast<uint32_t>(seqs_.size());
}

template <typename Reserve>
FakeWorker::Seq FakeWorker::FromSpec(const Reserve& r, uint32_t attempt) {
  Seq s;
  s.attempt = attempt;
  s.prompt_tokens = r.prompt_tokens();
  s.max_tokens = r.sampling().max_tokens();
  s.seed = r.sampling().seed();
  s.top_logprobs = r.sampling().has_top_logprobs() ? static_cast<int>(r.sampling().top_logprobs()) : -1;
  s.tokens.assign(r.tokens().begin(), r.tokens().end());
  return s;
}

// ---- decode ----

bool FakeWorker::Decode::OneStep(decode::v1::StepResult* out, std::vector<std::pair<uint64_t, Seq>>* finished) {
  FakeWorker& w = w_;
  for (auto it = w.seqs_.begin(); it != w.seqs_.end();) {
    Seq& s = it->second;
    if (!s.running) {
      ++it;
      continue;
    }
    auto* t = out->add_tokens();
    t->set_seq(it->first);
    t->set_attempt(s.attempt);
    t->set_token(ToyToken(s.tokens, s.prompt_tokens, s.seed, w.options_.end_token, w.options_.end_every));
    if (s.top_logprobs >= 0) {
      t->mutable_logprobs()->set_logprob(-0.5f);
      for (int k = 0; k < s.top_logprobs; ++k) {
        t->mutable_logprobs()->add_top()->set_token_id(static_cast<uint32_t>('a' + k));
      }
    }
    s.tokens.push_back(t->token());
    ++s.steps;
    if (t->token() == w.options_.end_token) {
      t->set_finish(common::v1::FINISH_REASON_STOP);
    } else if (s.tokens.size() - s.prompt_tokens >= s.max_tokens) {
      t->set_finish(common::v1::FINISH_REASON_LENGTH);
    }
    if (t->finish() != common::v1::FINISH_REASON_UNSPECIFIED) {
      finished->emplace_back(it->first, std::move(s));
      it = w.seqs_.erase(it);
    } else {
      ++it;
    }
  }
  if (out->tokens_size() == 0) return false;
  out->set_step(++w.step_);
  return true;
}

void FakeWorker::Decode::StepLoop(grpc::ServerReaderWriter<decode::v1::RunResponse, decode::v1::RunRequest>* stream) {
  FakeWorker& w = w_;
  std::unique_lock lock(w.mu_);
  while (!over_) {
    decode::v1::RunResponse m;
    std::vector<std::pair<uint64_t, Seq>> finished;
    if (OneStep(m.mutable_step_result(), &finished)) {
      stream->Write(m);  // under the lock: a stream takes one writer at a time
      for (const auto& [seq, s] : finished) {
        decode::v1::RunResponse f;
        f.set_seq(seq);
        f.set_attempt(s.attempt);
        f.mutable_finished()->set_steps(s.steps);
        f.mutable_finished()->set_decode_ms(s.steps);
        stream->Write(f);
      }
      decode::v1::RunResponse load;
      load.mutable_load()->set_total_blocks(w.options_.blocks);
      load.mutable_load()->set_available_blocks(w.options_.blocks - static_cast<uint32_t>(w.seqs_.size()));
      load.mutable_load()->set_running(static_cast<uint32_t>(w.seqs_.size()));
      if (!finished.empty()) stream->Write(load);
      if (w.options_.step_us > 0)
        w.changed_.wait_for(lock, std::chrono::microseconds(w.options_.step_us), [this] { return over_; });
      lock.unlock();  // let commands in
      lock.lock();
    } else {
      w.changed_.wait_for(lock, std::chrono::milliseconds(100));
    }
  }
}

grpc::Status FakeWorker::Decode::Run(
    grpc::ServerContext* context, grpc::ServerReaderWriter<decode::v1::RunResponse, decode::v1::RunRequest>* stream) {
  FakeWorker& w = w_;
  {
    std::lock_guard lock(w.mu_);
    over_ = false;
  }
  std::thread steps([&] { StepLoop(stream); });
  decode::v1::RunRequest c;
  while (stream->Read(&c)) {
    std::lock_guard lock(w.mu_);
    decode::v1::RunResponse m;
    m.set_seq(c.seq());
    m.set_attempt(c.attempt());
    auto it = w.seqs_.find(c.seq());
    if (c.has_hello()) {
      m.mutable_hello()->set_incarnation(w.incarnation_);
      m.mutable_hello()->set_peer_incarnation(c.hello().incarnation());
      m.mutable_hello()->set_worker_id(w.options_.id);
      stream->Write(m);
    } else if (c.has_connect_peer()) {
      m.mutable_peer_connected()->set_worker_id(c.connect_peer().endpoint().worker_id());
      m.mutable_peer_connected()->set_incarnation(c.connect_peer().endpoint().incarnation());
      m.mutable_peer_connected()->set_transport("mapped");
      stream->Write(m);
    } else if (c.has_reserve()) {
      w.seqs_[c.seq()] = FromSpec(c.reserve(), c.attempt());
      m.mutable_reserved();
      stream->Write(m);
    } else if (c.has_cancel()) {
      ++w.cancels_;
      w.seqs_.erase(c.seq());
    } else if (c.has_retain()) {
      ++w.retains_;
    } else if (c.has_prefill_local() && it != w.seqs_.end()) {
      ++w.locals_;
      it->second.running = true;
    } else if (c.has_admit() && it != w.seqs_.end()) {
      it->second.tokens.push_back(c.admit().first_token());
      it->second.running = true;
      m.mutable_kv_ready()->set_bytes(4096);
      m.mutable_kv_ready()->set_transport("mapped");
      m.mutable_kv_ready()->set_gb_per_s(1);
      stream->Write(m);
    }
    w.changed_.notify_all();
  }
  {
    std::lock_guard lock(w.mu_);
    over_ = true;
    w.seqs_.clear();
  }
  w.changed_.notify_all();
  steps.join();
  return context->IsCancelled() ? grpc::Status::CANCELLED : grpc::Status::OK;
}

// ---- prefill ----

grpc::Status FakeWorker::Prefill::Run(
    grpc::ServerContext*, grpc::ServerReaderWriter<prefill::v1::RunResponse, prefill::v1::RunRequest>* stream) {
  FakeWorker& w = w_;
  prefill::v1::RunRequest c;
  while (stream->Read(&c)) {
    std::unique_lock lock(w.mu_);
    prefill::v1::RunResponse m;
    m.set_seq(c.seq());
    m.set_attempt(c.attempt());
    if (c.has_hello()) {
      m.mutable_hello()->set_incarnation(w.incarnation_);
      m.mutable_hello()->set_worker_id(w.options_.id);
      stream->Write(m);
    } else if (c.has_cancel() || c.has_release_kv()) {
      ++(c.has_cancel() ? w.cancels_ : w.releases_);
      w.seqs_.erase(c.seq());
    } else if (c.has_start()) {
      const Seq s = FromSpec(c.start(), c.attempt());
      w.seqs_[c.seq()] = s;
      m.mutable_admitted()->mutable_kv()->set_worker_id(w.options_.id);
      stream->Write(m);
      if (w.options_.first_token_us > 0) {
        w.changed_.wait_for(lock, std::chrono::microseconds(w.options_.first_token_us), [&w] { return w.dead_; });
      }
      m.mutable_first_token()->set_token(
          ToyToken(s.tokens, s.prompt_tokens, s.seed, w.options_.end_token, w.options_.end_every));
      m.mutable_first_token()->mutable_kv()->set_worker_id(w.options_.id);
      m.mutable_first_token()->set_prefill_ms(1);
      stream->Write(m);
    }
  }
  std::lock_guard lock(w.mu_);
  w.seqs_.clear();
  return grpc::Status::OK;
}

}  // namespace agentserve::router
