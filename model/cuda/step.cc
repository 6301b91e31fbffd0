#include "model/cuda/step.h"

#include <algorithm>

#include "base/strings.h"

namespace agentserve::model::cuda {
namespace {

using base::StrCat;
using engine::SeqSlice;
using kernels::cuda::SamplingRow;

absl::Status ValidateSlice(const SeqSlice& s, const ModelConfig& config, const engine::KvPoolView& pool) {
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(StrCat("sequence ", s.seq.value, ": ", what));
  };
  if (s.tokens.empty()) return bad("no tokens");
  const uint64_t end = uint64_t{s.start} + s.tokens.size();
  if (end > config.max_position) {
    return bad(StrCat("ends at position ", end, ", beyond the context length ", config.max_position));
  }
  if (s.input_pending && s.tokens.size() != 1) return bad("its pending input is not its only token");
  for (const engine::TokenId id : s.tokens) {
    if (!s.input_pending && id >= config.vocab_size) {
      return bad(StrCat("token ", id, " is not below vocab_size ", config.vocab_size));
    }
  }
  const uint32_t blocks = pool.layout.BlocksFor(end);
  if (s.blocks.size() < blocks) {
    return bad(StrCat("has ", s.blocks.size(), " blocks, but ", end, " positions need ", blocks));
  }
  for (uint32_t b = 0; b < blocks; ++b) {
    if (s.blocks[b].value >= pool.num_blocks) {
      return bad(StrCat("block ", s.blocks[b].value, " is not in the pool of ", pool.num_blocks));
    }
  }
  if (s.sample && (s.sampling == nullptr || s.history.size() != end || s.prompt_tokens > end)) {
    return bad(StrCat("samples, but its parameters are absent or its history of ", s.history.size(),
                      " tokens does not end with the slice at ", end));
  }
  if (s.sample && s.sampling->top_logprobs > kernels::cuda::kMaxTopLogprobs) {
    return bad(StrCat("top_logprobs = ", s.sampling->top_logprobs, "; at most ", kernels::cuda::kMaxTopLogprobs));
  }
  return absl::OkStatus();
}

// True if the row held something else.
bool FillTable(const SeqSlice& s, uint32_t blocks, int32_t* to) {
  int32_t differs = 0;
  for (uint32_t b = 0; b < blocks; ++b) {
    const auto block = static_cast<int32_t>(s.blocks[b].value);
    differs |= to[b] ^ block;
    to[b] = block;
  }
  return differs != 0;
}

SamplingRow SettingsOf(const SeqSlice& s) {
  const engine::SamplingParams& p = *s.sampling;
  SamplingRow row = {};
  row.temperature = p.temperature;
  row.top_k = p.top_k;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.repetition_penalty = p.repetition_penalty;
  row.presence_penalty = p.presence_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.top_logprobs = p.top_logprobs;
  row.seed = p.seed;
  row.position = s.history.size();
  return row;
}

// Writes one row's token, position and place in the pool.
class RowWriter {
 public:
  RowWriter(const StepArrays& to, uint32_t block_tokens) : to_(to), block_tokens_(block_tokens) {}
  void Token(const SeqSlice& s, size_t i, int32_t from) {
    const auto position = static_cast<uint32_t>(s.start + i);
    const uint32_t block = s.blocks[position / block_tokens_].value;
    to_.ids[row_] = from >= 0 ? 0 : static_cast<int32_t>(s.tokens[i]);
    to_.from[row_] = from;
    to_.positions[row_] = static_cast<int32_t>(position);
    to_.slots[row_] = static_cast<int32_t>(block * block_tokens_ + position % block_tokens_);
    ++row_;
  }
  void Padding() {
    to_.ids[row_] = 0;
    to_.from[row_] = -1;
    to_.positions[row_] = 0;
    to_.slots[row_] = -1;
    ++row_;
  }
  int row() const { return row_; }

 private:
  const StepArrays& to_;
  const uint32_t block_tokens_;
  int row_ = 0;
};

}  // namespace

StepArrays StepArrays::Carve(const StepShape& shape, Arena* arena) {
  const auto rows = static_cast<size_t>(shape.rows()), decodes = static_cast<size_t>(shape.decodes);
  const auto chunks = static_cast<size_t>(shape.chunks), stride = static_cast<size_t>(shape.table_stride);
  StepArrays a;
  a.ids = arena->Take<int32_t>(rows);
  a.from = arena->Take<int32_t>(rows);
  a.positions = arena->Take<int32_t>(rows);
  a.slots = arena->Take<int32_t>(rows);
  a.splits = arena->Take<int32_t>(decodes + 1);
  a.units = arena->Take<kernels::cuda::DecodeUnit>(static_cast<size_t>(shape.decode_limits.max_units));
  a.cu_tokens = arena->Take<int32_t>(chunks + 1);
  a.starts = arena->Take<int32_t>(chunks);
  a.tiles = arena->Take<int32_t>(static_cast<size_t>(shape.max_tiles));
  a.chunk_tables = arena->Take<int32_t>(chunks * stride);
  a.sample_rows = arena->Take<int32_t>(static_cast<size_t>(shape.samples));
  a.settings = arena->Take<SamplingRow>(static_cast<size_t>(shape.samples));
  return a;
}

size_t StepArrays::Bytes(const StepShape& shape) {
  Arena arena(nullptr);
  Carve(shape, &arena);
  return arena.used();
}

kernels::cuda::DecodePlanLimits DecodeLimitsOf(int rows, int context, const ModelConfig& config,
                                               const StepOptions& options) {
  kernels::cuda::DecodePlanLimits limits =
      kernels::cuda::DecodeLimits(rows, context, options.num_sms, options.batch_invariant ? kInvariantChunk : 0,
                                  static_cast<int>(config.num_kv_heads), static_cast<int>(config.head_dim));
  // Every row at full context does not fit any pool: 8192 chunks of 512 positions are 4 Mi positions, 128 GiB of KV for
  // the 1B shape.
  constexpr int kMostUnits = 8192;
  limits.max_units = std::min(limits.max_units, kMostUnits + rows);
  return limits;
}

absl::Status ValidateStep(const engine::StepPlan& plan, const ModelConfig& config, const engine::KvPoolView& pool,
                          const ExecutorLimits& limits) {
  size_t rows = 0;
  for (size_t i = 0; i < plan.slices.size(); ++i) {
    if (absl::Status s = ValidateSlice(plan.slices[i], config, pool); !s.ok()) {
      return absl::InvalidArgumentError(StrCat("slice ", i, ": ", base::MessageOf(s)));
    }
    rows += plan.slices[i].tokens.size();
  }
  if (rows > limits.max_step_tokens || plan.slices.size() > limits.max_sequences) {
    return absl::InvalidArgumentError(StrCat("a step of ", rows, " tokens of ", plan.slices.size(),
                                             " sequences; this executor takes at most ", limits.max_step_tokens,
                                             " tokens (--step-tokens) of ", limits.max_sequences, " (--max-batch)"));
  }
  return absl::OkStatus();
}

StepLayout LayOut(const engine::StepPlan& plan, uint32_t block_tokens, const StepOptions& options) {
  StepLayout out;
  uint64_t longest = 0;
  for (uint32_t i = 0; i < plan.slices.size(); ++i) {
    const SeqSlice& s = plan.slices[i];
    const uint64_t end = s.start + s.tokens.size();
    // In the batch-invariant mode a prompt's row must not depend on how the prompt was cut, so all its rows take the
    // prefill kernel.
    const bool output = s.sample && end > s.prompt_tokens;
    if (s.tokens.size() == 1 && (output || !options.batch_invariant)) {
      out.decodes.push_back(i);
    } else {
      out.chunks.push_back(i);
      longest = std::max(longest, end);
      out.shape.chunk_tokens += static_cast<int>(s.tokens.size());
      out.shape.max_new = std::max(out.shape.max_new, static_cast<int>(s.tokens.size()));
    }
    if (s.sample) out.samples.push_back(i);
  }
  out.shape.decodes = static_cast<int>(out.decodes.size());
  out.shape.chunks = static_cast<int>(out.chunks.size());
  out.shape.samples = static_cast<int>(out.samples.size());
  out.shape.table_stride = static_cast<int>((longest + block_tokens - 1) / block_tokens);
  return out;
}

absl::Status PackStep(const engine::StepPlan& plan, const StepLayout& layout, const StepShape& shape,
                      const PendingRows& pending, uint32_t block_tokens, uint32_t head_dim, const StepOptions& options,
                      const StepArrays& to, PackedStep* out) {
  RowWriter rows(to, block_tokens);
  std::vector<int32_t> last_row(plan.slices.size());
  std::vector<int32_t> lengths(static_cast<size_t>(shape.decodes), 0);  // padding has no KV, hence no units
  const auto stride = static_cast<size_t>(shape.table_stride);
  for (size_t d = 0; d < layout.decodes.size(); ++d) {
    const SeqSlice& s = plan.slices[layout.decodes[d]];
    int32_t from = -1;
    if (s.input_pending) {
      const auto it = pending.find(s.seq.value);
      if (it == pending.end()) {
        return absl::InvalidArgumentError(
            StrCat("sequence ", s.seq.value, ": its input is pending, but the step before did not sample it"));
      }
      from = it->second;
    }
    last_row[layout.decodes[d]] = rows.row();
    rows.Token(s, 0, from);
    lengths[d] = static_cast<int32_t>(s.start + 1);
    const uint32_t blocks = s.start / block_tokens + 1;
    out->table_columns = std::max(out->table_columns, static_cast<int>(blocks));
    if (FillTable(s, blocks, to.decode_tables + d * static_cast<size_t>(shape.decode_stride))) {
      out->tables_changed = true;
    }
  }
  while (rows.row() < shape.decodes) rows.Padding();
  for (size_t c = 0; c < layout.chunks.size(); ++c) {
    const SeqSlice& s = plan.slices[layout.chunks[c]];
    to.cu_tokens[c] = rows.row() - shape.decodes;
    to.starts[c] = static_cast<int32_t>(s.start);
    for (size_t i = 0; i < s.tokens.size(); ++i) rows.Token(s, i, -1);
    last_row[layout.chunks[c]] = rows.row() - 1;
    FillTable(s, static_cast<uint32_t>((s.start + s.tokens.size() - 1) / block_tokens + 1),
              to.chunk_tables + c * stride);
  }
  to.cu_tokens[layout.chunks.size()] = rows.row() - shape.decodes;
  for (size_t i = 0; i < layout.samples.size(); ++i) {
    to.sample_rows[i] = last_row[layout.samples[i]];
    to.settings[i] = SettingsOf(plan.slices[layout.samples[i]]);
  }
  if (shape.decodes > 0) {
    out->units = kernels::cuda::PlanDecode(lengths.data(), shape.decodes, static_cast<int>(block_tokens),
                                           options.num_sms, options.batch_invariant ? kInvariantChunk : 0,
                                           shape.decode_limits, to.units, to.splits);
    if (out->units < 0) {
      return absl::InvalidArgumentError(StrCat("a step of ", shape.decodes, " decodes needs more than ",
                                               shape.decode_limits.max_units,
                                               " units of attention; run fewer long sequences together"));
    }
  }
  if (shape.chunks > 0) {
    out->tiles =
        kernels::cuda::PlanPrefill(to.cu_tokens, to.starts, shape.chunks, static_cast<int>(head_dim), to.tiles);
  }
  return absl::OkStatus();
}

}  // namespace agentserve::model::cuda
