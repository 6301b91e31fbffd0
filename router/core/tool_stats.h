// When programs come back from their tool waits: histograms of return times per (workflow class, tool) and a summary
// per program, both of constant size. Placement's gate, KV retention and prefetch ask "back within dt, given that it
// has been away for this long?" (InferCept 2402.01869, Continuum 2511.02230 use the same statistics.)
//
// Single-threaded, owned by the core. Times are milliseconds. Deterministic.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

namespace agentserve::router {

// Return times in half octaves from 1 ms on, the last bucket open, and those that never came back. Within a bucket
// times are taken as uniform. Old samples fade: all weights are halved at 4,096 samples.
class GapHistogram {
 public:
  static constexpr int kBuckets = 48;  // the last one starts at 2^23 ms = 2.3 hours
  static constexpr float kMostWeight = 4096;

  void Add(double gap_ms, double weight = 1);
  // A program that had its last call before this gap.
  void AddGone(double weight = 1);

  // Weight of all samples, those that never came back included.
  double weight() const { return returned_ + gone_; }
  double returned() const { return returned_; }
  // P(T > elapsed), those that never come back included; 1 without samples.
  double Survival(double elapsed_ms) const;
  // P(T <= elapsed + within | T > elapsed). 0 when nothing is known to be that late.
  double ProbWithin(double elapsed_ms, double within_ms) const;
  // The time t >= elapsed with P(T <= t | elapsed < T < infinity) = q, q in (0, 1). `elapsed` when nothing is known to
  // be that late.
  double Quantile(double q, double elapsed_ms = 0) const;
  double Median(double elapsed_ms = 0) const { return Quantile(0.5, elapsed_ms); }

 private:
  void Fade();
  // Weight of returns in (elapsed, infinity).
  double ReturnsAfter(double elapsed_ms) const;

  std::array<float, kBuckets> count_{};
  double returned_ = 0, gone_ = 0;
};

// The gaps of one program as a lognormal: 24 bytes, so that every program has one.
struct GapSummary {
  uint32_t count = 0;
  double log_mean = 0, log_m2 = 0;  // Welford sums over ln(1 + ms)

  void Add(double gap_ms);
  // P(T <= elapsed + within | T > elapsed); only meaningful with count > 0.
  double ProbWithin(double elapsed_ms, double within_ms) const;
};

// Histograms by (class, tool), with fallback to the tool in any class, the class with any tool, and everything.
class ToolStats {
 public:
  // 4 x 512 x 216 B is under half a MiB. Past it the one not used for longest is forgotten.
  explicit ToolStats(size_t most = 2048) : most_(most) {}

  void OnReturn(std::string_view workflow_class, std::string_view tool, double gap_ms);
  // The program ended, or was forgotten, in the gap after this tool.
  void OnGone(std::string_view workflow_class, std::string_view tool);
  // The most specific histogram with at least kEnough samples; the one of everything if there is none.
  const GapHistogram& Best(std::string_view workflow_class, std::string_view tool) const;
  size_t size() const { return index_.size(); }
  void CheckInvariants() const;

  static constexpr double kEnough = 8;

 private:
  struct Entry {
    std::string key;
    GapHistogram histogram;
  };
  GapHistogram& Touch(std::string key);
  template <typename F>
  void ForEachLevel(std::string_view workflow_class, std::string_view tool, F f);

  const size_t most_;
  std::list<Entry> lru_;                                                    // most recently used first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> index_;  // keys point into lru_
  GapHistogram all_;
};

// Both together: the program's own gaps weigh as many samples as they are, the histogram as kPriorGaps.
inline constexpr double kPriorGaps = 4;
double ProbReturnWithin(const GapHistogram& tool, const GapSummary& program, double elapsed_ms, double within_ms);

}  // namespace agentserve::router
