// Rotary position embedding with the pairing of Hugging Face (rotate_half: element i with i + head_dim / 2) and Llama
// 3's frequency scaling (ROPE_INIT_FUNCTIONS["llama3"] of transformers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace agentserve::kernels {

struct RopeFrequencyParams {
  size_t head_dim = 0;
  double theta = 10000.0;
  bool llama3 = false;  // the rest only if true
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position = 8192;
};

// head_dim / 2 angular frequencies, radians per position, rounded to float as the reference keeps them.
std::vector<float> RopeFrequencies(const RopeFrequencyParams& params);

// cos and sin of position * frequency (product rounded to float first, like the reference): head_dim / 2 each.
void RopeAngles(const std::vector<float>& frequencies, uint32_t position, float* cos, float* sin);

struct RopeParams {
  float* x = nullptr;  // [rows][heads][head_dim], row stride ldx; rotated in place
  size_t ldx = 0;
  size_t rows = 0;
  size_t heads = 0;
  size_t head_dim = 0;
  const float* cos = nullptr;  // [rows][head_dim / 2]
  const float* sin = nullptr;
};

void Rope(const RopeParams& params);

}  // namespace agentserve::kernels
