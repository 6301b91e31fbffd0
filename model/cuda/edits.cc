#include "model/cuda/edits.h"

#include <algorithm>

namespace agentserve::model::cuda {

using engine::SamplingParams;
using engine::TokenId;
using kernels::cuda::LogitEdit;

namespace {

bool MasksEnd(const engine::SeqSlice& s) { return s.history.size() < size_t{s.prompt_tokens} + s.sampling->min_tokens; }

// The edit of `id` in edits[first..], which is sorted there; made if there is none.
LogitEdit& At(std::vector<LogitEdit>* edits, size_t first, TokenId id) {
  const auto token = static_cast<int32_t>(id);
  const auto it = std::lower_bound(edits->begin() + static_cast<std::ptrdiff_t>(first), edits->end(), token,
                                   [](const LogitEdit& e, int32_t t) { return e.token < t; });
  if (it != edits->end() && it->token == token) return *it;
  return *edits->insert(it, LogitEdit{token, 0.0f, 0, 0});
}

}  // namespace

bool NeedsEdits(const engine::SeqSlice& s) {
  return s.sampling->needs_history() || !s.sampling->logit_bias.empty() || MasksEnd(s);
}

// Histories of sequences that have not sampled for a while.
void EditBuilder::Forget() {
  if (histories_.size() <= max_kept_) return;
  std::erase_if(histories_, [&](const auto& entry) { return entry.second.used + max_kept_ / 2 < turn_; });
}

const std::vector<LogitEdit>& EditBuilder::SeenBy(const engine::SeqSlice& s) {
  Forget();
  History& h = histories_[s.seq.value];
  h.used = turn_;
  // A sequence only grows; anything else is another one under the same number.
  const bool grown = h.prompt_tokens == s.prompt_tokens && h.tokens.size() <= s.history.size() &&
                     std::equal(h.tokens.begin(), h.tokens.end(), s.history.begin());
  if (!grown) {
    h.tokens.clear();
    h.seen.clear();
    h.prompt_tokens = s.prompt_tokens;
  }
  const size_t known = h.tokens.size();
  h.tokens.insert(h.tokens.end(), s.history.begin() + static_cast<std::ptrdiff_t>(known), s.history.end());
  constexpr size_t kFew = 64;
  if (s.history.size() - known > kFew) {  // all at once: sort the ids, then count equal ones
    std::vector<TokenId> order;
    for (const TokenId id : s.history) {
      if (id < vocab_size_) order.push_back(id);
    }
    std::sort(order.begin(), order.end());
    order.erase(std::unique(order.begin(), order.end()), order.end());
    h.seen.clear();
    for (const TokenId id : order) h.seen.push_back({static_cast<int32_t>(id), 0.0f, 0, kernels::cuda::kEditSeen});
    for (size_t i = s.prompt_tokens; i < s.history.size(); ++i) {
      if (s.history[i] < vocab_size_) ++At(&h.seen, 0, s.history[i]).output;
    }
    return h.seen;
  }
  for (size_t i = known; i < s.history.size(); ++i) {
    if (s.history[i] >= vocab_size_) continue;
    LogitEdit& e = At(&h.seen, 0, s.history[i]);
    e.flags |= kernels::cuda::kEditSeen;
    if (i >= s.prompt_tokens) ++e.output;
  }
  return h.seen;
}

void EditBuilder::Append(const engine::SeqSlice& s, const std::vector<TokenId>& end_tokens,
                         std::vector<LogitEdit>* edits) {
  ++turn_;
  const SamplingParams& p = *s.sampling;
  const size_t first = edits->size();
  if (p.needs_history()) {
    const std::vector<LogitEdit>& seen = SeenBy(s);
    edits->insert(edits->end(), seen.begin(), seen.end());
  }
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < vocab_size_) At(edits, first, id).bias += bias;
  }
  if (MasksEnd(s)) {
    const auto mask = [&](TokenId id) {
      if (id < vocab_size_) At(edits, first, id).flags |= kernels::cuda::kEditMasked;
    };
    if (!p.ignore_eos) std::for_each(end_tokens.begin(), end_tokens.end(), mask);
    std::for_each(p.stop_token_ids.begin(), p.stop_token_ids.end(), mask);
  }
}

}  // namespace agentserve::model::cuda
