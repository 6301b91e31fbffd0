// Checks every field of a GenerateRequest and turns it into a Submission. Runs on edge threads.
#pragma once

#include <optional>

#include "agentserve/router/v1/router.pb.h"
#include "router/core/types.h"
#include "router/service/config.h"
#include "router/service/edge_model.h"
#include "router/service/errors.h"

namespace agentserve::router {

// How KV blocks are named, once a worker has said so.
struct ChainParams {
  uint64_t layout_fingerprint = 0;
  uint32_t block_tokens = 0;  // 0 = not known yet
};

// What needs neither tokenizing nor much time: sizes, ranges, model name. All bad fields are reported together.
std::optional<Rejection> CheckRequest(const v1::GenerateRequest& req, const EdgeModel& model,
                                      const ServiceConfig& config);
// Bytes of prompt text (or of ids); what CheckRequest bounds and queues count.
size_t PromptBytes(const v1::GenerateRequest& req);
// Same for a chat.
size_t ChatBytes(const v1::Chat& chat);
// Renders and tokenizes.
std::optional<Rejection> ChatTokens(const v1::Chat& chat, const EdgeModel& model, std::vector<uint32_t>* ids,
                                    std::string* rendered);
// Names of a program and its tenant.
std::optional<Rejection> CheckProgramName(const std::string& tenant, const std::string& program);
std::optional<Rejection> CheckDeclaration(const v1::DeclareProgramRequest& req);
// Everything else; `req` passed CheckRequest. Leaves times and request id to the caller.
std::optional<Rejection> Prepare(const v1::GenerateRequest& req, const EdgeModel& model, const ChainParams& chain,
                                 Submission* out);

}  // namespace agentserve::router
