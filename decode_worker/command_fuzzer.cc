// Any series of wire commands, in any order and with any content, leaves the decode worker's core sound: no crash,
// blocks conserved, each accepted sequence closed once.
//
// Input: records of [1 byte what][1 byte n][n bytes]. what % 4: 0 or 1 = a decode.v1.RunRequest of n bytes, 2 = end the
// pull of sequence n, 3 = n milliseconds pass. After each record one step is planned, unless two are in flight; then
// the oldest one ends, with made-up tokens, unless what & 4 leaves it in flight and there is room for another.
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "agentserve/decode/v1/decode.pb.h"
#include "base/check.h"
#include "decode_worker/core/core.h"
#include "decode_worker/wire.h"
#include "worker/convert.h"

namespace agentserve::decode_worker {
namespace {

namespace wire = agentserve::decode::v1;
using engine::SeqId;

Options SmallWorker() {
  Options o;
  o.pool.num_blocks = 12;
  o.planner.block_tokens = 4;
  o.planner.max_batch = 4;
  o.planner.step_tokens = 16;
  o.planner.context_length = 40;
  o.planner.end_tokens = {7};
  o.queue.max_waiting = 8;
  o.queue.max_waiting_tokens = 256;
  o.vocab_size = 256;
  o.tiers.host_slots = 10;
  o.tiers.block_bytes = 64;
  o.tiers.copy_blocks = 3;
  return o;
}

class Rig {
 public:
  void Command(std::span<const uint8_t> bytes) {
    wire::RunRequest request;
    if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
    if (request.has_reserve()) {
      Reserve reserve;
      const SeqId id(++minted_);
      reserve.spec = worker::SpecFromWire(request.reserve(), id, 40);
      reserve.budget_ns = worker::BudgetNs(request.reserve().budget_ms());
      ids_[request.seq() % 16] = id;
      open_[id] = true;
      return core_.Step(reserve, now_);
    }
    const auto it = ids_.find(request.seq() % 16);
    if (it == ids_.end()) return;
    const SeqId id = it->second;
    if (request.has_retain()) core_.Step(Retain{id, FromWire(request.retain())}, now_);
    if (request.has_prefetch()) core_.Step(Prefetch{id, worker::BudgetNs(request.prefetch().ttl_ms())}, now_);
    if (!open_[id]) return;
    if (request.has_attach()) core_.Step(Attach{id, FromWire(request.attach().kv())}, now_);
    if (request.has_admit()) core_.Step(Admit{id, request.admit().first_token(), FromWire(request.admit().kv())}, now_);
    if (request.has_prefill_local()) core_.Step(PrefillLocal{id}, now_);
    if (request.has_preempt()) core_.Step(Preempt{id}, now_);
    if (request.has_cancel()) core_.Step(Cancel{id}, now_);
  }

  // Ends the pull of a sequence the way a puller would: kOk only after FinishPull.
  void EndPull(uint8_t which) {
    for (auto& [id, may_be_ok] : pulls_) {
      if (id.value % 16 != which % 16) continue;
      const PullOutcome outcomes[] = {may_be_ok ? PullOutcome::kOk : PullOutcome::kFailed, PullOutcome::kInvalid,
                                      PullOutcome::kFailed, PullOutcome::kAborted};
      const PullEnded ended{id, outcomes[which / 16 % 4], "mapped", 64, 1000};
      pulls_.erase(id);
      core_.Step(ended, now_);
      return;
    }
  }

  // Ends a copy to or from the host: all of it, a part, or with a block that is not what was stored.
  void EndCopy(uint8_t which) {
    if (copies_.empty()) return;
    const auto it = copies_.begin() + which % copies_.size();
    const engine::HostCopy copy = std::move(*it);
    copies_.erase(it);
    const auto blocks = static_cast<uint32_t>(copy.blocks.size());
    engine::CopyEnded ended{copy.job, blocks, false, 1000};
    if (which & 64) ended.good = which % blocks;
    if (!copy.to_host && ended.good < blocks) ended.corrupt = (which & 128) != 0;
    core_.Step(ended, now_);
  }

  void Pass(uint8_t ms) {
    now_ += ms * base::kNsPerMs;
    core_.Step(Tick{}, now_);
  }

  void Turn(bool leave) {
    Settle();
    if (steps_.size() < engine::Planner::kMaxInFlight) Plan();
    if (!steps_.empty() && (!leave || steps_.size() == engine::Planner::kMaxInFlight)) {
      const StepDone done = std::move(steps_.front());
      steps_.pop_front();
      core_.Step(done, now_);
      Settle();
    }
    core_.CheckInvariants();
  }

 private:
  void Plan() {
    const engine::PlannedStep* step = core_.PlanStep(now_);
    core_.TakeBlockChanges();
    Settle();
    if (step == nullptr) return;
    StepDone done;
    for (const engine::SeqSlice& slice : step->plan.slices) {
      if (!slice.sample) continue;
      done.output.tokens.emplace_back();
      done.output.tokens.back().seq = slice.seq;
      done.output.tokens.back().token = (slice.history.back() * 31 + slice.start) % 256;
    }
    done.digests.assign(step->seals.size(), 5);
    steps_.push_back(std::move(done));
  }

  void Settle() {
    for (const Effect& effect : core_.TakeEffects()) {
      if (const auto* start = std::get_if<StartPull>(&effect)) pulls_[start->seq] = false;
      if (const auto* finish = std::get_if<FinishPull>(&effect)) pulls_[finish->seq] = true;
      if (const auto* copy = std::get_if<engine::HostCopy>(&effect)) copies_.push_back(*copy);
      if (const auto* closed = std::get_if<Closed>(&effect)) {
        AS_CHECK(open_[closed->seq]) << "closed twice: " << closed->seq;
        open_[closed->seq] = false;
      }
    }
  }

  Core core_{SmallWorker()};
  std::deque<StepDone> steps_;  // in flight, with what they will give
  base::TimeNs now_ = 1;
  uint64_t minted_ = 0;
  std::map<uint64_t, SeqId> ids_;
  std::map<SeqId, bool> open_;  // accepted and not closed
  std::vector<engine::HostCopy> copies_;
  std::map<SeqId, bool> pulls_;  // running pulls; true after FinishPull
};

}  // namespace
}  // namespace agentserve::decode_worker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  agentserve::decode_worker::Rig rig;
  std::span<const uint8_t> in(data, size);
  while (in.size() >= 2) {
    const uint8_t what = in[0], n = in[1];
    in = in.subspan(2);
    if (what % 4 == 2) {
      rig.EndPull(n);
    } else if (what % 4 == 3) {
      rig.Pass(n);
      rig.EndCopy(n);
    } else {
      const size_t length = std::min<size_t>(n, in.size());
      rig.Command(in.first(length));
      in = in.subspan(length);
    }
    rig.Turn((what & 4) != 0);
  }
  return 0;
}
