// Helpers of the model tests: a temporary folder, small shapes, and the forward pass in double as the textbook has it.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/bf16/bf16.h"
#include "kernels/rope/rope.h"
#include "model/random_model.h"
#include "model/weights.h"

namespace agentserve::model {

// A fresh folder, removed when destroyed.
class TempDir {
 public:
  TempDir() {
    std::string pattern = std::filesystem::temp_directory_path().string() + "/agentserve_model_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline ModelConfig SmallConfig(uint32_t head_dim, uint32_t heads, uint32_t kv_heads, bool tied) {
  ModelConfig c = *NamedShape("tiny");
  c.head_dim = head_dim;
  c.num_heads = heads;
  c.num_kv_heads = kv_heads;
  c.tie_word_embeddings = tied;
  return c;
}

using Matrix = std::vector<std::vector<double>>;

inline std::vector<double> Times(const uint16_t* w, size_t n, const std::vector<double>& x) {
  std::vector<double> y(n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += kernels::Bf16ToFloat(w[i * x.size() + j]) * x[j];
  }
  return y;
}

inline std::vector<double> Normed(const uint16_t* w, const std::vector<double>& x, double eps) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  std::vector<double> y = x;
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
  for (size_t i = 0; i < y.size(); ++i) y[i] *= kernels::Bf16ToFloat(w[i]) * scale;
  return y;
}

inline void Rotate(const std::vector<float>& freq, size_t position, double* x) {
  for (size_t i = 0; i < freq.size(); ++i) {
    const double angle = static_cast<float>(position) * freq[i];
    const double a = x[i], b = x[i + freq.size()];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + freq.size()] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// Attention of one row; k and v hold [position][kv_heads * head_dim].
inline std::vector<double> AttendRow(const ModelConfig& c, const std::vector<double>& q, const Matrix& k,
                                     const Matrix& v, size_t length) {
  const size_t d = c.head_dim;
  std::vector<double> out(c.q_size());
  for (size_t head = 0; head < c.num_heads; ++head) {
    const size_t kv = head / c.group() * d;
    std::vector<double> p(length);
    double most = -1e300, sum = 0;
    for (size_t j = 0; j < length; ++j) {
      for (size_t i = 0; i < d; ++i) p[j] += q[head * d + i] * k[j][kv + i];
      most = std::max(most, p[j] /= std::sqrt(static_cast<double>(d)));
    }
    for (double& x : p) sum += x = std::exp(x - most);
    for (size_t j = 0; j < length; ++j) {
      for (size_t i = 0; i < d; ++i) out[head * d + i] += p[j] / sum * v[j][kv + i];
    }
  }
  return out;
}

// Logits of every position. K and V are rounded to bf16, as the pool stores them; all else is double.
inline Matrix ReferenceLogits(const ModelConfig& c, const Weights& w, const std::vector<uint32_t>& tokens) {
  const std::vector<float> freq =
      kernels::RopeFrequencies({.head_dim = c.head_dim,
                                .theta = c.rope_theta,
                                .llama3 = c.rope_scaling.type == RopeScaling::Type::kLlama3,
                                .factor = c.rope_scaling.factor,
                                .low_freq_factor = c.rope_scaling.low_freq_factor,
                                .high_freq_factor = c.rope_scaling.high_freq_factor,
                                .original_max_position = static_cast<double>(c.rope_scaling.original_max_position)});
  const auto round = [](std::vector<double> x) {
    for (double& v : x) v = kernels::Bf16ToFloat(kernels::FloatToBf16(static_cast<float>(v)));
    return x;
  };
  Matrix h(tokens.size(), std::vector<double>(c.hidden_size));
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t i = 0; i < c.hidden_size; ++i) {
      h[t][i] = kernels::Bf16ToFloat(w.embedding[size_t{tokens[t]} * c.hidden_size + i]);
    }
  }
  for (const LayerWeights& l : w.layers) {
    Matrix q, k, v;
    for (size_t t = 0; t < tokens.size(); ++t) {
      const std::vector<double> x = Normed(l.input_norm, h[t], c.rms_norm_eps);
      q.push_back(Times(l.q, c.q_size(), x));
      k.push_back(Times(l.k, c.kv_size(), x));
      v.push_back(round(Times(l.v, c.kv_size(), x)));
      for (size_t i = 0; i < c.num_heads; ++i) Rotate(freq, t, &q[t][i * c.head_dim]);
      for (size_t i = 0; i < c.num_kv_heads; ++i) Rotate(freq, t, &k[t][i * c.head_dim]);
      k[t] = round(k[t]);
    }
    for (size_t t = 0; t < tokens.size(); ++t) {
      const std::vector<double> o = Times(l.o, c.hidden_size, AttendRow(c, q[t], k, v, t + 1));
      for (size_t i = 0; i < o.size(); ++i) h[t][i] += o[i];
      const std::vector<double> x = Normed(l.post_norm, h[t], c.rms_norm_eps);
      std::vector<double> g = Times(l.gate, c.intermediate_size, x);
      const std::vector<double> u = Times(l.up, c.intermediate_size, x);
      for (size_t i = 0; i < g.size(); ++i) g[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
      const std::vector<double> d = Times(l.down, c.hidden_size, g);
      for (size_t i = 0; i < d.size(); ++i) h[t][i] += d[i];
    }
  }
  Matrix logits;
  for (const std::vector<double>& row : h) {
    logits.push_back(Times(w.lm_head, c.vocab_size, Normed(w.final_norm, row, c.rms_norm_eps)));
  }
  return logits;
}

}  // namespace agentserve::model
