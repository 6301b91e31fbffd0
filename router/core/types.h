// Plain data that crosses the border of the router core: what the shell tells it and what it wants done.
// No protos, clocks or threads here; times are base::TimeNs of the shell's monotonic clock.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "engine/ids.h"
#include "engine/sampling_params.h"

namespace agentserve::router {

using base::TimeNs;
using engine::FinishReason;
using engine::SeqId;
using engine::TokenId;

// One accepted Generate call; never reused within a router incarnation.
using RequestKey = engine::StrongId<struct RequestKeyTag, uint64_t>;
// One registration of one worker incarnation; never reused, so that a message of a dead process finds nobody.
// Value 0 = none.
using WorkerId = engine::StrongId<struct RouterWorkerTag, uint64_t>;

enum class Role : uint8_t { kPrefill, kDecode };

// Bytes the core hands on without looking inside (KV handles, logprobs).
struct Opaque {
  virtual ~Opaque() = default;
};
using OpaquePtr = std::shared_ptr<const Opaque>;

// What a worker says of itself when it registers.
struct WorkerInfo {
  std::string name;  // unique in the cluster, e.g. "decode-0"
  uint64_t incarnation = 0;
  Role role = Role::kDecode;
  std::string address;
  std::string model_id;
  std::string model_fingerprint;
  uint64_t layout_fingerprint = 0;
  uint32_t block_tokens = 16;
  uint32_t num_blocks = 0;
  uint64_t block_bytes = 0;  // of one KV block; 0 = not said
  uint32_t context_length = 0;
  uint32_t max_batch = 1;
  bool draining = false;
  double prefill_tokens_per_s = 0;
};

struct WorkerLoad {
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint32_t waiting_tokens = 0;
  uint32_t available_blocks = 0;
  uint32_t total_blocks = 0;
  uint32_t cached_blocks = 0;
  uint64_t preemptions = 0;
  uint64_t steps = 0;
  uint32_t parked_blocks = 0;
  uint32_t host_blocks = 0;
  uint32_t host_total_blocks = 0;
};

enum class WorkerPhase : uint8_t { kConnecting, kBackoff, kReady, kDraining };

// What named a program (common.v1.IdentitySource has the same values).
enum class Identity : uint8_t {
  kNone,
  kOwn,
  kDynamo,
  kClaudeCode,
  kCodex,
  kOpenCode,
  kRoutingKey,
  kNvext,
  kBody,
  kMetadata,
  kPreviousResponse,
  kCacheKey,
  kPrefix,
  kNew,
};
inline constexpr int kNumIdentities = 14;
const char* IdentityName(Identity i);

// Whether the prompt holds an earlier answer of the model.
enum class Turn : uint8_t { kUnknown, kFirst, kLater };

// Hints of the caller (AgentContext); every one may be missing or wrong.
struct AgentInfo {
  std::string tenant_id;
  std::string program_id;
  std::string parent_program_id;
  std::string workflow_class;
  std::string tool_name;
  std::string call_id;                  // name of this call inside its program
  std::vector<std::string> depends_on;  // calls of this program, or programs, that must end first
  Identity identity = Identity::kNone;
  Turn turn = Turn::kUnknown;
  uint32_t step_index = 0;
  std::optional<uint32_t> steps_left_hint;
  std::optional<uint32_t> osl_hint;
  std::optional<uint32_t> total_calls_hint;
  std::optional<uint64_t> tool_gap_ms_hint;
  std::optional<uint64_t> deadline_ms;
  std::optional<uint64_t> kv_retain_ms;
  int32_t priority = 0;      // -100..100, higher sooner
  uint32_t strict_tier = 0;  // higher sooner, before priority
  bool blocking = true;
  bool final = false;
};

// The truth about a call, known to a simulator only; see policy `srpt-oracle`. Nothing else may read it.
struct OracleInfo {
  uint64_t call_output_tokens = 0;
  double call_cost = 0;               // of this call, in units of CostModel
  double program_remaining_cost = 0;  // of this call and all later ones of its program
};

// A validated request.
struct Submission {
  std::string request_id;
  std::shared_ptr<const std::vector<TokenId>> prompt;  // never empty
  // Block hashes of the prompt's full blocks, from `chain_root` on; empty while no worker has said its KV layout.
  std::vector<base::Hash128> chain;
  base::Hash128 chain_root;
  uint32_t block_tokens = 0;        // 0: chains are not known
  base::Hash128 digest;             // identity for the poison list
  engine::SamplingParams sampling;  // seed and max_tokens filled in
  uint32_t n = 1;
  TimeNs arrival = 0;   // when the call reached the service (tokenising included in queue time)
  TimeNs deadline = 0;  // absolute on the shell's clock
  size_t bytes = 0;     // memory the request holds while queued
  AgentInfo agent;
  std::string cache_salt;
  std::string traceparent;
  uint32_t clamped = 0;  // ClampedSet: hints that were cut
  // Whether the call offers tools, and how many: a feature for predictions.
  uint32_t tools_offered = 0;
  std::optional<OracleInfo> oracle;
};

// Where the time of a sequence went; see common.v1.Timeline.
struct Timeline {
  double dependency_ms = 0;  // waiting for depends_on, before the queue
  double queue_ms = 0, prefill_wait_ms = 0, prefill_ms = 0;
  uint64_t transfer_bytes = 0;
  std::string transfer_path;
  double transfer_gb_per_s = 0, transfer_exposed_ms = 0;
  double decode_wait_ms = 0, decode_ms = 0;
  uint32_t decode_steps = 0;
  double ttft_ms = 0, total_ms = 0;
  uint32_t cached_tokens = 0, migrations = 0, preemptions = 0;
  uint32_t host_cached_tokens = 0;  // of cached_tokens
  std::string prefill_worker, decode_worker;
};

// ---- messages of workers ----

struct FirstToken {
  TokenId token = 0;
  OpaquePtr logprobs;
  OpaquePtr kv;
  double wait_ms = 0, prefill_ms = 0;
};
struct KvReady {
  uint64_t bytes = 0;
  std::string transport;
  double gb_per_s = 0, exposed_ms = 0;
};
struct StepToken {
  SeqId seq;
  uint32_t attempt = 0;
  TokenId token = 0;
  OpaquePtr logprobs;
  FinishReason finish = FinishReason::kNone;
};
struct SequenceTotals {
  uint32_t steps = 0, cached_tokens = 0, preemptions = 0;
  double prefill_wait_ms = 0, prefill_ms = 0, decode_wait_ms = 0, decode_ms = 0;
  uint32_t host_tokens = 0;  // of cached_tokens
};
enum class FailKind : uint8_t { kTooLong, kDeadline, kQueueFull, kHoldExpired, kExecutor };
struct WorkerFailure {
  FailKind kind = FailKind::kExecutor;
  std::string message;
};

// ---- what the core wants done ----

// Everything a worker must know of a sequence. Immutable once sent.
struct SequenceSpec {
  std::string request_id;
  std::vector<TokenId> tokens;  // prompt, then tokens already generated
  uint32_t prompt_tokens = 0;
  engine::SamplingParams sampling;
  std::string cache_salt;
  std::string traceparent;
};

enum class CommandKind : uint8_t {
  kStart,         // P: spec, budget, rank
  kReorder,       // P: rank
  kReleaseKv,     // P
  kReserve,       // D: spec, budget, rank
  kAttach,        // D: kv
  kAdmit,         // D: kv, first_token
  kPrefillLocal,  // D
  kRetain,        // D: keep, ttl_ms, worth
  kPrefetch,      // D: ttl_ms
  kConnectPeer,   // D: peer
  kCancel,        // P or D
};

// Where a worker is to keep the KV of a sequence that has ended.
enum class KeepWhere : uint8_t { kDevice, kHost, kDrop };

struct Command {
  WorkerId worker;
  CommandKind kind = CommandKind::kCancel;
  SeqId seq;
  uint32_t attempt = 0;
  std::shared_ptr<const SequenceSpec> spec;
  OpaquePtr kv;
  TokenId first_token = 0;
  uint64_t budget_ms = 0;
  uint64_t ttl_ms = 0;
  KeepWhere keep = KeepWhere::kDevice;
  float worth = 1;  // of a block against one of which nothing is known
  int64_t rank = 0;
  WorkerId peer;
};

struct LinkEffect {
  WorkerId worker;
  bool open = false;  // false: close it; no events of it are wanted any more
};

struct TokenOut {
  RequestKey request;
  uint32_t index = 0;
  TokenId token = 0;
  FinishReason finish = FinishReason::kNone;  // set on the sequence's last token
  OpaquePtr logprobs;
};

struct SequenceDone {
  RequestKey request;
  uint32_t index = 0;
  FinishReason reason = FinishReason::kStop;
  uint32_t completion_tokens = 0;
  TokenId last_token = 0;
};

// Why a request ended. One place in the service maps these to gRPC statuses.
enum class EndReason : uint8_t {
  kDone,
  kCancelled,
  kQueueFull,
  kQueueTimeout,
  kDeadline,
  kNoWorkers,
  kPoison,
  kDraining,
  kTooLong,
  kWorkerFailed,
  kSlowClient,
  kBadDependency,  // depends_on names something unknown, or closes a circle
};
inline constexpr int kNumEndReasons = 12;
const char* EndReasonName(EndReason r);

struct RequestDone {
  RequestKey request;
  EndReason reason = EndReason::kDone;
  std::string message;     // empty for kDone
  TimeNs retry_after = 0;  // > 0: worth trying again after this long
  uint32_t prompt_tokens = 0;
  uint32_t completion_tokens = 0;
  uint32_t cached_tokens = 0;
  Timeline timeline;
};

// Drained after each event, in this order: links, commands, tokens, sequence ends, request ends. A sequence's tokens
// always precede its end, and both precede the request's end.
struct Effects {
  std::vector<LinkEffect> links;
  std::vector<Command> commands;
  std::vector<TokenOut> tokens;
  std::vector<SequenceDone> sequence_ends;
  std::vector<RequestDone> request_ends;
  bool empty() const {
    return links.empty() && commands.empty() && tokens.empty() && sequence_ends.empty() && request_ends.empty();
  }
  void clear() { links.clear(), commands.clear(), tokens.clear(), sequence_ends.clear(), request_ends.clear(); }
};

// Totals since start, for metrics.
struct CoreStats {
  uint64_t accepted = 0;
  uint64_t refused = 0;
  uint64_t ended[kNumEndReasons] = {};
  uint64_t tokens = 0;
  uint64_t prompt_tokens = 0;
  uint64_t prefix_hit_tokens = 0;
  uint64_t placed_local = 0, placed_remote = 0;
  uint64_t migrations = 0;
  uint64_t poisoned = 0;
  uint64_t late_messages = 0;
  uint64_t workers_lost = 0;
  uint64_t finished() const {
    uint64_t sum = 0;
    for (uint64_t e : ended) sum += e;
    return sum;
  }
};

}  // namespace agentserve::router
