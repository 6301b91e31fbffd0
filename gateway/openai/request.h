// What a parsed generation request is: router messages plus how the reply must look.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "agentserve/router/v1/router.pb.h"
#include "gateway/config.h"

namespace agentserve::gateway {

namespace pb = ::agentserve::router::v1;

// Facts of the served model, as far as known; zero and "" = not known yet, the router then decides.
struct ModelFacts {
  std::string id;
  uint32_t context_length = 0;
  uint32_t vocab_size = 0;
  int64_t created_unix_s = 0;
};

// How the reply is written.
struct ReplyOptions {
  bool chat = true;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  // Choices per prompt; choice index = prompt index * n + sequence index.
  uint32_t n = 1;
  bool logprobs = false;
  uint32_t top_logprobs = 0;
  bool return_token_ids = false;
  // `timings` object wanted.
  bool timeline = false;
  // Tool calls are looked for if there are names.
  std::vector<std::string> tool_names;
  bool parallel_tool_calls = true;
  // Completions: prompt text is put in front.
  bool echo = false;
};

struct ParsedGeneration {
  // One per prompt; chat has one. Agent context, trace and budget are filled by the caller.
  std::vector<pb::GenerateRequest> requests;
  ReplyOptions options;
  // Body members without meaning here, in order of name.
  std::vector<std::string> ignored;
};

struct ParseContext {
  const RequestLimits& limits;
  ModelFacts model;
};

}  // namespace agentserve::gateway
