// How much a program costs in all, learned per workflow class: survival over attained cost, from the programs that
// passed each size and those that ended in it, so that programs still running count for what is known of them
// (Kaplan and Meier 1958). Real agent chains have a decreasing hazard rate: the more they used, the more they need.
//
// Single-threaded, owned by the core. Costs in units of CostModel. Deterministic.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace agentserve::router {

class SizeHistogram {
 public:
  static constexpr int kBuckets = 56;  // half octaves from 16 on: the last starts at 3.9 G units (hours of a GPU)
  static constexpr double kMostSeen = 2048;

  // A program went from cost `from` to cost `to` and is still going. `from` = 0: it is new.
  void OnProgress(double from, double to);
  void OnEnd(double total);
  // E[total - attained | total > attained]. At least what the hazard at `attained` gives where data ends: a program
  // that outlived all others is expected to need as much again. `fallback` stands in for missing data.
  double Residual(double attained, double fallback) const;
  uint64_t ended() const { return ends_; }

  static double BucketStart(int b);
  static int BucketOf(double cost);

 private:
  void Refresh() const;

  std::array<double, kBuckets> entered_{}, ended_{};
  double seen_ = 0;
  uint64_t ends_ = 0;
  mutable std::array<double, kBuckets> residual_{};  // at the start of each bucket
  mutable bool stale_ = true;
};

// By class; classes past the bound share one histogram.
class ProgramSizes {
 public:
  explicit ProgramSizes(size_t most_classes = 256) : most_(most_classes) {}
  void OnProgress(std::string_view workflow_class, double from, double to);
  void OnEnd(std::string_view workflow_class, double total);
  // Of the class if it has kEnough programs that ended, else of all, else `fallback`.
  double Residual(std::string_view workflow_class, double attained, double fallback) const;
  static constexpr uint64_t kEnough = 8;

 private:
  SizeHistogram* Of(std::string_view workflow_class);
  const size_t most_;
  std::map<std::string, SizeHistogram, std::less<>> classes_;
  SizeHistogram all_;
};

}  // namespace agentserve::router
