// A simulated cluster around the router core: fake workers with a toy model (the next token is a hash of all tokens so
// far and the seed), links with delays, repeats and late messages, crashes, callers that cancel. One seed, one history.
// Test code.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "router/core/router_core.h"

namespace agentserve::router::sim {

inline constexpr TokenId kEndToken = 1;
inline constexpr uint32_t kVocab = 97;

// The toy model. Deterministic in (tokens, seed), as real sampling is in (tokens, seed, position).
TokenId NextToken(const std::vector<TokenId>& tokens, uint64_t seed);
// The undisturbed output of sequence `index`.
std::vector<TokenId> Reference(const Submission& sub, uint32_t index);

struct SimOptions {
  uint64_t seed = 1;
  uint32_t prefill_workers = 2, decode_workers = 2;
  uint32_t requests = 60;
  uint32_t max_batch = 4;
  uint32_t blocks = 64;
  TimeNs arrivals_over = 4 * base::kNsPerSecond;
  TimeNs faults_until = 6 * base::kNsPerSecond;
  double kill_every_s = 0;    // mean time between crashes; 0 = none
  double cancel_share = 0;    // of requests
  double deadline_share = 0;  // of requests get a short one
  double repeat_share = 0;    // of messages are delivered twice
  double fail_share = 0;      // of worker replies are Failed
  double stop_share = 0;      // of requests end by a stop string
  CoreConfig core;
};

class SimCluster {
 public:
  explicit SimCluster(SimOptions options);
  // Runs until all requests ended; aborts with the seed when that takes longer than faults allow.
  void Run();

  struct Client {
    Submission sub;
    RequestKey key;
    bool refused = false;
    std::vector<std::vector<TokenId>> tokens;
    std::vector<bool> seq_ended;
    std::vector<FinishReason> seq_reason;
    uint32_t ends = 0;
    EndReason reason = EndReason::kDone;
    std::string message;
    uint32_t stop_after = 0;  // > 0: the edge stops sequence 0 after so many tokens
  };
  const std::vector<Client>& clients() const { return clients_; }
  RouterCore& core() { return *core_; }
  uint32_t kills() const { return kills_; }
  // Sequences and prompts still held by live workers.
  size_t held_by_workers() const;

 private:
  struct FakeSeq {
    uint32_t attempt = 0;
    std::shared_ptr<const SequenceSpec> spec;
    std::vector<TokenId> tokens;
    bool running = false;
    uint32_t blocks = 0;
    uint32_t steps = 0;
  };
  struct FakeWorker {
    std::string name;
    Role role = Role::kDecode;
    uint64_t incarnation = 0;
    bool alive = false;
    bool linked = false;
    uint64_t link = 0;
    WorkerId id;
    uint64_t step = 0;
    bool stepping = false;
    TimeNs last_up = 0, last_down = 0;  // delivery times on the link: it keeps order
    std::map<uint64_t, FakeSeq> seqs;
  };

  void At(TimeNs when, std::function<void()> f) { events_.emplace(std::max(when, now_), std::move(f)); }
  TimeNs Jitter(TimeNs most) { return static_cast<TimeNs>(rng_.Below(static_cast<uint64_t>(most)) + 1); }
  void AddClient(uint32_t i);
  void Heartbeat(size_t w, uint64_t incarnation);
  void Up(size_t w);
  void Kill(size_t w);
  void BreakLink(size_t w);
  void ScheduleKill();
  void Drain();
  void Carry(const Command& c);
  void Obey(FakeWorker* w, size_t index, const Command& c);
  void ObeyDecode(FakeWorker* w, size_t index, const Command& c);
  void ObeyPrefill(FakeWorker* w, size_t index, const Command& c);
  void Say(size_t w, std::function<void(WorkerId)> event);
  void SayLoad(size_t w);
  void Step(size_t w, uint64_t incarnation);
  uint32_t UsedBlocks(const FakeWorker& w) const;
  bool FailNow() { return now_ < options_.faults_until && rng_.Uniform() < options_.fail_share; }

  const SimOptions options_;
  base::SplitMix64 rng_;
  TimeNs now_ = base::kNsPerSecond;
  std::multimap<TimeNs, std::function<void()>> events_;
  std::unique_ptr<RouterCore> core_;
  std::vector<FakeWorker> workers_;
  std::vector<Client> clients_;
  std::map<RequestKey, size_t> by_key_;
  uint32_t ended_ = 0, kills_ = 0;
};

}  // namespace agentserve::router::sim
