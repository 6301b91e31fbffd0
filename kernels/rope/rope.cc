#include "kernels/rope/rope.h"

#include <cmath>
#include <numbers>

namespace agentserve::kernels {

std::vector<float> RopeFrequencies(const RopeFrequencyParams& p) {
  std::vector<float> out(p.head_dim / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(p.head_dim);
    const float power = static_cast<float>(std::pow(p.theta, double{exponent}));
    float freq = 1.0f / power;
    if (p.llama3) {
      // Short wavelengths stay, long ones are stretched by `factor`, those between are blended. Float arithmetic in the
      // reference's order, so that the last bit agrees: an ulp matters after 100k positions.
      const float wavelength = static_cast<float>(2 * std::numbers::pi) / freq;
      const auto old_length = static_cast<float>(p.original_max_position);
      const auto low = static_cast<float>(p.low_freq_factor), high = static_cast<float>(p.high_freq_factor);
      const auto factor = static_cast<float>(p.factor);
      if (wavelength > old_length / low) {
        freq = freq / factor;
      } else if (wavelength >= old_length / high) {
        const float smooth = (old_length / wavelength - low) / (high - low);
        freq = (1.0f - smooth) * freq / factor + smooth * freq;
      }
    }
    out[i] = freq;
  }
  return out;
}

void RopeAngles(const std::vector<float>& frequencies, uint32_t position, float* cos, float* sin) {
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double angle = static_cast<float>(position) * frequencies[i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

void Rope(const RopeParams& p) {
  const size_t half = p.head_dim / 2;
  for (size_t row = 0; row < p.rows; ++row) {
    const float* __restrict c = p.cos + row * half;
    const float* __restrict s = p.sin + row * half;
    for (size_t head = 0; head < p.heads; ++head) {
      float* __restrict lo = p.x + row * p.ldx + head * p.head_dim;
      float* __restrict hi = lo + half;
      for (size_t i = 0; i < half; ++i) {
        const float a = lo[i], b = hi[i];
        lo[i] = a * c[i] - b * s[i];
        hi[i] = b * c[i] + a * s[i];
      }
    }
  }
}

}  // namespace agentserve::kernels
