#include "router/service/convert.h"

#include <memory>
#include <utility>

#include "base/check.h"
#include "router/service/stream_edge.h"
#include "router/service/worker_link.h"

namespace agentserve::router {
namespace {

// Start and Reserve have the same fields.
template <typename Message>
void FillSpec(const Command& c, Message* out) {
  const SequenceSpec& s = *c.spec;
  out->set_request_id(s.request_id);
  out->mutable_tokens()->Add(s.tokens.begin(), s.tokens.end());
  out->set_prompt_tokens(s.prompt_tokens);
  FillSampling(s.sampling, out->mutable_sampling());
  out->set_budget_ms(c.budget_ms);
  out->set_cache_salt(s.cache_salt);
  out->set_rank(c.rank);
  out->set_traceparent(s.traceparent);
}

void FillKv(const OpaquePtr& kv, common::v1::KvHandle* out) {
  const auto* box = dynamic_cast<const KvBox*>(kv.get());
  AS_CHECK(box != nullptr) << "a command lacks its KV handle";
  *out = box->value;
}

}  // namespace

void FillSampling(const engine::SamplingParams& p, common::v1::SamplingParams* out) {
  out->set_temperature(p.temperature);
  out->set_top_k(p.top_k);
  out->set_top_p(p.top_p);
  out->set_min_p(p.min_p);
  out->set_repetition_penalty(p.repetition_penalty);
  out->set_presence_penalty(p.presence_penalty);
  out->set_frequency_penalty(p.frequency_penalty);
  for (const auto& [id, bias] : p.logit_bias) {
    auto* b = out->add_logit_bias();
    b->set_token_id(id);
    b->set_bias(bias);
  }
  out->set_seed(p.seed);
  out->set_max_tokens(p.max_tokens);
  out->set_min_tokens(p.min_tokens);
  out->mutable_stop_token_ids()->Add(p.stop_token_ids.begin(), p.stop_token_ids.end());
  out->set_ignore_eos(p.ignore_eos);
  if (p.top_logprobs >= 0) out->set_top_logprobs(static_cast<uint32_t>(p.top_logprobs));
}

void FillCommand(const Command& c, prefill::v1::RunRequest* out) {
  out->set_seq(c.seq.value);
  out->set_attempt(c.attempt);
  switch (c.kind) {
    case CommandKind::kStart:
      FillSpec(c, out->mutable_start());
      return;
    case CommandKind::kReorder:
      out->mutable_reorder()->set_rank(c.rank);
      return;
    case CommandKind::kReleaseKv:
      out->mutable_release_kv();
      return;
    case CommandKind::kCancel:
      out->mutable_cancel();
      return;
    default:
      AS_CHECK(false) << "not a command of prefill workers: " << static_cast<int>(c.kind);
  }
}

decode::v1::KeepWhere ToWire(KeepWhere where) {
  switch (where) {
    case KeepWhere::kDevice:
      return decode::v1::KEEP_WHERE_DEVICE;
    case KeepWhere::kHost:
      return decode::v1::KEEP_WHERE_HOST;
    case KeepWhere::kDrop:
      return decode::v1::KEEP_WHERE_DROP;
  }
  return decode::v1::KEEP_WHERE_UNSPECIFIED;
}

void FillCommand(const Command& c, const common::v1::KvEndpoint* peer, decode::v1::RunRequest* out) {
  out->set_seq(c.seq.value);
  out->set_attempt(c.attempt);
  switch (c.kind) {
    case CommandKind::kReserve:
      FillSpec(c, out->mutable_reserve());
      return;
    case CommandKind::kAttach:
      FillKv(c.kv, out->mutable_attach()->mutable_kv());
      return;
    case CommandKind::kAdmit:
      out->mutable_admit()->set_first_token(c.first_token);
      FillKv(c.kv, out->mutable_admit()->mutable_kv());
      return;
    case CommandKind::kPrefillLocal:
      out->mutable_prefill_local();
      return;
    case CommandKind::kRetain:
      out->mutable_retain()->set_where(ToWire(c.keep));
      out->mutable_retain()->set_ttl_ms(c.ttl_ms);
      out->mutable_retain()->set_worth(c.worth);
      return;
    case CommandKind::kPrefetch:
      out->mutable_prefetch()->set_ttl_ms(c.ttl_ms);
      return;
    case CommandKind::kConnectPeer:
      AS_CHECK(peer != nullptr);
      *out->mutable_connect_peer()->mutable_endpoint() = *peer;
      return;
    case CommandKind::kCancel:
      out->mutable_cancel();
      return;
    default:
      AS_CHECK(false) << "not a command of decode workers: " << static_cast<int>(c.kind);
  }
}

// Keys and values of all layers (docs/kv_block_format.md).
uint64_t BlockBytes(const common::v1::KvLayout& l) {
  return uint64_t{2} * l.num_layers() * l.num_kv_heads() * l.head_dim() * l.block_tokens() *
         (l.dtype() == "fp32" ? 4 : 2);
}

WorkerInfo ToWorkerInfo(const v1::RegisterRequest& req) {
  const auto& e = req.endpoint();
  WorkerInfo w;
  w.name = e.worker_id();
  w.incarnation = e.incarnation();
  w.role = req.role() == v1::WORKER_ROLE_PREFILL ? Role::kPrefill : Role::kDecode;
  w.address = req.address();
  w.model_id = req.model_id();
  w.model_fingerprint = req.model_fingerprint();
  w.layout_fingerprint = e.layout().fingerprint();
  w.block_tokens = e.layout().block_tokens();
  w.num_blocks = e.num_blocks();
  w.block_bytes = BlockBytes(e.layout());
  w.context_length = req.context_length();
  w.max_batch = req.max_batch();
  w.draining = req.draining();
  w.prefill_tokens_per_s = req.prefill_tokens_per_s();
  return w;
}

WorkerLoad ToLoad(const common::v1::WorkerLoad& l) {
  return {l.running(),       l.waiting(),       l.waiting_tokens(),   l.available_blocks(),
          l.total_blocks(),  l.cached_blocks(), l.preemptions(),      l.steps(),
          l.parked_blocks(), l.host_blocks(),   l.host_total_blocks()};
}

void FillLoad(const WorkerLoad& l, common::v1::WorkerLoad* out) {
  out->set_running(l.running);
  out->set_waiting(l.waiting);
  out->set_waiting_tokens(l.waiting_tokens);
  out->set_available_blocks(l.available_blocks);
  out->set_total_blocks(l.total_blocks);
  out->set_cached_blocks(l.cached_blocks);
  out->set_preemptions(l.preemptions);
  out->set_parked_blocks(l.parked_blocks);
  out->set_host_blocks(l.host_blocks);
  out->set_host_total_blocks(l.host_total_blocks);
  out->set_steps(l.steps);
}

void FillTimeline(const Timeline& t, common::v1::Timeline* out) {
  out->set_dependency_ms(t.dependency_ms);
  out->set_queue_ms(t.queue_ms);
  out->set_prefill_wait_ms(t.prefill_wait_ms);
  out->set_prefill_ms(t.prefill_ms);
  out->set_transfer_bytes(t.transfer_bytes);
  out->set_transfer_path(t.transfer_path);
  out->set_transfer_gb_per_s(t.transfer_gb_per_s);
  out->set_transfer_exposed_ms(t.transfer_exposed_ms);
  out->set_decode_wait_ms(t.decode_wait_ms);
  out->set_decode_ms(t.decode_ms);
  out->set_decode_steps(t.decode_steps);
  out->set_ttft_ms(t.ttft_ms);
  out->set_total_ms(t.total_ms);
  out->set_cached_tokens(t.cached_tokens);
  out->set_host_cached_tokens(t.host_cached_tokens);
  out->set_migrations(t.migrations);
  out->set_preemptions(t.preemptions);
  out->set_prefill_worker(t.prefill_worker);
  out->set_decode_worker(t.decode_worker);
}

FinishReason ToFinish(common::v1::FinishReason r) {
  switch (r) {
    case common::v1::FINISH_REASON_STOP:
      return FinishReason::kStop;
    case common::v1::FINISH_REASON_LENGTH:
      return FinishReason::kLength;
    case common::v1::FINISH_REASON_CANCELLED:
      return FinishReason::kCancelled;
    default:
      return FinishReason::kNone;
  }
}

FailKind ToFailKind(const std::string& reason) {
  if (reason == "TOO_LONG") return FailKind::kTooLong;
  if (reason == "DEADLINE") return FailKind::kDeadline;
  if (reason == "QUEUE_FULL") return FailKind::kQueueFull;
  if (reason == "HOLD_EXPIRED") return FailKind::kHoldExpired;
  return FailKind::kExecutor;
}

std::vector<StepToken> ToStepTokens(decode::v1::StepResult* step) {
  std::vector<StepToken> out;
  out.reserve(static_cast<size_t>(step->tokens_size()));
  for (decode::v1::SeqToken& t : *step->mutable_tokens()) {
    StepToken& s = out.emplace_back();
    s.seq = SeqId(t.seq());
    s.attempt = t.attempt();
    s.token = t.token();
    s.finish = ToFinish(t.finish());
    if (t.has_logprobs()) {
      auto box = std::make_shared<LogprobsBox>();
      box->value.Swap(t.mutable_logprobs());
      s.logprobs = std::move(box);
    }
  }
  return out;
}

}  // namespace agentserve::router
