#include "model/cuda/edits.h"

#include <algorithm>

namespace agentserve::model::cuda {

using engine::SamplingParams;
using engine::TokenId;
using kernels::cuda::LogitEdit;

namespace {

bool MasksEnd(const engine::SeqSlice& s) { return s.history.size() < size_t{s.prompt_tokens} + s.sampling->min_tokens; }

}  // namespace

bool NeedsEdits(const engine::SeqSlice& s) {
  return s.sampling->needs_history() || !s.sampling->logit_bias.empty() || MasksEnd(s);
}

LogitEdit& EditBuilder::At(TokenId id) {
  if (index_[id] == 0) {
    row_.push_back({static_cast<int32_t>(id), 0.0f, 0, 0});
    index_[id] = static_cast<uint32_t>(row_.size());
  }
  return row_[index_[id] - 1];
}

void EditBuilder::Append(const engine::SeqSlice& s, const std::vector<TokenId>& end_tokens,
                         std::vector<LogitEdit>* edits) {
  const SamplingParams& p = *s.sampling;
  index_.resize(vocab_size_);
  if (p.needs_history()) {
    for (size_t i = 0; i < s.history.size(); ++i) {
      if (s.history[i] >= vocab_size_) continue;
      LogitEdit& e = At(s.history[i]);
      e.flags |= kernels::cuda::kEditSeen;
      if (i >= s.prompt_tokens) ++e.output;
    }
  }
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < vocab_size_) At(id).bias += bias;
  }
  if (MasksEnd(s)) {
    const auto mask = [&](TokenId id) {
      if (id < vocab_size_) At(id).flags |= kernels::cuda::kEditMasked;
    };
    if (!p.ignore_eos) std::for_each(end_tokens.begin(), end_tokens.end(), mask);
    std::for_each(p.stop_token_ids.begin(), p.stop_token_ids.end(), mask);
  }
  std::sort(row_.begin(), row_.end(), [](const LogitEdit& a, const LogitEdit& b) { return a.token < b.token; });
  edits->insert(edits->end(), row_.begin(), row_.end());
  for (const LogitEdit& e : row_) index_[static_cast<size_t>(e.token)] = 0;
  row_.clear();
}

}  // namespace agentserve::model::cuda
