#include "worker/step_metrics.h"

#include <cstdio>

#include "base/log.h"

namespace agentserve::worker {
namespace {

using base::Field;

constexpr base::TimeNs kLogEvery = 10 * base::kNsPerSecond;

double Seconds(base::TimeNs ns) { return static_cast<double>(ns) / 1e9; }

std::string OneDecimal(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", v);
  return text;
}

}  // namespace

StepMetrics::StepMetrics(base::Metrics* m)
    : metrics_(m),
      step_seconds_(m->Histogram("agentserve_worker_step_seconds", "Duration of one model step.", base::ItlBuckets())),
      itl_seconds_(m->Histogram("agentserve_worker_inter_token_seconds",
                                "From the end of a step with decodes to the end of the next one.", base::ItlBuckets())),
      batch_size_(m->Histogram("agentserve_worker_step_sequences", "Sequences in one step.",
                               {1, 2, 4, 8, 16, 32, 64, 128, 256})),
      prefill_seconds_(m->Histogram("agentserve_worker_prefill_seconds", "First chunk to first token of a prompt.",
                                    base::TtftBuckets())),
      prefill_wait_seconds_(m->Histogram("agentserve_worker_prefill_wait_seconds",
                                         "Arrival at the worker to the first chunk of a prompt.", base::TtftBuckets())),
      prompt_tokens_(m->Counter("agentserve_worker_prompt_tokens_total", "Tokens of prompts whose KV is complete.")),
      generated_tokens_(m->Counter("agentserve_worker_generated_tokens_total", "Tokens sampled.")),
      computed_tokens_(m->Counter("agentserve_worker_computed_tokens_total", "Tokens run through the model.")),
      prefix_queries_(
          m->Counter("agentserve_worker_prefix_cache_queries_tokens_total",
                     "Prompt tokens looked up in the prefix cache, counted once when prefill is complete.")),
      prefix_hits_(
          m->Counter("agentserve_worker_prefix_cache_hits_tokens_total", "Of these, tokens whose KV was found.")),
      preemptions_(m->Counter("agentserve_worker_preemptions_total", "Sequences that lost their blocks.")),
      kv_use_(m->Gauge("agentserve_worker_kv_use_ratio", "Blocks written or held by sequences, of all; 0 to 1.")),
      cached_blocks_(m->Gauge("agentserve_worker_kv_cached_blocks", "Blocks caching prefixes that nobody holds.")),
      running_(m->Gauge("agentserve_worker_running_sequences", "Sequences running.")),
      waiting_(m->Gauge("agentserve_worker_waiting_sequences", "Sequences waiting for blocks, KV or prefill.")),
      waiting_tokens_(m->Gauge("agentserve_worker_waiting_tokens", "Prompt tokens not yet prefilled.")) {
  for (const char* reason : {"DEADLINE", "EXECUTOR", "HOLD_EXPIRED", "INVALID", "QUEUE_FULL", "TOO_LONG"}) {
    FailureCounter(reason);  // so that each series starts at 0
  }
}

prometheus::Counter& StepMetrics::FailureCounter(const std::string& reason) {
  prometheus::Counter*& counter = failures_[reason];
  if (counter == nullptr) {
    counter =
        &metrics_->Counter("agentserve_worker_failures_total", "Sequences that failed here.", {{"reason", reason}});
  }
  return *counter;
}

void StepMetrics::OnStep(const engine::PlannedStep& step, base::TimeNs started, base::TimeNs ended) {
  step_seconds_.Observe(Seconds(ended - started));
  batch_size_.Observe(static_cast<double>(step.plan.slices.size()));
  size_t decodes = 0;
  for (const engine::SeqSlice& slice : step.plan.slices) decodes += slice.tokens.size() == 1 && slice.sample;
  if (decodes > 0 && last_decode_end_ > 0) itl_seconds_.Observe(Seconds(ended - last_decode_end_));
  last_decode_end_ = decodes > 0 ? ended : 0;
  const size_t prefill = step.tokens - decodes;
  if (prefill > 8 * decodes && prefill >= 32 && ended > started) {
    const double rate = static_cast<double>(prefill) / Seconds(ended - started);
    prefill_rate_ = prefill_rate_ == 0 ? rate : 0.8 * prefill_rate_ + 0.2 * rate;
  }
}

void StepMetrics::Update(const engine::PlannerStats& stats, const engine::Load& load, const engine::BlockPool& pool) {
  const auto add = [](prometheus::Counter& counter, uint64_t now, uint64_t* before) {
    if (now > *before) counter.Increment(static_cast<double>(now - *before));
    *before = now;
  };
  add(prompt_tokens_, stats.prompt_tokens, &last_.prompt_tokens);
  add(generated_tokens_, stats.generated_tokens, &last_.generated_tokens);
  add(computed_tokens_, stats.computed_tokens, &last_.computed_tokens);
  add(prefix_queries_, stats.prefix_queries, &last_.prefix_queries);
  add(prefix_hits_, stats.prefix_hits, &last_.prefix_hits);
  add(preemptions_, stats.preemptions, &last_.preemptions);
  kv_use_.Set(static_cast<double>(pool.writing() + pool.held()) / static_cast<double>(pool.total()));
  cached_blocks_.Set(pool.cached());
  running_.Set(load.running);
  waiting_.Set(load.waiting);
  waiting_tokens_.Set(static_cast<double>(load.waiting_tokens));
}

void StepMetrics::OnPrefill(base::TimeNs wait_ns, base::TimeNs prefill_ns) {
  prefill_wait_seconds_.Observe(Seconds(wait_ns));
  prefill_seconds_.Observe(Seconds(prefill_ns));
}

void StepMetrics::OnFailure(const std::string& reason) { FailureCounter(reason).Increment(); }

void StepMetrics::LogThroughput(const engine::PlannerStats& stats, const engine::Load& load, base::TimeNs now) {
  if (logged_at_ == 0) logged_at_ = now;
  if (now - logged_at_ < kLogEvery) return;
  const double seconds = Seconds(now - logged_at_);
  const uint64_t steps = stats.steps - logged_.steps;
  if (steps > 0) {
    const uint64_t queries = stats.prefix_queries - logged_.prefix_queries;
    const uint64_t hits = stats.prefix_hits - logged_.prefix_hits;
    AS_LOG(kInfo, "worker.throughput")
        << Field("steps", steps)
        << Field("computed_tok_s",
                 OneDecimal(static_cast<double>(stats.computed_tokens - logged_.computed_tokens) / seconds))
        << Field("generated_tok_s",
                 OneDecimal(static_cast<double>(stats.generated_tokens - logged_.generated_tokens) / seconds))
        << Field("running", load.running) << Field("waiting", load.waiting)
        << Field("blocks_available", load.available_blocks) << Field("blocks_total", load.total_blocks)
        << Field("prefix_hit_pct",
                 OneDecimal(queries == 0 ? 0 : 100.0 * static_cast<double>(hits) / static_cast<double>(queries)))
        << Field("preemptions", stats.preemptions - logged_.preemptions);
  }
  logged_ = stats;
  logged_at_ = now;
}

}  // namespace agentserve::worker
