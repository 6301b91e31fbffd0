#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/sampling/sampling.h"

namespace agentserve::model {
namespace {

using base::StrCat;
using engine::SamplingParams;
using engine::TokenId;

constexpr float kMasked = -std::numeric_limits<float>::infinity();

bool NeedsAdjusting(const SampleInput& in) {
  const SamplingParams& p = *in.params;
  return p.needs_history() || !p.logit_bias.empty() || in.history.size() < size_t{in.prompt_tokens} + p.min_tokens;
}

bool Better(float logit_a, TokenId a, float logit_b, TokenId b) {
  return logit_a != logit_b ? logit_a > logit_b : a < b;
}

}  // namespace

void Sampler::Penalize(const SampleInput& in) {
  const SamplingParams& p = *in.params;
  counts_.resize(in.logits.size());
  // counts_[id]: 0 = unseen, else 1 + times in the output. All zero again when done.
  for (size_t i = 0; i < in.history.size(); ++i) {
    const TokenId id = in.history[i];
    if (id >= counts_.size()) continue;
    counts_[id] = std::max(counts_[id], 1u) + (i >= in.prompt_tokens ? 1 : 0);
  }
  for (const TokenId id : in.history) {
    if (id >= counts_.size() || counts_[id] == 0) continue;
    float& l = work_[id];
    l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    if (const uint32_t out = counts_[id] - 1; out > 0) {
      l -= p.presence_penalty + p.frequency_penalty * static_cast<float>(out);
    }
    counts_[id] = 0;
  }
}

void Sampler::Adjust(const SampleInput& in) {
  const SamplingParams& p = *in.params;
  work_.assign(in.logits.begin(), in.logits.end());
  if (p.needs_history()) Penalize(in);
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < work_.size()) work_[id] += bias;
  }
  if (in.history.size() < size_t{in.prompt_tokens} + p.min_tokens) {
    const auto mask = [&](TokenId id) {
      if (id < work_.size()) work_[id] = kMasked;
    };
    if (!p.ignore_eos) std::for_each(in.end_tokens.begin(), in.end_tokens.end(), mask);
    std::for_each(p.stop_token_ids.begin(), p.stop_token_ids.end(), mask);
  }
}

// Makes candidates_[0, k) the best k in order; what was ordered before stays.
void Sampler::SelectTop(size_t k) {
  k = std::min(k, candidates_.size());
  if (k <= ordered_) return;
  const auto before = [](const Candidate& a, const Candidate& b) { return Better(a.logit, a.id, b.logit, b.id); };
  const auto from = candidates_.begin() + static_cast<std::ptrdiff_t>(ordered_);
  const auto to = candidates_.begin() + static_cast<std::ptrdiff_t>(k);
  if (to != candidates_.end()) std::nth_element(from, to, candidates_.end(), before);
  std::sort(from, to, before);
  ordered_ = k;
}

TokenId Sampler::Draw(const SampleInput& in, std::span<const float> logits, float max_logit) {
  const SamplingParams& p = *in.params;
  const double inverse = 1.0 / p.temperature;
  const auto weight = [&](float logit) { return std::exp((double{logit} - max_logit) * inverse); };
  candidates_.clear();
  ordered_ = 0;
  double total = 0;
  for (TokenId id = 0; id < logits.size(); ++id) {
    if (!(logits[id] > kMasked)) continue;  // masked or not a number
    candidates_.push_back({logits[id], id, weight(logits[id])});
    total += candidates_.back().weight;
  }
  size_t keep = candidates_.size();
  if (p.top_k > 0 && p.top_k < keep) {
    keep = p.top_k;
    SelectTop(keep);
    total = 0;
    for (size_t i = 0; i < keep; ++i) total += candidates_[i].weight;
  }
  if (p.top_p < 1.0f) {  // the shortest prefix with at least top_p of the mass; never empty
    double mass = 0;
    for (size_t i = 0; i < keep; ++i) {
      if (i == ordered_) SelectTop(std::max<size_t>(64, ordered_ * 8));
      mass += candidates_[i].weight;
      if (mass >= double{p.top_p} * total) keep = i + 1;
    }
    total = mass;
  }
  if (p.min_p > 0.0f) {  // weight of the best is 1
    SelectTop(keep);
    size_t n = 1;
    double mass = candidates_[0].weight;
    for (; n < keep && candidates_[n].weight >= double{p.min_p}; ++n) mass += candidates_[n].weight;
    keep = n;
    total = mass;
  }
  const double target = base::UniformAt(p.seed, in.history.size()) * total;
  double mass = 0;
  TokenId last = candidates_[0].id;
  for (size_t i = 0; i < keep; ++i) {
    if (candidates_[i].weight > 0) last = candidates_[i].id;
    mass += candidates_[i].weight;
    if (mass > target) return candidates_[i].id;
  }
  return last;  // rounding: the last token with any mass
}

void Sampler::FillLogprobs(const SampleInput& in, engine::SampledToken* out) {
  const kernels::MaxLogit best = kernels::ArgMax(in.logits.data(), in.logits.size());
  const double sum = kernels::SumExp(in.logits.data(), in.logits.size(), best.value, 1.0f);
  const double log_total = best.value + std::log(sum);
  const auto logprob = [&](TokenId id) { return static_cast<float>(in.logits[id] - log_total); };
  out->has_logprobs = true;
  out->logprob = logprob(out->token);
  const auto n = static_cast<size_t>(in.params->top_logprobs);
  std::vector<TokenId> top;
  top.reserve(n + 1);
  for (TokenId id = 0; id < in.logits.size() && n > 0; ++id) {
    const float l = in.logits[id];
    if (std::isnan(l) || (top.size() == n && !(l > in.logits[top.back()]))) continue;
    const auto at = std::find_if(top.begin(), top.end(), [&](TokenId t) { return in.logits[t] < l; });
    top.insert(at, id);
    if (top.size() > n) top.pop_back();
  }
  for (const TokenId id : top) out->top.push_back({id, logprob(id)});
}

absl::StatusOr<engine::SampledToken> Sampler::Sample(const SampleInput& in) {
  const kernels::MaxLogit raw = kernels::ArgMax(in.logits.data(), in.logits.size());
  if (!raw.found || !std::isfinite(raw.value)) {
    return absl::DataLossError(StrCat("the model gave no finite logit at position ", in.history.size(),
                                      "; its weights are damaged or out of range"));
  }
  std::span<const float> logits = in.logits;
  kernels::MaxLogit best = raw;
  if (NeedsAdjusting(in)) {
    Adjust(in);
    logits = work_;
    best = kernels::ArgMax(logits.data(), logits.size());
    if (!best.found || !std::isfinite(best.value)) {
      // Biases and masks leave nothing to choose from. Failing would fail the batch that this row shares, so they give
      // way.
      logits = in.logits;
      best = raw;
    }
  }
  engine::SampledToken out;
  out.token = in.params->greedy() ? static_cast<TokenId>(best.index) : Draw(in, logits, best.value);
  if (in.params->top_logprobs >= 0) FillLogprobs(in, &out);
  return out;
}

}  // namespace agentserve::model
