// One prefill core, one decode core, a puller and a router model in one thread, over toy memories whose rows are
// checked. Links are ordered; everything else (who moves next, how far a copy is, when it ends) is drawn from one seed.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "base/rng.h"
#include "decode_worker/core/core.h"
#include "engine/testing/toy_model.h"
#include "engine/testing/toy_pipeline.h"
#include "prefill_worker/core/core.h"

namespace agentserve {

namespace dc = decode_worker;
namespace pf = prefill_worker;
using engine::SeqId;
using engine::TokenId;

struct ToyFaults {
  bool corrupt_copies = false;
  bool early_reuse = false;  // holds end before the pull: the prefill worker's blocks are overwritten
  bool cancels = false;
  bool preempts = false;
  bool deadlines = false;
  bool prefill_loss = false;
  bool corrupt_host = false;  // bits of blocks in host memory flip
  bool lost_copies = false;   // copies to and from the host fail half-way
};

class ToyCluster {
 public:
  struct Shape {
    uint32_t block_tokens = 4, p_blocks = 16, d_blocks = 16, batch = 4, step_tokens = 16;
    bool cache = true;
    double remote_share = 0.5;
    size_t steps_in_flight = 1;
    uint32_t host_slots = 0, p_host_slots = 0;
  };
  ToyCluster(uint64_t seed, const Shape& shape, const ToyFaults& faults)
      : rng(seed),
        faults_(faults),
        shape_(shape),
        context_(std::min(shape.p_blocks, shape.d_blocks) * shape.block_tokens),
        p_memory(shape.p_blocks, shape.block_tokens),
        d_memory(shape.d_blocks, shape.block_tokens),
        d_host(shape.host_slots, shape.block_tokens),
        p_host(shape.p_host_slots, shape.block_tokens),
        p_executor(&p_memory),
        d_executor(&d_memory),
        p_pipeline(&p_executor),
        d_pipeline(&d_executor),
        p(POptions()),
        d(DOptions()) {}

  uint32_t context() const { return context_; }

  void Submit(std::vector<TokenId> prompt, uint32_t max_tokens, base::TimeNs budget) {
    const SeqId id(next_id_++);
    Request& r = requests[id];
    r.prompt = prompt;
    r.want = engine::ToyGenerate(prompt, static_cast<uint32_t>(prompt.size()), id.value, max_tokens, context_);
    r.max_tokens = max_tokens;
    r.budget = budget;
    r.remote = rng.Uniform() < shape_.remote_share;
    ToD(dc::Reserve{Spec(id), budget});
    d_started.insert(id);
  }

  // One random move. False: nothing at all could be done.
  bool Move() {
    now += static_cast<base::TimeNs>(rng.Below(1000));
    bool moved = false;
    const uint64_t kinds = shape_.host_slots > 0 ? 6 : 5;
    const uint64_t first = rng.Below(kinds);
    for (uint64_t i = 0; i < kinds && !moved; ++i) {
      switch ((first + i) % kinds) {
        case 0:
          moved = DeliverTo(&to_p_, [&](const pf::Event& e) { StepP(e); });
          break;
        case 1:
          moved = DeliverTo(&to_d_, [&](const dc::Event& e) { StepD(e); });
          break;
        case 2:
          moved = RunP();
          break;
        case 3:
          moved = RunD();
          break;
        case 5:
          moved = MoveCopy(&copies_, &d_memory, &d_host, [&](const dc::CopyEnded& e) { StepD(e); }) ||
                  MoveCopy(&p_copies_, &p_memory, &p_host, [&](const pf::CopyEnded& e) { StepP(e); });
          break;
        default:
          moved = MovePull();
          break;
      }
    }
    if (!moved) {
      StepP(pf::Tick{});
      StepD(dc::Tick{});
      moved = !to_p_.empty() || !to_d_.empty();
    }
    Disturb();
    p.CheckInvariants();
    d.CheckInvariants();
    return moved;
  }

  struct Request {
    std::vector<TokenId> prompt, want, got;
    uint32_t max_tokens = 0;
    base::TimeNs budget = 0;
    bool remote = false, on_p = false, admit_sent = false, cancelled = false;
    bool ended = false, failed = false;
    std::string failure;
  };

  base::SplitMix64 rng;
  base::TimeNs now = 1;
  std::map<SeqId, Request> requests;
  std::map<SeqId, int> p_closed, d_closed;
  std::set<SeqId> p_started, d_started;
  uint64_t invalid_seen = 0, recomputes = 0, pulled = 0, planned_ahead = 0, host_hits = 0;
  bool calm = false;  // true: no more disturbances

 private:
  struct PullJob {
    dc::StartPull start;
    bool finish = false, abort = false;
    dc::RemoteKv final_kv;
  };

 public:
  const ToyFaults faults_;
  const Shape shape_;
  const uint32_t context_;
  engine::ToyMemory p_memory, d_memory, d_host, p_host;
  engine::ToyExecutor p_executor, d_executor;
  engine::ToyPipeline p_pipeline, d_pipeline;
  pf::Core p;
  dc::Core d;

 private:
  engine::Planner::Options PlannerOptions() const {
    engine::Planner::Options o;
    o.block_tokens = shape_.block_tokens;
    o.max_batch = shape_.batch;
    o.step_tokens = shape_.step_tokens;
    o.context_length = context_;
    o.end_tokens = {engine::kToyEnd};
    return o;
  }
  static engine::KvTiers::Options TierOptions(uint32_t slots) {
    engine::KvTiers::Options o;
    o.host_slots = slots;
    o.block_bytes = 1;
    o.copy_blocks = 3;
    o.max_pending = 4;
    return o;
  }
  pf::Options POptions() const {
    pf::Options o;
    o.pool = {shape_.p_blocks, shape_.cache};
    o.planner = PlannerOptions();
    o.vocab_size = engine::kToyVocab;
    o.max_offers = 6;
    o.hold_ns = faults_.early_reuse ? 3000 : 1'000'000;
    o.tiers = TierOptions(shape_.p_host_slots);
    o.tiers.store_ordinary = true;
    return o;
  }
  dc::Options DOptions() const {
    dc::Options o;
    o.pool = {shape_.d_blocks, shape_.cache};
    o.planner = PlannerOptions();
    o.vocab_size = engine::kToyVocab;
    o.tiers = TierOptions(shape_.host_slots);
    o.max_finished = 8;
    return o;
  }
  engine::SequenceSpec Spec(SeqId id) {
    const Request& r = requests.at(id);
    engine::SequenceSpec s;
    s.id = id;
    s.tokens = r.prompt;
    s.prompt_tokens = static_cast<uint32_t>(r.prompt.size());
    s.sampling.max_tokens = r.max_tokens;
    s.sampling.seed = id.value;
    return s;
  }

  template <typename E, typename F>
  bool DeliverTo(std::deque<E>* link, F step) {
    if (link->empty()) return false;
    const E event = link->front();
    link->pop_front();
    step(event);
    return true;
  }
  void ToP(pf::Event e) { to_p_.push_back(std::move(e)); }
  void ToD(dc::Event e) { to_d_.push_back(std::move(e)); }

  static dc::RemoteKv ToRemote(const std::vector<pf::OfferedBlock>& blocks) {
    dc::RemoteKv kv;
    kv.worker_id = "p";
    for (const auto& b : blocks) kv.blocks.push_back({b.block.value, b.epoch.value, b.tokens, b.digest});
    return kv;
  }

  void StepP(const pf::Event& e) {
    p.Step(e, now);
    p.TakeBlockChanges();
    for (pf::Effect& effect : p.TakeEffects()) std::visit([&](auto& x) { OnP(x); }, effect);
  }
  void OnP(pf::Admitted& e) { ToD(dc::Attach{e.seq, ToRemote(e.blocks)}); }
  void OnP(pf::HostCopy& e) { p_copies_.push_back(e); }
  void OnP(pf::ChunkDone&) {}
  void OnP(pf::FirstToken& e) {
    Request& r = requests.at(e.seq);
    if (r.ended || !r.on_p) return ToP(pf::ReleaseKv{e.seq});
    r.got.push_back(e.token.token);
    if (e.token.token == engine::kToyEnd || r.max_tokens == 1 || r.prompt.size() + 1 >= context_) {
      r.ended = true;
      ToD(dc::Cancel{e.seq});
      ToP(pf::ReleaseKv{e.seq});
      return;
    }
    r.admit_sent = true;
    ToD(dc::Admit{e.seq, e.token.token, ToRemote(e.blocks)});
  }
  void OnP(pf::Failed& e) { LoseP(e.seq); }
  void OnP(pf::Closed& e) { ++p_closed[e.seq]; }
  void LoseP(SeqId id) {
    Request& r = requests.at(id);
    if (r.on_p && !r.admit_sent && !r.ended) ToD(dc::PrefillLocal{id});
    r.on_p = false;
  }

  void StepD(const dc::Event& e) {
    d.Step(e, now);
    AfterD();
  }
  void AfterD() {
    d.TakeBlockChanges();
    for (dc::Effect& effect : d.TakeEffects()) std::visit([&](auto& x) { OnD(x); }, effect);
  }
  void OnD(dc::Reserved& e) {
    Request& r = requests.at(e.seq);
    if (r.ended) return;
    if (!r.remote) return ToD(dc::PrefillLocal{e.seq});
    r.on_p = true;
    p_started.insert(e.seq);
    ToP(pf::Start{Spec(e.seq), r.budget});
  }
  void OnD(dc::StartPull& e) {
    EXPECT_FALSE(pulls_.contains(e.seq));
    pulls_[e.seq].start = e;
  }
  void OnD(dc::FinishPull& e) {
    ASSERT_TRUE(pulls_.contains(e.seq));
    pulls_[e.seq].finish = true;
    pulls_[e.seq].final_kv = e.kv;
  }
  void OnD(dc::AbortPull& e) {
    if (pulls_.contains(e.seq)) pulls_[e.seq].abort = true;
  }
  void OnD(dc::HostCopy& e) {
    EXPECT_FALSE(e.blocks.empty());
    EXPECT_EQ(e.blocks.size(), e.slots.size());
    EXPECT_EQ(e.blocks.size(), e.digests.size());
    copies_.push_back(e);
  }
  void OnD(dc::KvReady& e) {
    invalid_seen += e.invalid;
    recomputes += e.transport == "recompute";
    pulled += e.transport == "toy";
    ToP(pf::ReleaseKv{e.seq});
  }
  void OnD(dc::StepTokens& e) {
    for (const dc::TokenOut& t : e.tokens) {
      Request& r = requests.at(t.token.seq);
      EXPECT_FALSE(r.failed) << "a token after the end";
      if (!r.ended) r.got.push_back(t.token.token);
    }
  }
  void OnD(dc::Finished& e) {
    EXPECT_FALSE(requests.at(e.seq).failed);
    EXPECT_LE(e.host_tokens, e.cached_tokens);
    host_hits += e.host_tokens;
    if (rng.Below(2)) ToD(dc::Retain{e.seq, AnyKeep()});
    requests.at(e.seq).ended = true;
  }
  void OnD(dc::Failed& e) {
    Request& r = requests.at(e.seq);
    if (r.ended) return;
    r.ended = r.failed = true;
    r.failure = e.failure.reason;
    if (r.on_p) ToP(pf::Cancel{e.seq});
  }
  void OnD(dc::Closed& e) { ++d_closed[e.seq]; }

  // Launches a step, or finishes the oldest one, or both; with one step at a time, both.
  bool RunP() {
    const engine::PlannedStep* step = p_steps_.size() < shape_.steps_in_flight ? p.PlanStep(now) : nullptr;
    if (step != nullptr) {
      EXPECT_TRUE(p_pipeline.Launch(step->plan).ok());
      p_steps_.push_back(step);
    }
    if (p_steps_.empty()) return false;
    if (p_steps_.size() < shape_.steps_in_flight && step != nullptr && rng.Below(2)) return true;
    pf::StepDone done;
    EXPECT_TRUE(p_pipeline.Wait(&done.output).ok());
    for (const auto& s : p_steps_.front()->seals) done.digests.push_back(p_memory.Digest(s.block, s.tokens));
    p_steps_.pop_front();
    if (rng.Below(4) == 0)
      DeliverTo(&to_p_, [&](const pf::Event& e) { StepP(e); });  // commands in the middle of a step
    StepP(done);
    return true;
  }
  bool RunD() {
    const engine::PlannedStep* step = d_steps_.size() < shape_.steps_in_flight ? d.PlanStep(now) : nullptr;
    if (step != nullptr) {
      EXPECT_TRUE(d_pipeline.Launch(step->plan).ok());
      d_steps_.push_back(step);
      for (const engine::SeqSlice& slice : step->plan.slices) planned_ahead += slice.input_pending;
    }
    AfterD();
    if (d_steps_.empty()) return false;
    if (d_steps_.size() < shape_.steps_in_flight && step != nullptr && rng.Below(2)) return true;
    dc::StepDone done;
    EXPECT_TRUE(d_pipeline.Wait(&done.output).ok());
    if (rng.Below(4) == 0) MovePull();
    for (const auto& s : d_steps_.front()->seals) done.digests.push_back(d_memory.Digest(s.block, s.tokens));
    d_steps_.pop_front();
    if (rng.Below(4) == 0) DeliverTo(&to_d_, [&](const dc::Event& e) { StepD(e); });
    StepD(done);
    return true;
  }

  void Copy(PullJob* job, const dc::RemoteKv& kv, size_t i) {
    for (uint32_t row = 0; row < shape_.block_tokens; ++row) {
      uint64_t value = p_memory.Row(engine::BlockId(kv.blocks[i].index), row);
      if (faults_.corrupt_copies && !calm && rng.Below(60) == 0) value ^= uint64_t{1} << rng.Below(64);
      d_memory.Row(job->start.blocks[i], row) = value;
    }
  }
  bool MovePull() {
    if (pulls_.empty()) return false;
    auto it = pulls_.begin();
    std::advance(it, static_cast<long>(rng.Below(pulls_.size())));
    PullJob& job = it->second;
    const size_t n = job.start.blocks.size();
    const SeqId id = it->first;
    if (!job.finish && !job.abort) {
      Copy(&job, job.start.kv, job.start.first + rng.Below(n - job.start.first));
      return rng.Below(2) == 0;
    }
    dc::PullEnded ended;
    ended.seq = id;
    ended.transport = "toy";
    if (job.abort) {
      for (size_t i = job.start.first; i < n; ++i) Copy(&job, job.start.kv, i);  // late writes
      ended.outcome = dc::PullOutcome::kAborted;
    } else {
      ended.outcome = dc::PullOutcome::kOk;
      for (size_t i = job.start.first; i < n; ++i) {
        const dc::RemoteBlock& b = job.final_kv.blocks[i];
        Copy(&job, job.final_kv, i);
        if (p.pool().epoch(engine::BlockId(b.index)).value != b.epoch ||
            d_memory.Digest(job.start.blocks[i], b.tokens) != b.digest) {
          ended.outcome = dc::PullOutcome::kInvalid;
        }
      }
    }
    pulls_.erase(it);
    StepD(ended);
    return true;
  }

  engine::KvTiers::Keep AnyKeep() {
    constexpr engine::KeepWhere kPlaces[] = {engine::KeepWhere::kDevice, engine::KeepWhere::kHost,
                                             engine::KeepWhere::kHost, engine::KeepWhere::kDrop};
    return {kPlaces[rng.Below(4)], static_cast<base::TimeNs>(rng.Below(40'000)),
            static_cast<uint32_t>(1 + rng.Below(8 * engine::BlockPool::kBaseWorth))};
  }

  // Carries out one copy to or from the host, any of those that wait.
  template <typename F>
  bool MoveCopy(std::vector<engine::HostCopy>* copies, engine::ToyMemory* device, engine::ToyMemory* host, F step) {
    if (copies->empty()) return false;
    std::swap((*copies)[rng.Below(copies->size())], copies->back());
    const engine::HostCopy copy = copies->back();
    copies->pop_back();
    engine::CopyEnded ended;
    ended.job = copy.job;
    ended.copy_ns = 10;
    for (size_t i = 0; i < copy.blocks.size(); ++i) {
      if (faults_.lost_copies && !calm && rng.Below(40) == 0) break;
      const engine::BlockId slot(copy.slots[i].value);
      for (uint32_t row = 0; row < shape_.block_tokens; ++row) {
        uint64_t& there = host->Row(slot, row);
        uint64_t& here = device->Row(copy.blocks[i], row);
        if (copy.to_host) {
          there = here;
          if (faults_.corrupt_host && !calm && rng.Below(200) == 0) there ^= uint64_t{1} << rng.Below(64);
        } else {
          here = there;
        }
      }
      if (!copy.to_host && device->Digest(copy.blocks[i], copy.tokens[i]) != copy.digests[i]) {
        ended.corrupt = true;
        break;
      }
      ++ended.good;
    }
    step(ended);
    if (rng.Below(10) == 0) step(ended);  // a repeat changes nothing
    return true;
  }

  void Disturb() {
    if (calm || requests.empty()) return;
    auto it = requests.begin();
    std::advance(it, static_cast<long>(rng.Below(requests.size())));
    auto& [id, r] = *it;
    if (faults_.cancels && rng.Below(40) == 0 && !r.ended) {
      r.ended = r.cancelled = true;
      ToD(dc::Cancel{id});
      if (r.on_p) ToP(pf::Cancel{id});
    }
    if (faults_.preempts && rng.Below(25) == 0) ToD(dc::Preempt{id});
    if (shape_.host_slots > 0 && rng.Below(30) == 0) ToD(dc::Retain{id, AnyKeep()});
    if (shape_.host_slots > 0 && rng.Below(20) == 0) {
      ToD(dc::Prefetch{id, static_cast<base::TimeNs>(rng.Below(20'000))});
    }
    if (faults_.prefill_loss && rng.Below(60) == 0 && r.on_p) {
      ToP(pf::Cancel{id});
      LoseP(id);
    }
  }

  std::deque<pf::Event> to_p_;
  std::deque<dc::Event> to_d_;
  std::map<SeqId, PullJob> pulls_;
  std::vector<engine::HostCopy> copies_, p_copies_;
  std::deque<const engine::PlannedStep*> p_steps_, d_steps_;  // launched, oldest first
  uint64_t next_id_ = 1;
};

}  // namespace agentserve
