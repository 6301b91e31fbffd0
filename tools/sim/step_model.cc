#include "tools/sim/step_model.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/strings.h"

namespace agentserve::sim {

using base::StrCat;

absl::StatusOr<StepModel> StepModel::Make(const Calibration& c) {
  StepModel m(c);
  if (absl::Status s = m.FitDecode(); !s.ok()) return s;
  if (c.prefill.size() < 2) {
    return absl::InvalidArgumentError(
        base::ToAbsl(StrCat("calibration ", c.name, " needs at least two prefill points, it has ", c.prefill.size())));
  }
  m.FitPrefill();
  return m;
}

// Least squares of a line in S for each n. An n with a single context borrows the slope of its neighbour.
absl::Status StepModel::FitDecode() {
  std::map<double, std::vector<DecodePoint>> by_n;
  for (const DecodePoint& p : c_.decode) by_n[p.n].push_back(p);
  if (by_n.empty()) {
    return absl::InvalidArgumentError(base::ToAbsl(StrCat("calibration ", c_.name, " has no decode points")));
  }
  double slope = -1;
  for (const auto& [n, points] : by_n) {
    double sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (const DecodePoint& p : points) {
      const double x = p.n * p.context;
      sx += x, sy += p.ms, sxx += x * x, sxy += x * p.ms;
    }
    const double k = static_cast<double>(points.size());
    const double spread = k * sxx - sx * sx;
    Knot knot{n, 0, -1};
    if (points.size() > 1 && spread > 0) knot.b = std::max(0.0, (k * sxy - sx * sy) / spread);
    knot.a = sy / k - std::max(0.0, knot.b) * sx / k;
    knots_.push_back(knot);
    if (knot.b >= 0 && slope < 0) slope = knot.b;
  }
  slope = std::max(0.0, slope);
  for (Knot& k : knots_) {
    if (k.b < 0) {
      double sx = 0;
      const auto& points = by_n[k.n];
      for (const DecodePoint& p : points) sx += p.n * p.context;
      k.b = slope;
      k.a -= slope * sx / static_cast<double>(points.size());
    }
    slope = k.b;
    k.a = std::max(k.a, 1e-6);
  }
  return absl::OkStatus();
}

// Least squares with weights 1 / ms^2 (relative errors count) of c0 + c1 chunk + c2 W; a coefficient that comes out
// negative is left out and the rest fitted again.
void StepModel::FitPrefill() {
  bool use[3] = {true, true, true};
  double x[3] = {0, 0, 0};
  for (int round = 0; round < 3; ++round) {
    double m[3][4] = {};
    for (const PrefillPoint& p : c_.prefill) {
      const double f[3] = {1, p.chunk, p.chunk * (p.prefix + p.chunk / 2)};
      const double w = 1 / (p.ms * p.ms);
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) m[i][j] += w * f[i] * f[j];
        m[i][3] += w * f[i] * p.ms;
      }
    }
    for (int i = 0; i < 3; ++i) {
      if (use[i]) continue;
      for (int j = 0; j < 4; ++j) m[i][j] = 0;
      for (int j = 0; j < 3; ++j) m[j][i] = 0;
      m[i][i] = 1;
    }
    for (int i = 0; i < 3; ++i) {  // elimination; the matrix is symmetric and positive
      m[i][i] += 1e-12 * (m[i][i] + 1e-12);
      for (int r = 0; r < 3; ++r) {
        if (r == i) continue;
        const double f = m[r][i] / m[i][i];
        for (int j = 0; j < 4; ++j) m[r][j] -= f * m[i][j];
      }
    }
    int worst = -1;
    for (int i = 0; i < 3; ++i) {
      x[i] = m[i][3] / m[i][i];
      if (x[i] < 0 && (worst < 0 || i == 0)) worst = i;
    }
    if (worst < 0) break;
    use[worst] = false;
    x[worst] = 0;
  }
  c0_ = std::max(0.0, x[0]), c1_ = std::max(0.0, x[1]), c2_ = std::max(0.0, x[2]);
}

namespace {

template <typename Knots, typename Get>
double Interpolate(const Knots& knots, double n, Get get) {
  if (knots.size() == 1 || n <= knots.front().n) return get(knots.front());
  size_t i = 1;
  while (i + 1 < knots.size() && knots[i].n < n) ++i;
  const auto& lo = knots[i - 1];
  const auto& hi = knots[i];
  const double t = (n - lo.n) / (hi.n - lo.n);  // beyond the last knot: its slope goes on
  return std::max(get(lo) + t * (get(hi) - get(lo)), 0.1 * get(lo));
}

}  // namespace

double StepModel::DecodeBaseMs(double n) const {
  return c_.step_fixed_ms + Interpolate(knots_, n, [](const Knot& k) { return k.a; });
}

double StepModel::ContextMs(double n) const {
  const double last = knots_.back().n;
  return Interpolate(knots_, std::min(n, last), [](const Knot& k) { return k.b; });
}

double StepModel::StepMs(const StepWork& w) const {
  const double attention = w.decodes == 0 ? 0 : ContextMs(w.decodes) * static_cast<double>(w.context);
  if (w.chunk_tokens == 0) return DecodeBaseMs(w.decodes) + attention;
  const double rows = w.decodes + w.chunk_tokens;
  const double floor = DecodeBaseMs(std::min(rows, knots_.back().n));
  return std::max(c_.step_fixed_ms + c0_ + c1_ * rows, floor) + attention + c2_ * w.attention;
}

double StepModel::PrefillMs(uint32_t tokens, uint32_t prefix, uint32_t step_tokens) const {
  double ms = 0;
  for (uint32_t done = 0; done < tokens;) {
    const uint32_t chunk = std::min(tokens - done, step_tokens);
    ms += StepMs({0, 0, chunk, double(chunk) * (prefix + done + chunk / 2.0)});
    done += chunk;
  }
  return ms;
}

double StepModel::TransferMs(double bytes, uint32_t flows) const {
  return c_.transfer_fixed_ms + bytes * std::max(1u, flows) / (c_.transfer_gb_per_s * 1e6);
}

double StepModel::HostCopyMs(double bytes) const { return 0.05 + bytes / (c_.host_gb_per_s * 1e6); }

StepModel::FitError StepModel::fit_error() const {
  FitError e;
  const auto raise = [](double model, double measured, double* worst) {
    *worst = std::max(*worst, std::abs(model - measured) / measured);
  };
  for (const DecodePoint& p : c_.decode) {
    const StepWork w{static_cast<uint32_t>(p.n), static_cast<uint64_t>(p.n * p.context), 0, 0};
    raise(StepMs(w) - c_.step_fixed_ms, p.ms, &e.decode);
  }
  for (const PrefillPoint& p : c_.prefill) {
    const StepWork w{0, 0, static_cast<uint32_t>(p.chunk), p.chunk * (p.prefix + p.chunk / 2)};
    raise(StepMs(w) - c_.step_fixed_ms, p.ms, &e.prefill);
  }
  for (const MixedPoint& p : c_.mixed) {
    const StepWork w{static_cast<uint32_t>(p.n), static_cast<uint64_t>(p.n * p.context), static_cast<uint32_t>(p.chunk),
                     p.chunk * (p.prefix + p.chunk / 2)};
    raise(StepMs(w) - c_.step_fixed_ms, p.ms, &e.mixed);
  }
  return e;
}

}  // namespace agentserve::sim
