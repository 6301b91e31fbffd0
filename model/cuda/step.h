// Turns a planned step into the integer arrays that the kernels read, packed so that one copy brings them to the
// device. Pure host code.
//
// Row order: decodes (slices of one token that attend through the decode kernel) first, then the chunks one after the
// other. Sampling rows are numbered in slice order, as in the step's output.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "engine/batch.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/sampling/sampling_cuda.h"
#include "model/config.h"
#include "model/cuda/device.h"
#include "model/model.h"

namespace agentserve::model::cuda {

// Sizes of a step's arrays. A captured graph is made for one shape and replayed for all steps that fit it.
struct StepShape {
  int decodes = 0;       // rows of the decode kernel, padding included
  int chunks = 0;        // sequences of the prefill kernel
  int chunk_tokens = 0;  // of all chunks
  int max_new = 0;       // most tokens of a chunk
  int max_tiles = 0;
  int samples = 0;        // rows that sample, padding included
  int table_stride = 0;   // blocks per row of the chunks' block tables
  int decode_stride = 0;  // blocks per row of the decodes' block tables, which live beside the other arrays
  kernels::cuda::DecodePlanLimits decode_limits;
  int rows() const { return decodes + chunk_tokens; }
  // Every row samples and sampling row i is row i: nothing needs to be gathered.
  bool all_sample() const { return chunks == 0 && samples == decodes; }
};

// The arrays, in pinned host memory or at the same offsets in device memory.
struct StepArrays {
  int32_t* ids = nullptr;        // [rows]
  int32_t* from = nullptr;       // [rows] sampling row of the step before, or -1
  int32_t* positions = nullptr;  // [rows]
  int32_t* slots = nullptr;      // [rows] where K and V go; -1 for padding
  int32_t* splits = nullptr;     // [decodes + 1]
  kernels::cuda::DecodeUnit* units = nullptr;
  int32_t* cu_tokens = nullptr;                    // [chunks + 1]
  int32_t* starts = nullptr;                       // [chunks]
  int32_t* tiles = nullptr;                        // [max_tiles]
  int32_t* chunk_tables = nullptr;                 // [chunks][table_stride]
  int32_t* sample_rows = nullptr;                  // [samples]
  kernels::cuda::SamplingRow* settings = nullptr;  // [samples]

  // [decodes][decode_stride]; not carved but set by the owner, who keeps it from step to step: little of it changes.
  int32_t* decode_tables = nullptr;

  static StepArrays Carve(const StepShape& shape, Arena* arena);
  static size_t Bytes(const StepShape& shape);
};

struct StepOptions {
  bool batch_invariant = false;  // prompt tokens never go through the decode kernel; fixed KV chunks
  int num_sms = 132;
};
// Positions per unit of decode attention in the batch-invariant mode.
inline constexpr int kInvariantChunk = 512;

// Sizes of the decode plan for `rows` rows of at most `context` positions.
kernels::cuda::DecodePlanLimits DecodeLimitsOf(int rows, int context, const ModelConfig& config,
                                               const StepOptions& options);

// What the plan of one step comes to.
struct StepLayout {
  std::vector<uint32_t> decodes;  // slice indices, in row order
  std::vector<uint32_t> chunks;
  std::vector<uint32_t> samples;
  StepShape shape;  // exact: no padding
};

absl::Status ValidateStep(const engine::StepPlan& plan, const ModelConfig& config, const engine::KvPoolView& pool,
                          const ExecutorLimits& limits);
StepLayout LayOut(const engine::StepPlan& plan, uint32_t block_tokens, const StepOptions& options);

// Sampling rows of the step before, for slices whose input is still on the device.
using PendingRows = std::unordered_map<uint64_t, int32_t>;

struct PackedStep {
  int units = 0;
  int tiles = 0;
  int table_columns = 0;        // of the decodes' block tables that are in use
  bool tables_changed = false;  // some of them differ from what decode_tables held
};
// Fills `to`, carved for `shape` (at least layout.shape in every size). INVALID_ARGUMENT if an input is pending that no
// step in flight makes. The settings' edits are not filled in.
absl::Status PackStep(const engine::StepPlan& plan, const StepLayout& layout, const StepShape& shape,
                      const PendingRows& pending, uint32_t block_tokens, uint32_t head_dim, const StepOptions& options,
                      const StepArrays& to, PackedStep* out);

}  // namespace agentserve::model::cuda
