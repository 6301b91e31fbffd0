// Turns router events into the bytes of an OpenAI reply: server-sent events, or one JSON object at the end. Pure: no
// clock, no socket. The order of a stream is fixed:
//   role chunk per choice (chat), content / tool-call chunks, one chunk with finish_reason per choice,
//   usage chunk (only if asked), [DONE]; or at any point one error event and [DONE].
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gateway/api_error.h"
#include "gateway/openai/choice.h"
#include "gateway/openai/logprobs.h"
#include "gateway/openai/request.h"

namespace agentserve::gateway {

// Equal in all chunks of a reply.
struct ReplyIdentity {
  std::string id;
  int64_t created_unix_s = 0;
  std::string model;
};

struct Usage {
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
  uint64_t cached_tokens = 0;
};

// Measured by the gateway; shown in `timings`.
struct GatewayTimes {
  double ttft_ms = 0;
  double total_ms = 0;
};

// Single-threaded. Invariants: after Fail or Finish nothing more is written; a choice is written to only before its
// end.
class ReplyAssembler {
 public:
  // `prompts` >= 1 sources of events; choice index = prompt * n + sequence index.
  ReplyAssembler(ReplyIdentity identity, ReplyOptions options, size_t prompts, uint64_t id_seed);

  // Before Start. Text put in front of the choices of a prompt (echo).
  void SetEcho(size_t prompt, std::string text);
  // Before Start. Shown if return_token_ids.
  void SetPromptTokenIds(size_t prompt, std::vector<uint32_t> ids);

  // Stream: the first chunks.
  void Start(std::string* out);
  // One event of one prompt's generation. Stream: appends bytes to `out` (perhaps none). An error means that the router
  // broke its contract; report it with Fail.
  std::optional<ApiError> OnEvent(size_t prompt, const pb::GenerateResponse& event, std::string* out);
  // All prompts are done: stream tail. Without `stream`, the JSON reply.
  void Finish(const GatewayTimes& times, std::string* out);
  // Stream only: the error event and [DONE].
  static void Fail(const ApiError& error, std::string* out);

  // Every prompt had its Done and every choice its end.
  bool complete() const;
  const Usage& usage() const { return usage_; }
  const std::vector<Choice>& choices() const { return choices_; }
  // Bytes held for a non-streamed reply.
  size_t held_bytes() const { return held_bytes_; }

 private:
  // What a non-streamed reply collects per choice.
  struct Collected {
    std::string text;
    std::vector<CallRecord> calls;
    std::vector<TokenLogprobs> logprobs;
    std::vector<uint32_t> token_ids;
  };

  std::optional<ApiError> OnDelta(size_t prompt, const pb::Delta& delta, std::string* out);
  std::optional<ApiError> OnEnd(size_t prompt, const pb::SequenceEnd& end, std::string* out);
  void OnDone(const pb::Done& done);
  void Collect(size_t choice, const std::vector<Piece>& pieces, const pb::Delta* delta);
  void WritePieces(size_t choice, const std::vector<Piece>& pieces, const pb::Delta* delta, std::string* out);
  void WriteChunk(size_t choice, const Piece* piece, const pb::Delta* delta, std::string* out);
  void WriteFinishChunk(size_t choice, std::string* out);
  void OpenChunk(size_t choice, std::string* out) const;
  void CloseChunk(std::string* out) const;
  void AppendTokenIds(std::string* out, const std::vector<uint32_t>& ids) const;
  void AppendUsage(std::string* out, const Usage& usage) const;
  void AppendTimings(std::string* out, const GatewayTimes& times) const;
  void AppendFullChatChoice(size_t choice, std::string* out) const;
  void AppendFullTextChoice(size_t choice, std::string* out);
  void FinishStream(const GatewayTimes& times, std::string* out);
  void FinishFull(const GatewayTimes& times, std::string* out);

  ReplyIdentity identity_;
  ReplyOptions options_;
  std::string head_;  // `data: {"id":..,"object":..,"created":..,"model":..,"choices":[{"index":`
  std::string open_;  // the part of head_ before `choices`
  std::vector<Choice> choices_;
  std::vector<Collected> collected_;
  std::vector<uint64_t> text_offset_;
  std::vector<std::string> echo_;
  std::vector<std::vector<uint32_t>> prompt_ids_;
  size_t done_ = 0, prompts_ = 0;
  size_t ended_ = 0;
  size_t held_bytes_ = 0;
  // `timings` without a usage chunk rides on the last finish chunk, which then waits for Done.
  std::optional<size_t> held_finish_;
  Usage usage_;
  std::vector<uint32_t> prompt_tokens_seen_;
  std::optional<common::v1::Timeline> timeline_;
};

}  // namespace agentserve::gateway
