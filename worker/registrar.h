// Announces the worker to the router, again and again, until it stops. One background thread; thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "agentserve/router/v1/cluster.grpc.pb.h"

namespace agentserve::worker {

class Registrar {
 public:
  struct Options {
    std::string router;  // host:port
    agentserve::router::v1::RegisterRequest request;
    // Asked for each time; may be empty.
    std::function<double()> prefill_tokens_per_s;
    // Called (once, on the registrar's thread) when the router says that this worker does not belong to its cluster.
    std::function<void(const std::string&)> on_refused;
  };
  explicit Registrar(Options options);
  ~Registrar();  // stops

  // From the next heartbeat on, which goes out at once, the router sends no more work.
  void SetDraining();
  // True once the router has heard so.
  bool draining_known() const { return draining_known_; }
  bool registered() const { return registered_; }

 private:
  void Run();
  // Returns how long to wait until the next one, in milliseconds.
  int64_t Beat();

  const Options options_;
  std::unique_ptr<agentserve::router::v1::ClusterService::Stub> stub_;
  std::atomic<bool> registered_{false}, draining_known_{false};
  uint64_t router_incarnation_ = 0;  // registrar thread only
  int failures_ = 0;                 // registrar thread only
  bool refused_ = false;             // registrar thread only

  std::mutex mu_;  // guards below
  std::condition_variable cv_;
  bool stop_ = false, draining_ = false, hurry_ = false;
  grpc::ClientContext* in_flight_ = nullptr;
  std::thread thread_;
};

// A channel to another service of the cluster: keepalive so that a silent death is noticed, bounded messages.
std::shared_ptr<grpc::Channel> ConnectChannel(const std::string& address);

}  // namespace agentserve::worker
