#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "base/rng.h"

namespace agentserve::model {
namespace {

using engine::SamplingParams;
using engine::TokenId;

engine::SampledToken Sample(const std::vector<float>& logits, const SamplingParams& p,
                            std::vector<TokenId> history = {0}, uint32_t prompt_tokens = 1,
                            std::vector<TokenId> end_tokens = {}) {
  Sampler sampler;
  const auto r = sampler.Sample({logits, &p, history, prompt_tokens, end_tokens});
  EXPECT_TRUE(r.ok()) << r.status();
  return r.ok() ? *r : engine::SampledToken{};
}

// How often each token comes up over `n` positions of one seed.
std::map<TokenId, double> Shares(const std::vector<float>& logits, SamplingParams p, size_t n = 20000) {
  std::map<TokenId, double> out;
  Sampler sampler;
  std::vector<TokenId> history;
  for (size_t i = 0; i < n; ++i) {
    history.push_back(0);
    out[sampler.Sample({logits, &p, history, static_cast<uint32_t>(history.size()), {}})->token] +=
        1.0 / static_cast<double>(n);
  }
  return out;
}

SamplingParams Greedy() {
  SamplingParams p;
  p.temperature = 0;
  return p;
}

TEST(Sampler, GreedyTakesLowestIdOfEquals) { EXPECT_EQ(Sample({1, 5, 2, 5}, Greedy()).token, 1u); }

TEST(Sampler, TemperatureGivesSoftmaxShares) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f};
  for (const float t : {0.5f, 1.0f, 2.0f}) {
    SamplingParams p;
    p.temperature = t;
    p.seed = 3;
    double total = 0;
    for (const float l : logits) total += std::exp(l / t);
    for (const auto& [token, share] : Shares(logits, p)) {
      EXPECT_NEAR(share, std::exp(logits[token] / t) / total, 0.012) << "token " << token << " at temperature " << t;
    }
  }
}

TEST(Sampler, DrawDependsOnSeedAndPositionAlone) {
  std::mt19937 gen(1);
  std::vector<float> logits(500);
  for (float& l : logits) l = static_cast<float>(gen() % 1000) / 200.0f;
  SamplingParams p;
  p.seed = 42;
  std::set<TokenId> seen;
  for (size_t n = 1; n < 40; ++n) {
    const TokenId a = Sample(logits, p, std::vector<TokenId>(n, 1), 1).token;
    EXPECT_EQ(a, Sample(logits, p, std::vector<TokenId>(n, 7), 0).token);
    seen.insert(a);
  }
  EXPECT_GT(seen.size(), 20u);
  SamplingParams other = p;
  other.seed = 43;
  EXPECT_NE(Shares(logits, p, 50), Shares(logits, other, 50));
}

TEST(Sampler, TopKKeepsBestWithTiesByLowestId) {
  SamplingParams p;
  p.top_k = 2;
  const auto shares = Shares({1, 3, 3, 3, 0}, p, 2000);
  EXPECT_EQ(shares.size(), 2u);
  EXPECT_TRUE(shares.contains(1) && shares.contains(2));
  p.top_k = 1;
  EXPECT_EQ(Shares({1, 3, 3}, p, 50).size(), 1u);
}

TEST(Sampler, TopPKeepsTheTokenThatCrossesTheMass) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.05f), std::log(0.3f)};
  SamplingParams p;
  p.top_p = 0.6f;
  auto shares = Shares(logits, p);
  EXPECT_EQ(shares.size(), 2u);
  EXPECT_NEAR(shares[1], 0.5 / 0.8, 0.012);
  EXPECT_NEAR(shares[3], 0.3 / 0.8, 0.012);
  p.top_p = 1e-6f;
  EXPECT_EQ(Shares(logits, p, 100).size(), 1u);
  p.top_p = 0.9f;
  p.top_k = 2;  // top_p applies to what top_k leaves: 0.625 and 0.375
  EXPECT_EQ(Shares(logits, p, 500).size(), 2u);
  p.top_p = 0.6f;
  EXPECT_EQ(Shares(logits, p, 500).size(), 1u);
}

// The progressive selection of large vocabularies must equal a full sort.
TEST(Sampler, TopPOnALargeVocabularyEqualsFullSort) {
  std::mt19937 gen(9);
  std::vector<float> logits(5000);
  for (float& l : logits) l = static_cast<float>(gen() % 64) / 16.0f;  // many ties
  std::vector<TokenId> order(logits.size());
  for (TokenId i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  double total = 0;
  for (const float l : logits) total += std::exp(l - 63 / 16.0);
  SamplingParams p;
  p.top_p = 0.7f;
  p.seed = 8;
  for (size_t n = 1; n < 60; ++n) {
    double kept = 0, mass = 0;
    size_t keep = 0;
    while (kept < double{p.top_p} * total) kept += std::exp(logits[order[keep++]] - 63 / 16.0);
    const double target = base::UniformAt(p.seed, n) * kept;
    size_t at = 0;
    while ((mass += std::exp(logits[order[at]] - 63 / 16.0)) <= target) ++at;
    EXPECT_EQ(Sample(logits, p, std::vector<TokenId>(n, 0)).token, order[at]);
  }
}

TEST(Sampler, MinPDropsTheUnlikely) {
  const std::vector<float> logits = {0.0f, std::log(0.5f), std::log(0.09f), std::log(0.2f)};
  SamplingParams p;
  p.min_p = 0.1f;
  const auto shares = Shares(logits, p, 3000);
  EXPECT_EQ(shares.size(), 3u);
  EXPECT_FALSE(shares.contains(2));
}

TEST(Sampler, PenaltiesCountWhatTheirFieldSays) {
  // History: prompt {0, 0}, output {1, 1, 2}.
  const std::vector<TokenId> history = {0, 0, 1, 1, 2};
  SamplingParams p = Greedy();
  p.repetition_penalty = 2.0f;  // positive halves, negative doubles; prompt counts
  EXPECT_EQ(Sample({4.0f, 3.0f, 3.0f, 2.1f}, p, history, 2).token, 3u);
  EXPECT_EQ(Sample({-1.0f, -3.0f, -3.0f, -1.9f}, p, history, 2).token, 3u);
  p = Greedy();
  p.presence_penalty = 1.0f;  // once, output only
  EXPECT_EQ(Sample({3.0f, 3.9f, 3.9f, 0.0f}, p, history, 2).token, 0u);
  p = Greedy();
  p.frequency_penalty = 1.0f;  // per occurrence, output only
  EXPECT_EQ(Sample({1.0f, 3.9f, 3.0f, 0.0f}, p, history, 2).token, 2u);
  p.frequency_penalty = -1.0f;
  EXPECT_EQ(Sample({4.5f, 3.0f, 3.9f, 0.0f}, p, history, 2).token, 1u);
}

TEST(Sampler, PenaltiesLeaveNoTraceBetweenCalls) {
  Sampler sampler;
  SamplingParams p = Greedy();
  p.frequency_penalty = 1.0f;
  const std::vector<float> logits = {2.0f, 2.5f};
  const std::vector<TokenId> a = {1, 1, 900}, b = {0};
  EXPECT_EQ(sampler.Sample({logits, &p, a, 0, {}})->token, 0u);
  EXPECT_EQ(sampler.Sample({logits, &p, b, 0, {}})->token, 1u);
}

TEST(Sampler, BiasAndMinTokens) {
  SamplingParams p = Greedy();
  p.logit_bias = {{2, 5.0f}, {1, -100.0f}, {999, 1.0f}};
  EXPECT_EQ(Sample({1, 4, 0}, p).token, 2u);
  p = Greedy();
  p.min_tokens = 2;
  p.stop_token_ids = {0};
  const std::vector<float> logits = {9, 8, 1};
  EXPECT_EQ(Sample(logits, p, {5, 5}, 1, {1}).token, 2u);     // one token out: ends and stops masked
  EXPECT_EQ(Sample(logits, p, {5, 5, 5}, 1, {1}).token, 0u);  // two out
  p.ignore_eos = true;
  EXPECT_EQ(Sample(logits, p, {5}, 1, {1}).token, 1u);  // end tokens are ordinary then
  p.stop_token_ids = {0, 1, 2};
  EXPECT_EQ(Sample(logits, p, {5}, 1, {}).token, 0u);  // nothing left: the mask gives way
}

TEST(Sampler, LogprobsAreOfTheRawSoftmax) {
  std::vector<float> logits(70);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  SamplingParams p = Greedy();
  p.logit_bias = {{0, 50.0f}};
  p.top_logprobs = 3;
  double total = 0;
  for (const float l : logits) total += std::exp(l);
  const engine::SampledToken t = Sample(logits, p);
  EXPECT_EQ(t.token, 0u);
  ASSERT_TRUE(t.has_logprobs);
  EXPECT_NEAR(t.logprob, -std::log(total), 1e-5);
  ASSERT_EQ(t.top.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(t.top[i].token, 6 + 7 * i);  // best first, ties by id
    EXPECT_NEAR(t.top[i].logprob, 6 - std::log(total), 1e-5);
  }
  p.top_logprobs = 0;
  EXPECT_TRUE(Sample(logits, p).top.empty());
  EXPECT_TRUE(Sample(logits, p).has_logprobs);
  p.top_logprobs = -1;
  EXPECT_FALSE(Sample(logits, p).has_logprobs);
}

TEST(Sampler, NotANumberIsNeverChosen) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SamplingParams p;
  p.top_logprobs = 2;
  for (const auto& [token, share] : Shares({nan, 1.0f, nan, 1.0f}, p, 200)) EXPECT_TRUE(token == 1 || token == 3);
  Sampler sampler;
  const std::vector<float> bad(8, nan);
  EXPECT_EQ(sampler.Sample({bad, &p, {}, 0, {}}).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace agentserve::model
