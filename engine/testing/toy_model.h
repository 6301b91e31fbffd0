// For tests: a model whose next token is a hash of all previous tokens, and whose "KV" rows are checked wherever they
// are read, so that a stale, foreign, torn or misplaced block shows at once.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/ids.h"

namespace agentserve::engine {

inline constexpr uint32_t kToyVocab = 97;
inline constexpr TokenId kToyEnd = 7;

// State after `token` follows `state`: what the KV row of that token holds.
inline uint64_t ToyMix(uint64_t state, uint64_t token) {
  uint64_t z = state * 0x9e3779b97f4a7c15ull + token + 0x632be59bd9b4e019ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
inline uint64_t ToyState(std::span<const TokenId> tokens) {
  uint64_t state = 1;
  for (TokenId t : tokens) state = ToyMix(state, t);
  return state;
}
inline TokenId ToyNext(uint64_t state, uint64_t seed) {
  return static_cast<TokenId>(ToyMix(state, seed ^ 0x5bd1e995) % kToyVocab);
}

// Rows of all blocks of one pool.
class ToyMemory {
 public:
  ToyMemory(uint32_t blocks, uint32_t block_tokens)
      : block_tokens_(block_tokens), rows_(size_t{blocks} * block_tokens, 0) {}
  uint64_t& Row(BlockId b, uint32_t row) { return rows_.at(size_t{b.value} * block_tokens_ + row); }
  uint64_t& At(std::span<const BlockId> table, uint32_t position) {
    return Row(table[position / block_tokens_], position % block_tokens_);
  }
  uint64_t Digest(BlockId b, uint32_t tokens) {
    uint64_t digest = 17;
    for (uint32_t i = 0; i < tokens; ++i) digest = ToyMix(digest, Row(b, i));
    return digest;
  }
  uint32_t block_tokens() const { return block_tokens_; }

 private:
  uint32_t block_tokens_;
  std::vector<uint64_t> rows_;
};

class ToyExecutor final : public Executor {
 public:
  explicit ToyExecutor(ToyMemory* memory) : memory_(memory) {}

  // Reads of wrong rows since the start; a test expects 0.
  uint64_t bad_reads() const { return bad_reads_; }
  uint64_t tokens_run() const { return tokens_run_; }

  absl::Status Run(const StepPlan& plan, LayerObserver* observer, StepOutput* out) override {
    for (const SeqSlice& slice : plan.slices) RunSlice(slice, out);
    if (observer) observer->OnLayerWritten(plan, 0);
    return absl::OkStatus();
  }

 private:
  void RunSlice(const SeqSlice& slice, StepOutput* out) {
    uint64_t state = slice.start == 0 ? 1 : memory_->At(slice.blocks, slice.start - 1);
    for (uint32_t i = 0; i < slice.tokens.size(); ++i) {
      state = ToyMix(state, slice.tokens[i]);
      memory_->At(slice.blocks, slice.start + i) = state;
    }
    tokens_run_ += slice.tokens.size();
    if (!slice.sample) return;
    uint64_t expected = 1;  // every earlier row must belong to exactly these tokens
    for (uint32_t p = 0; p < slice.history.size(); ++p) {
      expected = ToyMix(expected, slice.history[p]);
      if (memory_->At(slice.blocks, p) != expected) ++bad_reads_;
    }
    SampledToken token;
    token.seq = slice.seq;
    token.token = ToyNext(state, slice.sampling->seed);
    out->tokens.push_back(token);
  }

  ToyMemory* memory_;
  uint64_t bad_reads_ = 0;
  uint64_t tokens_run_ = 0;
};

// What a sequence must generate, by the plain rules.
inline std::vector<TokenId> ToyGenerate(std::vector<TokenId> tokens, uint32_t prompt_tokens, uint64_t seed,
                                        uint32_t max_tokens, uint32_t context_length) {
  std::vector<TokenId> out;
  while (tokens.size() < context_length && tokens.size() - prompt_tokens < max_tokens) {
    out.push_back(ToyNext(ToyState(tokens), seed));
    tokens.push_back(out.back());
    if (out.back() == kToyEnd) break;
  }
  return out;
}

}  // namespace agentserve::engine
