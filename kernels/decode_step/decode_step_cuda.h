// A whole decode step of a Llama model as one kernel: embedding, all layers, LM head and greedy choice, for a few
// sequences of one new token each.
//
// One block per multiprocessor stays for the whole step. A loading warp streams every weight and KV byte of the block
// through one ring of shared memory, in program order, over all borders between operations: it waits for room only,
// never for data. Blocks hand each other rows through small buffers in global memory, with counters. Roundings are
// those of docs/numerics.md; sums are in a fixed order, so the same inputs give the same bits, and a row's products do
// not depend on how many rows share the step (its attention is cut by the batch, as elsewhere).
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct DecodeStepLayerWeights {  // row-major [out][in], gate and up interleaved in groups of 8 rows
  const __nv_bfloat16* input_norm = nullptr;
  const __nv_bfloat16* qkv = nullptr;
  const __nv_bfloat16* o = nullptr;
  const __nv_bfloat16* post_norm = nullptr;
  const __nv_bfloat16* gate_up = nullptr;
  const __nv_bfloat16* down = nullptr;
};

// What stays the same from step to step.
struct DecodeStepModel {
  int hidden = 0, ffn = 0, q_heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  float norm_eps = 0;
  const __nv_bfloat16* embedding = nullptr;
  const __nv_bfloat16* lm_head = nullptr;
  const __nv_bfloat16* final_norm = nullptr;
  const __nv_bfloat16* cos = nullptr;  // [positions][head_dim / 2]
  const __nv_bfloat16* sin = nullptr;
  std::vector<DecodeStepLayerWeights> layers;
  // The pool: blocks of [layer][K|V][kv_head][token][head_dim].
  std::byte* pool = nullptr;
  uint32_t num_blocks = 0;
  uint32_t block_tokens = 0;
};

// One step. Row i attends to positions [0, positions[i]] of the blocks in its row of `tables`.
struct DecodeStepParams {
  int rows = 0;                        // 1, 2 or 4
  const int32_t* ids = nullptr;        // [rows] input tokens
  const int32_t* from = nullptr;       // [rows] row of `sampled` that holds the input token instead, or -1; may be null
  const int32_t* sampled = nullptr;    // tokens of the step before
  const int32_t* positions = nullptr;  // [rows] of the input tokens
  const int32_t* slots = nullptr;      // [rows] where K and V go (block * block_tokens + token); -1: nowhere
  const int32_t* tables = nullptr;     // [rows][table_stride] blocks
  int table_stride = 0;
  int32_t* tokens = nullptr;        // [rows] lowest index of the largest logit; may be null
  __nv_bfloat16* best = nullptr;    // [rows] that logit; may be null
  __nv_bfloat16* logits = nullptr;  // [rows][vocab]; may be null
  // Stages of the ring that a block may have on their way, for the bench; 0: 48 KiB. Fewer do not keep the memory busy,
  // more make everything else that crosses the chip slower.
  int in_flight = 0;
  // Time of every operation in every block, for the bench: [operation][block] nanoseconds; null: none.
  unsigned long long* trace = nullptr;
};

class DecodeStep {
 public:
  static constexpr int kMaxRows = 4;

  // True if the kernel exists for this shape and a device of so many multiprocessors.
  static bool Supports(const DecodeStepModel& model, int num_sms);
  static size_t WorkspaceBytes(const DecodeStepModel& model, int num_sms);
  // `workspace` belongs to this object from now on; steps of one object run in stream order. Prepares it on `stream`.
  static absl::StatusOr<std::unique_ptr<DecodeStep>> Create(const DecodeStepModel& model, void* workspace, int num_sms,
                                                            cudaStream_t stream);
  ~DecodeStep();

  static bool SupportsRows(int rows);
  // Asynchronous, may be captured. All blocks must fit on the GPU at the same time, so never with fewer
  // multiprocessors than Create was told.
  absl::Status Launch(const DecodeStepParams& params, cudaStream_t stream) const;

 private:
  struct Impl;
  explicit DecodeStep(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace agentserve::kernels::cuda
