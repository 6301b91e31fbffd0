#include "model/generate.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "base/clock.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::model {
namespace {

using base::StrCat;
using engine::TokenId;

// A pool that never grows: sized for the whole sequence at the start.
struct PrivatePool {
  KvMemory memory;
  engine::KvPoolView view;
  std::vector<engine::BlockId> table;
};

absl::StatusOr<PrivatePool> MakePool(const Model& model, const engine::KvLayout& layout, uint32_t tokens) {
  PrivatePool pool;
  const uint32_t blocks = layout.BlocksFor(tokens);
  absl::StatusOr<KvMemory> memory = model.AllocateKv(size_t{blocks} * layout.BlockBytes());
  if (!memory.ok()) {
    return absl::ResourceExhaustedError(StrCat(
        "the KV cache of ", tokens, " tokens does not fit: ", base::MessageOf(memory.status()), "; lower max_tokens"));
  }
  pool.memory = *std::move(memory);
  pool.view = {pool.memory.get(), blocks, layout};
  for (uint32_t i = 0; i < blocks; ++i) pool.table.emplace_back(i);
  return pool;
}

absl::Status CheckPrompt(const ModelConfig& config, const std::vector<TokenId>& prompt,
                         const GenerateOptions& options) {
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  if (prompt.size() >= config.max_position) {
    return absl::InvalidArgumentError(StrCat("the prompt has ", prompt.size(), " tokens; the context length is ",
                                             config.max_position, ", prompt and at least one output token"));
  }
  if (options.chunk_tokens == 0 || options.block_tokens == 0) {
    return absl::InvalidArgumentError("chunk_tokens and block_tokens must be at least 1");
  }
  return absl::OkStatus();
}

bool IsEnd(TokenId id, const engine::SamplingParams& p, const ModelConfig& config) {
  const auto in = [id](const std::vector<TokenId>& ids) { return std::find(ids.begin(), ids.end(), id) != ids.end(); };
  return in(p.stop_token_ids) || (!p.ignore_eos && in(config.eos_token_ids));
}

}  // namespace

absl::StatusOr<GenerateResult> Generate(Model& model, const std::vector<TokenId>& prompt,
                                        const engine::SamplingParams& sampling, const GenerateOptions& options,
                                        const TokenCallback& on_token) {
  const ModelConfig& config = model.config();
  AS_RETURN_IF_ERROR(CheckPrompt(config, prompt, options));
  const auto prompt_tokens = static_cast<uint32_t>(prompt.size());
  const uint32_t room = config.max_position - prompt_tokens;
  const uint32_t budget = sampling.max_tokens == 0 ? room : std::min(sampling.max_tokens, room);
  AS_ASSIGN_OR_RETURN(PrivatePool pool, MakePool(model, model.layout(options.block_tokens), prompt_tokens + budget));
  AS_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Executor> executor, model.CreateExecutor(pool.view));

  std::vector<TokenId> history = prompt;
  history.reserve(prompt.size() + budget);  // spans into it stay valid
  GenerateResult result;
  const base::MonotonicClock clock;
  const base::TimeNs began = clock.Now();
  base::TimeNs first_token = began;
  uint32_t at = 0;  // positions whose KV is written
  engine::StepPlan plan;
  engine::StepOutput out;
  while (result.finish_reason == engine::FinishReason::kNone) {
    const auto n = std::min(options.chunk_tokens, static_cast<uint32_t>(history.size()) - at);
    engine::SeqSlice slice;
    slice.tokens = std::span(history).subspan(at, n);
    slice.start = at;
    slice.blocks = pool.table;
    slice.sample = at + n == history.size();
    slice.sampling = &sampling;
    slice.history = history;
    slice.prompt_tokens = prompt_tokens;
    plan.slices = {slice};
    AS_RETURN_IF_ERROR(executor->Run(plan, nullptr, &out));
    at += n;
    if (!slice.sample) continue;
    if (result.tokens.empty()) first_token = clock.Now();
    const engine::SampledToken& token = result.tokens.emplace_back(out.tokens.front());
    history.push_back(token.token);
    if (IsEnd(token.token, sampling, config)) {
      result.finish_reason = engine::FinishReason::kStop;
    } else if (result.tokens.size() == budget) {
      result.finish_reason = engine::FinishReason::kLength;
    }
    if (on_token && !on_token(token)) result.finish_reason = engine::FinishReason::kCancelled;
  }
  result.prefill_seconds = static_cast<double>(first_token - began) / 1e9;
  result.decode_seconds = static_cast<double>(clock.Now() - first_token) / 1e9;
  return result;
}

}  // namespace agentserve::model
