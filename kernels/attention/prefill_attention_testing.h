// Problems for the test and the benchmark of prefill attention: a pool with scattered blocks, ragged sequences, a
// reference in double.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <vector>

#include "kernels/attention/attention_cuda.h"

namespace agentserve::kernels::cuda::testing {

struct PrefillSequence {
  int start, tokens;
};

struct PrefillShape {
  int q_heads, kv_heads, head_dim, block_tokens;
  std::vector<PrefillSequence> sequences;
  bool scattered = true;  // blocks in random order (false: ascending)
  float scale_q = 1.0f;   // spread of the queries
};

// Owns device memory. Unused slots of the pool and the output are NaN.
class PrefillProblem {
 public:
  PrefillProblem(const PrefillShape& shape, uint32_t seed);
  ~PrefillProblem();
  PrefillProblem(const PrefillProblem&) = delete;
  PrefillProblem& operator=(const PrefillProblem&) = delete;

  const PrefillAttentionParams& params() const { return params_; }
  const PrefillShape& shape() const { return shape_; }
  int tokens() const { return params_.tokens; }
  size_t OutputCount() const;
  double Flops() const;  // of the two products, visible pairs only
  void PoisonOutput();
  std::vector<uint16_t> Output() const;
  // Same pool and queries, another cut: sequences (index, start, tokens) with start >= that of the original; rows keep
  // their queries. `offsets[i]` gets the row of the original output that row 0 of slice i is.
  struct Slice {
    int sequence, start, tokens;
  };
  void Cut(const std::vector<Slice>& slices, std::vector<int>* offsets);
  // Largest ||out - reference|| / ||reference|| over chunks of rows, and whether every element was written; every
  // `stride`-th row is checked.
  double Error(int stride) const;

 private:
  void Plan(const std::vector<PrefillSequence>& sequences, const std::vector<std::vector<int32_t>>& tables);
  template <typename T>
  T* Upload(const std::vector<T>& values);

  PrefillShape shape_;
  PrefillAttentionParams params_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int> first_row_;
  __nv_bfloat16* q_ = nullptr;
  std::vector<void*> allocations_;
};

// Mean clock of the multiprocessors over an interval of the default stream: their cycle counters against the global
// timer, read by a kernel at either end. Under load the clock follows the power limit, so a time means little without
// it.
class SmClock {
 public:
  SmClock();
  ~SmClock();
  SmClock(const SmClock&) = delete;
  SmClock& operator=(const SmClock&) = delete;
  void Begin() { Read(0); }
  void End() { Read(1); }
  double Mhz() const;  // after a synchronisation

 private:
  struct Reading {
    static constexpr int kMaxSms = 256;
    uint64_t cycles[kMaxSms], ns[kMaxSms];
  };
  void Read(int which);
  Reading* readings_;  // managed
};

}  // namespace agentserve::kernels::cuda::testing
