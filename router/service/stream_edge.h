// The text side of one request on the loop thread: tokens in, GenerateResponse deltas out; stop strings.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agentserve/router/v1/router.pb.h"
#include "router/core/types.h"
#include "router/service/edge_model.h"
#include "router/service/reply_stream.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"

namespace agentserve::router {

// Logprobs as they came from a worker.
struct LogprobsBox final : Opaque {
  common::v1::Logprobs value;
};

// What of a request matters after it was accepted.
struct StreamOptions {
  std::string request_id;
  uint32_t prompt_tokens = 0;
  uint64_t seed = 0;
  uint32_t n = 1;
  std::vector<std::string> stop;
  bool include_stop = false;
  bool return_token_ids = false;
  bool keep_special = false;
  bool logprobs = false;
  std::vector<TokenId> stop_token_ids;
  std::string trace_label;  // client's request id, for logs
  std::string response_id;  // of the reply this is part of
  std::string previous_response_id;
  std::string program_id;  // as the router understood the call
  Identity identity = Identity::kNone;
};

// Single-threaded.
class StreamEdge {
 public:
  StreamEdge(const EdgeModel& model, StreamOptions options, std::shared_ptr<ReplyStream> stream);

  enum class After { kGoOn, kStopped, kSlowReader };
  // Sends the token's text. kStopped: a stop string matched; the caller tells the core with `completion_tokens(index)`.
  After OnToken(const TokenOut& t);
  // Sends held text and SequenceEnd. False: slow reader.
  bool OnSequenceEnd(const SequenceDone& done);
  // Sends Done, or ends with the error.
  void OnRequestEnd(const RequestDone& done);

  uint32_t completion_tokens(uint32_t index) const { return seqs_[index].tokens; }
  uint32_t total_completion_tokens() const;
  const StreamOptions& options() const { return options_; }
  const std::shared_ptr<ReplyStream>& stream() const { return stream_; }

 private:
  struct Seq {
    std::optional<text::StreamingDetokenizer> detokenizer;
    std::unique_ptr<text::StopMatcher> matcher;  // null without stop strings
    uint32_t tokens = 0;
    bool stopped = false;
    std::string match;
  };
  bool SendAccepted();
  bool HidesText(const TokenOut& t) const;
  void AddLogprobs(const TokenOut& t, v1::Delta* delta) const;

  const EdgeModel& model_;
  const StreamOptions options_;
  const std::shared_ptr<ReplyStream> stream_;
  std::vector<Seq> seqs_;
  bool accepted_sent_ = false;
};

}  // namespace agentserve::router
