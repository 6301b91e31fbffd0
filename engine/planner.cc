#include "engine/planner.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/block_hash.h"

namespace agentserve::engine {
namespace {

// Stands for a token that is being sampled. Any valid id would do: nothing reads it.
constexpr TokenId kPlaceholder = 0;

uint32_t CeilDiv(uint64_t a, uint32_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

}  // namespace

Planner::Planner(Options options, BlockPool* pool) : options_(std::move(options)), pool_(pool) {
  AS_CHECK_GT(options_.block_tokens, 0u);
  AS_CHECK_GT(options_.max_batch, 0u);
  AS_CHECK_LE(options_.max_batch, options_.step_tokens) << "a step must have room for one token of each sequence";
  // KV of the last token of a sequence is never written, so context_length - 1 tokens must fit.
  AS_CHECK_GT(options_.context_length, 1u);
  AS_CHECK_LE(CeilDiv(options_.context_length - 1, options_.block_tokens), pool_->total());
}

void Planner::Add(SequenceSpec spec, bool runnable) {
  AS_CHECK(CanFit(spec.tokens.size())) << "sequence " << spec.id;
  AS_CHECK(spec.prompt_tokens >= 1 && spec.prompt_tokens <= spec.tokens.size());
  auto seq = std::make_unique<Sequence>();
  seq->id = spec.id;
  seq->tokens = std::move(spec.tokens);
  seq->prompt_tokens = spec.prompt_tokens;
  seq->sampling = std::move(spec.sampling);
  seq->rank = spec.rank;
  seq->arrival = next_arrival_++;
  seq->root = ChainRoot(spec.cache_salt, options_.layout_fingerprint);
  seq->blocks = BlockTable(pool_);
  seq->runnable = runnable;
  waiting_.insert(KeyOf(*seq));
  const bool fresh = sequences_.emplace(spec.id, std::move(seq)).second;
  AS_CHECK(fresh) << "sequence " << spec.id << " added twice";
}

Sequence* Planner::Find(SeqId id) {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? nullptr : it->second.get();
}

Sequence& Planner::Get(SeqId id) {
  Sequence* seq = Find(id);
  AS_CHECK(seq != nullptr) << "unknown sequence " << id;
  return *seq;
}

void Planner::MakeRunnable(SeqId id) {
  Sequence& seq = Get(id);
  if (seq.runnable) return;
  seq.runnable = true;
  Requeue(id);
}

void Planner::Requeue(SeqId id) {
  Sequence& seq = Get(id);
  if (seq.phase != Sequence::Phase::kDormant) return;
  seq.phase = Sequence::Phase::kWaiting;
  waiting_.insert(KeyOf(seq));
}

void Planner::Reorder(SeqId id, int64_t rank) {
  Sequence& seq = Get(id);
  std::set<Key>* set = seq.phase == Sequence::Phase::kWaiting  ? &waiting_
                       : seq.phase == Sequence::Phase::kActive ? &active_
                                                               : nullptr;
  if (set) set->erase(KeyOf(seq));
  seq.rank = rank;
  if (set) set->insert(KeyOf(seq));
}

std::vector<SeqId> Planner::AdmitWaiting(uint32_t most_active) {
  std::vector<SeqId> admitted;
  const uint32_t most = std::min(options_.max_batch, most_active);
  while (!waiting_.empty() && active_.size() < most) {
    Sequence& seq = Get(waiting_.begin()->id);
    if (!Admit(&seq)) break;
    admitted.push_back(seq.id);
  }
  return admitted;
}

bool Planner::Admit(Sequence* seq) {
  ExtendChain(seq->root, seq->tokens, options_.block_tokens, &seq->chain);
  // The last token is always computed: its logits are wanted.
  const size_t reusable = (seq->tokens.size() - 1) / options_.block_tokens;
  const std::span<const base::Hash128> chain = std::span(seq->chain).first(reusable);
  const uint32_t prefix = pool_->PrefixLength(chain);
  const uint32_t fresh = CeilDiv(seq->tokens.size(), options_.block_tokens) - prefix;
  // Room to grow for those that run, or the newcomer would be preempted at once.
  const uint32_t headroom = std::min(active(), std::max(1u, pool_->total() / 16));
  if (fresh + pool_->CachedPrefix(chain) + headroom > pool_->available()) return false;
  AS_CHECK_EQ(pool_->MatchPrefix(chain, &seq->blocks), prefix);
  AS_CHECK(pool_->Allocate(fresh, &seq->blocks));
  seq->computed = prefix * options_.block_tokens;
  seq->sealed = prefix;
  if (!seq->counted) seq->cached_tokens = seq->computed;
  waiting_.erase(KeyOf(*seq));
  seq->phase = Sequence::Phase::kActive;
  active_.insert(KeyOf(*seq));
  return true;
}

void Planner::DropBlocks(Sequence* seq) {
  AS_CHECK(!seq->busy());
  seq->blocks.Clear();
  seq->computed = 0;
  seq->sealed = 0;
  if (seq->phase == Sequence::Phase::kActive) active_.erase(KeyOf(*seq));
  if (seq->phase == Sequence::Phase::kWaiting) waiting_.erase(KeyOf(*seq));
}

void Planner::Erase(SeqId id) {
  Sequence& seq = Get(id);
  DropBlocks(&seq);
  sequences_.erase(id);
}

void Planner::Preempt(SeqId id) {
  Sequence& seq = Get(id);
  if (seq.phase != Sequence::Phase::kActive || seq.fate != Sequence::Fate::kKeep) return;
  seq.fate = Sequence::Fate::kPreempt;
  ++seq.preemptions;
  ++stats_.preemptions;
  if (seq.io) io_victims_.push_back(id);
  Settle(id);
}

void Planner::Remove(SeqId id) {
  Get(id).fate = Sequence::Fate::kRemove;
  Settle(id);
}

void Planner::EndIo(SeqId id) {
  Get(id).io = false;
  Settle(id);
}

void Planner::Settle(SeqId id) {
  Sequence& seq = Get(id);
  if (seq.busy() || seq.fate == Sequence::Fate::kKeep) return;
  if (seq.fate == Sequence::Fate::kRemove) {
    Erase(id);
    return;
  }
  DropBlocks(&seq);
  seq.fate = Sequence::Fate::kKeep;
  seq.phase = seq.runnable ? Sequence::Phase::kWaiting : Sequence::Phase::kDormant;
  if (seq.runnable) waiting_.insert(KeyOf(seq));
}

BlockTable Planner::TakeBlocks(SeqId id) {
  Sequence& seq = Get(id);
  AS_CHECK(!seq.busy() && seq.fate == Sequence::Fate::kKeep) << "sequence " << id;
  BlockTable blocks = std::move(seq.blocks);
  Erase(id);
  return blocks;
}

bool Planner::Grow(Sequence* seq, uint32_t tokens, bool may_preempt) {
  const uint32_t want = CeilDiv(tokens, options_.block_tokens);
  while (seq->blocks.size() < want) {
    if (pool_->Allocate(1, &seq->blocks)) continue;
    if (!may_preempt || !MakeRoom(*seq)) return false;
  }
  return true;
}

// Takes blocks from the lowest sequence. False: nothing to be had now; the sequence sits this step out (or lost its own
// blocks).
bool Planner::MakeRoom(const Sequence& seq) {
  for (const Key& key : active_) {
    if (Get(key.id).fate != Sequence::Fate::kKeep) return false;  // its blocks come back soon
  }
  const SeqId lowest = active_.rbegin()->id;
  if (lowest == seq.id) {
    if (active_.size() == 1) {  // a copy to the host holds the rest; it ends soon
      AS_CHECK_GT(pool_->held() + pool_->writing(), seq.blocks.size())
          << "sequence " << seq.id << " was admitted but does not fit the pool";
      return false;
    }
    Preempt(seq.id);
    return false;
  }
  const bool at_once = !Get(lowest).busy();
  Preempt(lowest);
  return at_once;
}

// Whether a token is needed after the one that the step in flight samples, unless that one ends the sequence.
bool Planner::NextTokenWanted(const Sequence& seq) const {
  return seq.generated() + 1 < seq.sampling.max_tokens && seq.known() + 1 < options_.context_length;
}

// One token: the only one that is known and not planned, or the one that the step in flight samples.
void Planner::AddDecode(Sequence* seq, PlannedStep* step) {
  const bool ahead = seq->unplanned() == 0;
  AS_CHECK(!ahead || seq->scheduled > 0) << "sequence " << seq->id << " has nothing to run";
  if (ahead && (!options_.plan_past_samples || seq->sampling.needs_history() || !NextTokenWanted(*seq))) return;
  if (!Grow(seq, seq->computed + seq->scheduled + 1, /*may_preempt=*/!ahead)) return;
  if (ahead) {
    seq->tokens.push_back(kPlaceholder);
    seq->awaits_token = true;
  }
  AddSlice(seq, 1, step);
}

void Planner::AddSlice(Sequence* seq, uint32_t count, PlannedStep* step) {
  const uint32_t start = seq->computed + seq->scheduled;
  const uint32_t end = start + count;
  const bool last = end == seq->tokens.size();
  SeqSlice slice;
  slice.seq = seq->id;
  slice.tokens = std::span<const TokenId>(seq->tokens).subspan(start, count);
  slice.input_pending = seq->awaits_token;
  slice.start = start;
  slice.blocks = seq->blocks.ids().first(CeilDiv(end, options_.block_tokens));
  slice.sample = last;
  if (last) {
    slice.sampling = &seq->sampling;
    slice.history = std::span<const TokenId>(seq->tokens);
    slice.prompt_tokens = seq->prompt_tokens;
  }
  step->plan.slices.push_back(slice);
  step->tokens += count;
  seq->scheduled += count;
  // Blocks that are full before this slice are sealed, or will be by the step in flight.
  const uint32_t full = end / options_.block_tokens;
  for (uint32_t i = start / options_.block_tokens; i < full; ++i) {
    step->seals.push_back({seq->id, seq->blocks[i], i, options_.block_tokens});
  }
  const uint32_t tail = end % options_.block_tokens;
  if (options_.seal_prompt_tail && last && tail > 0) step->seals.push_back({seq->id, seq->blocks[full], full, tail});
}

const PlannedStep* Planner::Plan() {
  AS_CHECK_LT(steps_.size(), kMaxInFlight);
  PlannedStep* step = &steps_.emplace_back();
  std::vector<SeqId> order;
  order.reserve(active_.size());
  for (const Key& key : active_) order.push_back(key.id);
  const auto usable = [](const Sequence& s) {
    return s.phase == Sequence::Phase::kActive && s.runnable && !s.io && s.fate == Sequence::Fate::kKeep;
  };
  for (SeqId id : order) {  // decodes
    Sequence& seq = Get(id);
    if (usable(seq) && seq.unplanned() <= 1) AddDecode(&seq, step);
  }
  for (SeqId id : order) {  // chunks of prompts
    if (step->tokens >= options_.step_tokens) break;
    Sequence& seq = Get(id);
    if (!usable(seq) || seq.unplanned() <= 1) continue;
    const uint32_t count = std::min(seq.unplanned(), options_.step_tokens - step->tokens);
    if (Grow(&seq, seq.computed + seq.scheduled + count, /*may_preempt=*/true)) AddSlice(&seq, count, step);
  }
  if (step->plan.slices.empty()) {
    steps_.pop_back();
    return nullptr;
  }
  step->number = step->plan.number = ++stats_.steps;
  return step;
}

void Planner::ApplySeals(const PlannedStep& step, const std::vector<uint64_t>& digests) {
  AS_CHECK_EQ(digests.size(), step.seals.size());
  for (size_t i = 0; i < step.seals.size(); ++i) {
    const SealRequest& request = step.seals[i];
    Sequence& seq = Get(request.seq);
    BlockPool::SealInfo info;
    info.digest = digests[i];
    info.tokens = request.tokens;
    if (request.tokens == options_.block_tokens) {
      const std::span<const TokenId> known = std::span(seq.tokens).first(seq.known());
      // Planned ahead of a token that was then dropped with its sequence: nobody can name this block.
      if ((request.index + 1) * options_.block_tokens > known.size()) continue;
      ExtendChain(seq.root, known, options_.block_tokens, &seq.chain);
      info.hash = seq.chain[request.index];
      if (request.index > 0) info.parent = seq.chain[request.index - 1];
      seq.sealed = request.index + 1;
    }
    pool_->Seal(request.block, info);
  }
}

void Planner::ForgetPlaceholder(Sequence* seq) {
  if (seq->awaits_token) seq->tokens.pop_back();
  seq->awaits_token = false;
}

Advance Planner::AdvanceOne(Sequence* seq, const SeqSlice& slice, const StepOutput& output, size_t next_token) {
  Advance advance;
  advance.seq = seq->id;
  advance.computed = seq->computed;
  if (!slice.sample) return advance;
  AS_CHECK_LT(next_token, output.tokens.size());
  advance.sampled = true;
  advance.token = output.tokens[next_token];
  AS_CHECK(advance.token.seq == seq->id) << "the executor mixed up sequences";
  CountPrefill(seq);
  ForgetPlaceholder(seq);
  seq->tokens.push_back(advance.token.token);
  ++stats_.generated_tokens;
  advance.finish = StopAfter({advance.token.token, static_cast<uint32_t>(seq->tokens.size()), seq->generated()},
                             seq->sampling, options_.end_tokens, options_.context_length);
  return advance;
}

std::vector<Advance> Planner::Complete(const StepOutput& output, const std::vector<uint64_t>& digests) {
  AS_CHECK(!steps_.empty());
  const PlannedStep step = std::move(steps_.front());
  steps_.pop_front();
  ApplySeals(step, digests);
  std::vector<Advance> advances;
  size_t next_token = 0;
  for (const SeqSlice& slice : step.plan.slices) {
    Sequence& seq = Get(slice.seq);
    const uint32_t count = static_cast<uint32_t>(slice.tokens.size());
    seq.computed += count;
    seq.scheduled -= count;
    stats_.computed_tokens += count;
    if (seq.fate == Sequence::Fate::kKeep) {
      advances.push_back(AdvanceOne(&seq, slice, output, next_token));
    } else {
      ForgetPlaceholder(&seq);
    }
    if (slice.sample) ++next_token;
    Settle(slice.seq);
  }
  AS_CHECK_EQ(next_token, output.tokens.size()) << "the executor sampled for sequences that did not ask";
  pool_->CheckConservation();
  return advances;
}

std::vector<SeqId> Planner::Fail() {
  AS_CHECK(!steps_.empty());
  std::vector<SeqId> failed;
  std::vector<SeqId> touched;
  for (const PlannedStep& step : steps_) {
    const bool oldest = &step == &steps_.front();
    for (const SeqSlice& slice : step.plan.slices) {
      Sequence& seq = Get(slice.seq);
      seq.scheduled -= static_cast<uint32_t>(slice.tokens.size());
      ForgetPlaceholder(&seq);
      if (oldest && seq.fate == Sequence::Fate::kKeep) failed.push_back(seq.id);
      touched.push_back(seq.id);
    }
  }
  steps_.clear();
  for (SeqId id : touched) {
    if (Find(id) != nullptr) Settle(id);  // the first of two slices may have ended it
  }
  pool_->CheckConservation();
  return failed;
}

void Planner::SealWritten(Sequence* seq, uint32_t tokens, const std::vector<uint64_t>& digests) {
  AS_CHECK_LE(tokens, seq->tokens.size());
  const uint32_t full = tokens / options_.block_tokens;
  AS_CHECK_GE(digests.size(), full);
  ExtendChain(seq->root, seq->tokens, options_.block_tokens, &seq->chain);
  for (; seq->sealed < full; ++seq->sealed) {
    const uint32_t i = seq->sealed;
    const base::Hash128 parent = i > 0 ? seq->chain[i - 1] : base::Hash128{};
    pool_->Seal(seq->blocks[i], {seq->chain[i], digests[i], options_.block_tokens, parent});
  }
  seq->computed = tokens;
  CountPrefill(seq);
}

void Planner::SealCached(Sequence* seq, const std::vector<uint64_t>& digests) {
  AS_CHECK(seq->computed == seq->sealed * options_.block_tokens && !seq->busy()) << "sequence " << seq->id;
  AS_CHECK_LT((seq->sealed + digests.size()) * options_.block_tokens, seq->tokens.size()) << "sequence " << seq->id;
  for (const uint64_t digest : digests) {
    const uint32_t i = seq->sealed++;
    const base::Hash128 parent = i > 0 ? seq->chain[i - 1] : base::Hash128{};
    pool_->Seal(seq->blocks[i], {seq->chain[i], digest, options_.block_tokens, parent});
  }
  seq->computed = seq->sealed * options_.block_tokens;
  if (!seq->counted) seq->cached_tokens = seq->computed;
}

void Planner::CountPrefill(Sequence* seq) {
  if (seq->counted) return;
  seq->counted = true;
  stats_.prompt_tokens += seq->known();
  stats_.prefix_queries += seq->known();
  stats_.prefix_hits += seq->cached_tokens;
}

uint32_t Planner::decoding() const {
  uint32_t n = 0;
  for (const auto& [id, seq] : sequences_) {
    n += seq->phase == Sequence::Phase::kActive && seq->runnable && seq->pending() <= 1;
  }
  return n;
}

uint64_t Planner::pending_tokens() const {
  uint64_t n = 0;
  for (const auto& [id, seq] : sequences_) n += seq->pending() > 1 ? seq->pending() : 0;
  return n;
}

void Planner::CheckInvariants() const {
  pool_->CheckInvariants();
  AS_CHECK_LE(active_.size(), options_.max_batch);
  size_t in_sets = 0;
  for (const auto& [id, seq] : sequences_) {
    const bool is_active = seq->phase == Sequence::Phase::kActive;
    const bool is_waiting = seq->phase == Sequence::Phase::kWaiting;
    AS_CHECK_EQ(active_.contains(KeyOf(*seq)), is_active) << "sequence " << id;
    AS_CHECK_EQ(waiting_.contains(KeyOf(*seq)), is_waiting) << "sequence " << id;
    in_sets += is_active || is_waiting;
    if (!is_active) {
      AS_CHECK(seq->blocks.empty() && seq->computed == 0 && !seq->busy()) << "sequence " << id;
    } else {
      AS_CHECK_GE(seq->blocks.size() * options_.block_tokens, seq->computed + seq->scheduled) << "sequence " << id;
    }
    AS_CHECK_LE(seq->computed, seq->tokens.size()) << "sequence " << id;
    AS_CHECK(seq->scheduled == 0 || !steps_.empty()) << "sequence " << id;
    AS_CHECK(!seq->awaits_token || seq->computed + seq->scheduled == seq->tokens.size()) << "sequence " << id;
    AS_CHECK(seq->busy() || seq->fate == Sequence::Fate::kKeep) << "sequence " << id;
    for (uint32_t i = 0; i < seq->sealed; ++i) {
      AS_CHECK(pool_->state(seq->blocks[i]) == BlockPool::State::kSealed) << "sequence " << id << " block " << i;
    }
  }
  AS_CHECK_EQ(in_sets, active_.size() + waiting_.size());
}

}  // namespace agentserve::engine
