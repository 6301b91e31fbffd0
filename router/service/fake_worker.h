// Workers with a toy model, for tests and benches of the router service: real gRPC servers, no maths.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "agentserve/decode/v1/decode.grpc.pb.h"
#include "agentserve/prefill/v1/prefill.grpc.pb.h"
#include "agentserve/router/v1/cluster.grpc.pb.h"

namespace agentserve::router {

// The token after `tokens`: a lower-case ASCII byte, as a function of tokens and seed. `end` may come instead of any
// token but the first with probability 1/`end_every` (0 = never).
uint32_t ToyToken(const std::vector<uint32_t>& tokens, uint32_t prompt_tokens, uint64_t seed, uint32_t end,
                  uint32_t end_every);

struct FakeWorkerOptions {
  std::string id = "decode-0";
  std::string router;  // host:port
  std::string model_id = "tiny";
  std::string fingerprint = "f00d";
  uint64_t layout = 77;
  bool prefill = false;
  uint32_t end_token = 957;
  uint32_t end_every = 0;
  uint32_t blocks = 10'000;
  uint32_t max_batch = 256;
  int step_us = 1000;
  int first_token_us = 0;  // prefill time
};

class FakeWorker final {
 public:
  explicit FakeWorker(FakeWorkerOptions options);
  ~FakeWorker() { Kill(); }
  // Registers once now, then heartbeats until Kill. The status of the first registration.
  grpc::Status Join();
  // Breaks the link at once and stops heartbeats, as a crash does.
  void Kill();

  uint32_t live() const;
  uint64_t cancels() const { return cancels_; }
  uint64_t retains() const { return retains_; }
  uint64_t releases() const { return releases_; }
  uint64_t locals() const { return locals_; }

 private:
  struct Seq {
    uint32_t attempt = 0, prompt_tokens = 0, max_tokens = 0, steps = 0;
    uint64_t seed = 0;
    int top_logprobs = -1;
    std::vector<uint32_t> tokens;
    bool running = false;
  };
  class Decode final : public decode::v1::DecodeService::Service {
   public:
    explicit Decode(FakeWorker* w) : w_(*w) {}
    grpc::Status Run(grpc::ServerContext* context,
                     grpc::ServerReaderWriter<decode::v1::RunResponse, decode::v1::RunRequest>* stream) override;

   private:
    void StepLoop(grpc::ServerReaderWriter<decode::v1::RunResponse, decode::v1::RunRequest>* stream);
    bool OneStep(decode::v1::StepResult* out, std::vector<std::pair<uint64_t, Seq>>* finished);
    FakeWorker& w_;
    bool over_ = false;
  };
  class Prefill final : public prefill::v1::PrefillService::Service {
   public:
    explicit Prefill(FakeWorker* w) : w_(*w) {}
    grpc::Status Run(grpc::ServerContext* context,
                     grpc::ServerReaderWriter<prefill::v1::RunResponse, prefill::v1::RunRequest>* stream) override;

   private:
    FakeWorker& w_;
  };
  v1::RegisterRequest Registration() const;
  template <typename Reserve>
  static Seq FromSpec(const Reserve& r, uint32_t attempt);

  const FakeWorkerOptions options_;
  const uint64_t incarnation_;
  Decode decode_{this};
  Prefill prefill_{this};
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::ClusterService::Stub> router_;
  std::thread heartbeat_;
  mutable std::mutex mu_;
  std::condition_variable changed_;
  bool dead_ = false;             // guarded by mu_
  std::map<uint64_t, Seq> seqs_;  // guarded by mu_
  uint64_t step_ = 0;             // guarded by mu_
  std::atomic<uint64_t> cancels_{0}, retains_{0}, releases_{0}, locals_{0};
};

}  // namespace agentserve::router
