// A paged KV pool on the device with random contents and NaN wherever nothing was written, and decode attention over
// it. Used by the test and the benchmark.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/attention/attention_cuda.h"

namespace agentserve::kernels::cuda {

struct DecodeCase {
  std::vector<int32_t> lengths;  // with the new token; 0 = empty row of the bucket
  int q_heads = 32;
  int kv_heads = 8;
  int head_dim = 64;
  int block_tokens = 16;
  int fixed_chunk = 0;
  int cluster = 0;           // 0: the plan's
  int heads = 0;             // 0: the plan's; else with one block a cluster
  int combine_kernel = -1;   // -1: the plan's
  int shared_blocks = 0;     // leading blocks that all sequences share
  int layers = 2;            // the last one is attended
  int64_t spare_blocks = 3;  // in front of the used blocks, never touched: moves them to the end of the pool
  uint64_t seed = 1;
};

class DecodeFixture {
 public:
  // Exits the process on a CUDA error.
  explicit DecodeFixture(const DecodeCase& c);
  ~DecodeFixture();
  DecodeFixture(const DecodeFixture&) = delete;
  DecodeFixture& operator=(const DecodeFixture&) = delete;

  DecodeAttentionParams Params() const;
  // Poisons the output, runs once, returns [rows][q_heads][head_dim].
  std::vector<uint16_t> Run(bool pdl = false);
  // Poisons q and each sequence's newest KV row as well; a kernel that writes them late runs right before, chained by
  // programmatic dependent launch.
  std::vector<uint16_t> RunAfterLateWriter();
  // Softmax in double of the stored bf16 values; rows of length 0 are 0.
  std::vector<double> Reference() const;
  // True if the workspace's counters are all zero.
  bool CountersAreZero() const;
  int units() const { return units_; }

 private:
  size_t BlockElements() const;
  std::vector<uint16_t> Output() const;
  size_t Offset(int64_t block, bool v, int head, int token) const;  // elements, of the attended layer

  DecodeCase case_;
  DecodePlanLimits limits_;
  int units_ = 0;
  int table_stride_ = 0;
  int64_t used_blocks_ = 0;
  std::vector<int32_t> tables_;   // physical ids
  std::vector<uint16_t> q_, kv_;  // kv_: the used blocks
  std::vector<DecodeUnit> plan_;
  std::vector<int32_t> splits_;
  void *q_device_ = nullptr, *out_device_ = nullptr, *pool_ = nullptr, *tables_device_ = nullptr;
  void *units_device_ = nullptr, *splits_device_ = nullptr, *workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
};

float Bf16ToFloat(uint16_t bits);
void CheckCuda(cudaError_t error, const char* what);

}  // namespace agentserve::kernels::cuda
