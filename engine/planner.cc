#include "engine/planner.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/block_hash.h"

namespace agentserve::engine {
namespace {

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
  AS_CHECK(!seq.io) << "sequence " << id << " is still being written";
  if (seq.runnable) return;
  seq.runnable = true;
  if (seq.phase == Sequence::Phase::kDormant) {
    seq.phase = Sequence::Phase::kWaiting;
    waiting_.insert(KeyOf(seq));
  }
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

bool Planner::Grow(Sequence* seq, uint32_t tokens) {
  const uint32_t want = CeilDiv(tokens, options_.block_tokens);
  while (seq->blocks.size() < want) {
    if (pool_->Allocate(1, &seq->blocks)) continue;
    if (!MakeRoom(*seq)) return false;
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
    AS_CHECK_GT(active_.size(), 1u) << "sequence " << seq.id << " was admitted but does not fit the pool";
    Preempt(seq.id);
    return false;
  }
  const bool at_once = !Get(lowest).busy();
  Preempt(lowest);
  return at_once;
}

void Planner::AddSlice(Sequence* seq, uint32_t count) {
  const uint32_t end = seq->computed + count;
  const bool last = end == seq->tokens.size();
  SeqSlice slice;
  slice.seq = seq->id;
  slice.tokens = std::span<const TokenId>(seq->tokens).subspan(seq->computed, count);
  slice.start = seq->computed;
  slice.blocks = seq->blocks.ids().first(CeilDiv(end, options_.block_tokens));
  slice.sample = last;
  if (last) {
    slice.sampling = &seq->sampling;
    slice.history = std::span<const TokenId>(seq->tokens);
    slice.prompt_tokens = seq->prompt_tokens;
  }
  step_.plan.slices.push_back(slice);
  step_.tokens += count;
  seq->scheduled = count;
  const uint32_t full = end / options_.block_tokens;
  for (uint32_t i = seq->sealed; i < full; ++i) {
    step_.seals.push_back({seq->id, seq->blocks[i], i, options_.block_tokens});
  }
  const uint32_t tail = end % options_.block_tokens;
  if (options_.seal_prompt_tail && last && tail > 0) step_.seals.push_back({seq->id, seq->blocks[full], full, tail});
}

const PlannedStep* Planner::Plan() {
  AS_CHECK(!in_flight_);
  step_ = {};
  std::vector<SeqId> order;
  order.reserve(active_.size());
  for (const Key& key : active_) order.push_back(key.id);
  const auto usable = [](const Sequence& s) {
    return s.phase == Sequence::Phase::kActive && s.runnable && s.fate == Sequence::Fate::kKeep && s.scheduled == 0;
  };
  for (SeqId id : order) {  // decodes
    Sequence& seq = Get(id);
    if (usable(seq) && seq.pending() == 1 && Grow(&seq, static_cast<uint32_t>(seq.tokens.size()))) AddSlice(&seq, 1);
  }
  for (SeqId id : order) {  // chunks of prompts
    if (step_.tokens >= options_.step_tokens) break;
    Sequence& seq = Get(id);
    if (!usable(seq) || seq.pending() <= 1) continue;
    const uint32_t count = std::min(seq.pending(), options_.step_tokens - step_.tokens);
    if (Grow(&seq, seq.computed + count)) AddSlice(&seq, count);
  }
  if (step_.plan.slices.empty()) return nullptr;
  in_flight_ = true;
  ++stats_.steps;
  return &step_;
}

void Planner::ApplySeals(const std::vector<uint64_t>& digests) {
  AS_CHECK_EQ(digests.size(), step_.seals.size());
  for (size_t i = 0; i < step_.seals.size(); ++i) {
    const SealRequest& request = step_.seals[i];
    Sequence& seq = Get(request.seq);
    BlockPool::SealInfo info;
    info.digest = digests[i];
    info.tokens = request.tokens;
    if (request.tokens == options_.block_tokens) {
      ExtendChain(seq.root, seq.tokens, options_.block_tokens, &seq.chain);
      info.hash = seq.chain[request.index];
      seq.sealed = request.index + 1;
    }
    pool_->Seal(request.block, info);
  }
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
  seq->tokens.push_back(advance.token.token);
  ++stats_.generated_tokens;
  advance.finish = StopAfter({advance.token.token, static_cast<uint32_t>(seq->tokens.size()), seq->generated()},
                             seq->sampling, options_.end_tokens, options_.context_length);
  return advance;
}

std::vector<Advance> Planner::Complete(const StepOutput& output, const std::vector<uint64_t>& digests) {
  AS_CHECK(in_flight_);
  in_flight_ = false;
  ApplySeals(digests);
  std::vector<Advance> advances;
  size_t next_token = 0;
  for (const SeqSlice& slice : step_.plan.slices) {
    Sequence& seq = Get(slice.seq);
    seq.computed += seq.scheduled;
    stats_.computed_tokens += seq.scheduled;
    seq.scheduled = 0;
    if (seq.fate == Sequence::Fate::kKeep) advances.push_back(AdvanceOne(&seq, slice, output, next_token));
    if (slice.sample) ++next_token;
    Settle(slice.seq);
  }
  AS_CHECK_EQ(next_token, output.tokens.size()) << "the executor sampled for sequences that did not ask";
  step_ = {};
  pool_->CheckConservation();
  return advances;
}

std::vector<SeqId> Planner::Fail() {
  AS_CHECK(in_flight_);
  in_flight_ = false;
  std::vector<SeqId> failed;
  for (const SeqSlice& slice : step_.plan.slices) {
    Sequence& seq = Get(slice.seq);
    seq.scheduled = 0;
    if (seq.fate == Sequence::Fate::kKeep) failed.push_back(seq.id);
    Settle(slice.seq);
  }
  step_ = {};
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
    pool_->Seal(seq->blocks[i], {seq->chain[i], digests[i], options_.block_tokens});
  }
  seq->computed = tokens;
  CountPrefill(seq);
}

void Planner::CountPrefill(Sequence* seq) {
  if (seq->counted) return;
  seq->counted = true;
  stats_.prompt_tokens += seq->tokens.size();
  stats_.prefix_queries += seq->tokens.size();
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
    AS_CHECK(seq->scheduled == 0 || in_flight_) << "sequence " << id;
    AS_CHECK(seq->busy() || seq->fate == Sequence::Fate::kKeep) << "sequence " << id;
    for (uint32_t i = 0; i < seq->sealed; ++i) {
      AS_CHECK(pool_->state(seq->blocks[i]) == BlockPool::State::kSealed) << "sequence " << id << " block " << i;
    }
  }
  AS_CHECK_EQ(in_sets, active_.size() + waiting_.size());
}

}  // namespace agentserve::engine
