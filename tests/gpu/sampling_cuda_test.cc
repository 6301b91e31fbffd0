// The GPU's sampling against model/sampler.h over random settings: the same token, unless the draw or a cut lies within
// 1e-5 of a boundary.
#include "kernels/sampling/sampling_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "base/rng.h"
#include "kernels/bf16/bf16.h"
#include "kernels/cuda/device_vector.h"
#include "model/sampler.h"

namespace agentserve::kernels::cuda {
namespace {

using engine::SamplingParams;
using engine::TokenId;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  std::vector<float> logits;  // bf16 values
  SamplingParams params;
  std::vector<TokenId> history;
  uint32_t prompt_tokens = 0;
  std::vector<TokenId> end_tokens;
};

// What the executor makes of a slice's sampling parameters.
SamplingRow MakeRow(const Case& c, std::vector<LogitEdit>* edits) {
  const SamplingParams& p = c.params;
  std::map<TokenId, LogitEdit> by_token;
  const auto edit = [&](TokenId id) -> LogitEdit& {
    return by_token.try_emplace(id, LogitEdit{static_cast<int32_t>(id), 0, 0, 0}).first->second;
  };
  if (p.needs_history()) {
    for (size_t i = 0; i < c.history.size(); ++i) {
      if (c.history[i] >= c.logits.size()) continue;
      LogitEdit& e = edit(c.history[i]);
      e.flags |= kEditSeen;
      e.output += i >= c.prompt_tokens ? 1 : 0;
    }
  }
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < c.logits.size()) edit(id).bias += bias;
  }
  if (c.history.size() < size_t{c.prompt_tokens} + p.min_tokens) {
    for (const TokenId id : c.end_tokens) {
      if (!p.ignore_eos && id < c.logits.size()) edit(id).flags |= kEditMasked;
    }
    for (const TokenId id : p.stop_token_ids) {
      if (id < c.logits.size()) edit(id).flags |= kEditMasked;
    }
  }
  SamplingRow row = {p.temperature,
                     p.top_k,
                     p.top_p,
                     p.min_p,
                     p.repetition_penalty,
                     p.presence_penalty,
                     p.frequency_penalty,
                     p.top_logprobs,
                     p.seed,
                     c.history.size(),
                     0,
                     0};
  row.edits_begin = static_cast<int32_t>(edits->size());
  for (const auto& [id, e] : by_token) edits->push_back(e);
  row.edits_end = static_cast<int32_t>(edits->size());
  return row;
}

// Runs the kernel on a batch of rows of one vocabulary.
std::vector<SampledRow> RunGpu(std::span<const Case> cases, int repeats = 1) {
  const int rows = static_cast<int>(cases.size()), vocab = static_cast<int>(cases[0].logits.size());
  std::vector<uint16_t> logits;
  std::vector<SamplingRow> settings;
  std::vector<LogitEdit> edits;
  for (const Case& c : cases) {
    for (const float l : c.logits) logits.push_back(FloatToBf16(l));
    settings.push_back(MakeRow(c, &edits));
  }
  DeviceVector<uint16_t> d_logits{std::span<const uint16_t>(logits)};
  DeviceVector<SamplingRow> d_settings{std::span<const SamplingRow>(settings)};
  DeviceVector<LogitEdit> d_edits(std::span<const LogitEdit>{edits});
  DeviceVector<SampledRow> out(cases.size());
  DeviceVector<int32_t> tokens(cases.size());
  DeviceVector<std::byte> workspace(SampleWorkspaceBytes(rows, vocab));
  SampleParams p;
  p.logits = reinterpret_cast<const __nv_bfloat16*>(d_logits.data());
  p.rows = rows;
  p.vocab = vocab;
  p.settings = d_settings.data();
  p.edits = d_edits.data();
  p.out = out.data();
  p.tokens = tokens.data();
  p.workspace = workspace.data();
  p.workspace_bytes = workspace.size();
  std::vector<SampledRow> result;
  for (int i = 0; i < repeats; ++i) {
    out.Poison();
    EXPECT_TRUE(Sample(p, {}).ok());
    const cudaError_t error = cudaDeviceSynchronize();
    EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
    std::vector<SampledRow> now = out.Download();
    const std::vector<int32_t> now_tokens = tokens.Download();
    for (size_t r = 0; r < now.size(); ++r) EXPECT_EQ(now_tokens[r], std::max(now[r].token, 0)) << "row " << r;
    if (i > 0) {
      for (size_t r = 0; r < now.size(); ++r) EXPECT_EQ(now[r].token, result[r].token) << "run " << i << " row " << r;
    }
    result = std::move(now);
  }
  return result;
}

// The sampler again in plain double arithmetic, with the draw and the cuts moved a little.
TokenId PlainDraw(const Case& c, double move_draw, double move_top_p, double move_min_p) {
  std::vector<LogitEdit> edits;
  const SamplingRow row = MakeRow(c, &edits);
  std::vector<std::pair<float, TokenId>> order;
  for (TokenId id = 0; id < c.logits.size(); ++id) order.emplace_back(c.logits[id], id);
  for (const LogitEdit& e : edits) {
    float& l = order[static_cast<size_t>(e.token)].first;
    if ((e.flags & kEditSeen) != 0) {
      l = l > 0 ? l / row.repetition_penalty : l * row.repetition_penalty;
      if (e.output > 0) l -= row.presence_penalty + row.frequency_penalty * static_cast<float>(e.output);
    }
    l = (e.flags & kEditMasked) != 0 ? -kInf : l + e.bias;
  }
  std::erase_if(order, [](const auto& x) { return !(x.first > -kInf); });
  const bool filtered = (row.top_k > 0 && row.top_k < order.size()) || row.top_p < 1 || row.min_p > 0;
  if (filtered) {
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
  }
  if (order.empty()) return UINT32_MAX;
  float max = -kInf;
  for (const auto& [logit, id] : order) max = std::max(max, logit);
  const auto weight = [&](float l) { return std::exp((double{l} - max) / row.temperature); };
  if (row.top_k > 0 && row.top_k < order.size()) order.resize(row.top_k);
  double total = 0, mass = 0;
  for (const auto& [logit, id] : order) total += weight(logit);
  if (row.top_p < 1) {
    size_t n = 0;
    while (n < order.size() && (n == 0 || mass < (row.top_p + move_top_p) * total)) mass += weight(order[n++].first);
    order.resize(n);
  }
  if (row.min_p > 0) {
    size_t n = 1;
    while (n < order.size() && weight(order[n].first) >= row.min_p * (1 + move_min_p)) ++n;
    order.resize(n);
  }
  total = mass = 0;
  for (const auto& [logit, id] : order) total += weight(logit);
  const double target = (base::UniformAt(row.seed, row.position) + move_draw) * total;
  for (const auto& [logit, id] : order) {
    mass += weight(logit);
    if (mass > target) return id;
  }
  return order.back().second;
}

// True if a draw or cut moved by 1e-5 gives the token too.
bool NearBoundary(const Case& c, TokenId token) {
  constexpr double kMoves[] = {0, -1e-5, 1e-5};
  for (const double draw : kMoves) {
    for (const double top_p : kMoves) {
      for (const double min_p : kMoves) {
        if (PlainDraw(c, draw, top_p, min_p) == token) return true;
      }
    }
  }
  return false;
}

std::string Describe(const Case& c) {
  const SamplingParams& p = c.params;
  return "vocab " + std::to_string(c.logits.size()) + " temperature " + std::to_string(p.temperature) + " top_k " +
         std::to_string(p.top_k) + " top_p " + std::to_string(p.top_p) + " min_p " + std::to_string(p.min_p) +
         " penalties " + std::to_string(p.repetition_penalty) + " " + std::to_string(p.presence_penalty) + " " +
         std::to_string(p.frequency_penalty) + " biases " + std::to_string(p.logit_bias.size()) + " min_tokens " +
         std::to_string(p.min_tokens) + " history " + std::to_string(c.history.size());
}

struct Tally {
  int rows = 0, boundary = 0, wrong = 0;
};

void CompareWithCpu(std::span<const Case> cases, Tally* tally) {
  const std::vector<SampledRow> got = RunGpu(cases);
  model::Sampler sampler;
  for (size_t r = 0; r < cases.size(); ++r) {
    const Case& c = cases[r];
    const auto want = sampler.Sample({c.logits, &c.params, c.history, c.prompt_tokens, c.end_tokens});
    ++tally->rows;
    const int32_t token = want.ok() ? static_cast<int32_t>(want->token) : -1;
    if (got[r].token != token) {
      const bool near =
          token >= 0 && got[r].token >= 0 && !c.params.greedy() && NearBoundary(c, static_cast<TokenId>(got[r].token));
      ++(near ? tally->boundary : tally->wrong);
      if (!near && tally->wrong <= 20) {
        ADD_FAILURE() << "row " << r << " of " << cases.size() << ": token " << got[r].token << ", CPU " << token
                      << "; " << Describe(c);
      }
      continue;
    }
    if (!want.ok() || !want->has_logprobs) continue;
    EXPECT_NEAR(got[r].logprob, want->logprob, 2e-5 * std::max(1.0f, std::fabs(want->logprob))) << Describe(c);
    for (size_t i = 0; i < want->top.size(); ++i) {
      EXPECT_EQ(got[r].top_tokens[i], static_cast<int32_t>(want->top[i].token)) << "top " << i << "; " << Describe(c);
      if (std::isfinite(want->top[i].logprob)) {
        EXPECT_NEAR(got[r].top_logprobs[i], want->top[i].logprob,
                    2e-5 * std::max(1.0f, std::fabs(want->top[i].logprob)));
      }
    }
  }
}

class Generator {
 public:
  explicit Generator(uint32_t seed) : gen_(seed) {}

  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(gen_() % n); }
  float Pick(std::initializer_list<float> values) {
    return values.begin()[Below(static_cast<uint32_t>(values.size()))];
  }

  std::vector<float> Logits(size_t vocab) {
    std::normal_distribution<float> normal(0, 1);
    const uint32_t kind = Below(10);
    const float scale = kind == 1 ? 1e-3f : kind == 2 ? 1000.0f : Pick({1.0f, 2.5f, 5.0f});
    std::vector<float> out(vocab);
    for (float& l : out) {
      l = kind == 3 ? 1.25f : kind == 4 ? Pick({-1.0f, 0.0f, -0.0f, 2.0f}) : normal(gen_) * scale;
      if (kind == 5 && Below(3) > 0) l = -kInf;
      if (kind == 6 && Below(50) == 0) l = std::numeric_limits<float>::quiet_NaN();
    }
    if (kind == 7) {
      for (int i = 0; i < 5; ++i) out[Below(static_cast<uint32_t>(vocab))] = 12.0f + normal(gen_);
    }
    if (kind == 8) {
      std::fill(out.begin(), out.end(), -kInf);
      if (Below(2) == 0) out[Below(static_cast<uint32_t>(vocab))] = -3.5f;
      if (Below(8) == 0) out[Below(static_cast<uint32_t>(vocab))] = kInf;
    }
    for (float& l : out) l = Bf16ToFloat(FloatToBf16(l));
    return out;
  }

  Case Make(size_t vocab, bool edits) {
    Case c;
    c.logits = Logits(vocab);
    const auto token = [&] { return Below(static_cast<uint32_t>(vocab)); };
    SamplingParams& p = c.params;
    p.temperature = Pick({0.0f, 0.1f, 0.5f, 0.7f, 1.0f, 1.0f, 1.5f, 3.0f});
    if (Below(2) == 0) p.top_k = static_cast<uint32_t>(Pick({1, 2, 5, 20, 50, 500, 3000, 200000}));
    if (Below(2) == 0) p.top_p = Pick({0.0f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f});
    if (Below(3) == 0) p.min_p = Pick({0.01f, 0.05f, 0.3f, 1.0f});
    p.seed = gen_();
    if (Below(4) == 0) p.top_logprobs = static_cast<int>(Pick({0, 1, 5, 20}));
    c.history.resize(1 + Below(edits && Below(4) == 0 ? 20000 : 200));
    for (TokenId& id : c.history) id = Below(10) == 0 ? token() : token() % 300;
    for (TokenId& id : c.history) id %= static_cast<uint32_t>(vocab);
    if (c.history.size() > 5000) {
      for (TokenId& id : c.history) id = token();
    }
    c.prompt_tokens = Below(static_cast<uint32_t>(c.history.size()) + 1);
    if (!edits) return c;
    if (Below(2) == 0) p.repetition_penalty = Pick({0.8f, 1.1f, 1.3f, 2.0f});
    if (Below(2) == 0) p.presence_penalty = Pick({-0.5f, 0.3f, 1.5f});
    if (Below(2) == 0) p.frequency_penalty = Pick({-0.1f, 0.2f, 0.7f});
    if (Below(2) == 0) {
      std::map<TokenId, float> bias;
      for (uint32_t i = Below(300); i > 0; --i) bias[token()] = Pick({-100.0f, -1.0f, 0.37f, 2.0f, 100.0f, -kInf});
      p.logit_bias.assign(bias.begin(), bias.end());
    }
    if (Below(3) == 0) {
      p.min_tokens = 100000;
      for (uint32_t i = Below(5); i > 0; --i) c.end_tokens.push_back(token());
      p.stop_token_ids = {token()};
      if (Below(4) == 0 && vocab <= 1000) {
        for (TokenId id = 0; id < vocab; ++id) c.end_tokens.push_back(id);
      }
    }
    return c;
  }

 private:
  std::mt19937 gen_;
};

void RunRandom(std::initializer_list<size_t> vocabs, std::initializer_list<int> batches, int turns, bool edits) {
  Tally tally;
  Generator gen(edits ? 7 : 8);
  for (int turn = 0; turn < turns; ++turn) {
    for (const size_t vocab : vocabs) {
      for (const int rows : batches) {
        std::vector<Case> cases;
        for (int r = 0; r < rows; ++r) cases.push_back(gen.Make(vocab, edits && gen.Below(3) > 0));
        CompareWithCpu(cases, &tally);
      }
    }
  }
  std::printf("%d rows: %d differ within 1e-5 of a boundary, %d wrong\n", tally.rows, tally.boundary, tally.wrong);
  EXPECT_EQ(tally.wrong, 0);
  EXPECT_LE(tally.boundary, 2 + tally.rows / 200);
}

TEST(SamplingCuda, SmallVocabularies) { RunRandom({1, 3, 7, 8, 64, 100, 1000, 4099}, {1, 3, 20, 40, 70}, 4, false); }
TEST(SamplingCuda, SmallVocabulariesWithEdits) {
  RunRandom({1, 3, 7, 8, 64, 100, 1000, 4099}, {1, 3, 20, 40, 70}, 4, true);
}
TEST(SamplingCuda, Llama) { RunRandom({128256}, {1, 5, 20, 40}, 1, false); }
TEST(SamplingCuda, LlamaWithEdits) { RunRandom({128256}, {1, 5, 20, 40}, 1, true); }
TEST(SamplingCuda, OtherVocabularies) { RunRandom({32000, 151936, 262147}, {2, 18}, 1, true); }

TEST(SamplingCuda, SameInEveryRun) {
  Generator gen(3);
  std::vector<Case> cases;
  for (int r = 0; r < 24; ++r) cases.push_back(gen.Make(128256, r % 2 == 0));
  RunGpu(cases, 100);
}

TEST(SamplingCuda, SharesAreThoseOfTheSoftmax) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f, 0.5f};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    std::map<int32_t, double> shares;
    constexpr int kRows = 500, kTurns = 40;
    for (int turn = 0; turn < kTurns; ++turn) {
      std::vector<Case> cases(kRows);
      for (int r = 0; r < kRows; ++r) {
        cases[r].logits = logits;
        cases[r].params.temperature = temperature;
        cases[r].params.seed = 11;
        cases[r].params.min_p = turn % 2 == 0 ? 0.0f : 1e-6f;  // both ways of drawing
        cases[r].history.resize(static_cast<size_t>(turn * kRows + r + 1));
      }
      for (const SampledRow& row : RunGpu(cases)) shares[row.token] += 1.0 / (kRows * kTurns);
    }
    double total = 0;
    for (const float l : logits) total += std::exp(l / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      EXPECT_NEAR(shares[static_cast<int32_t>(i)], std::exp(logits[i] / temperature) / total, 0.012);
    }
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda
