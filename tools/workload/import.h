// Readers of recorded traces and of published benchmark descriptions. Files may be gzip-compressed (by their content,
// not their name). Errors name file and line.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "tools/workload/workload.h"

namespace agentserve::workload {

// Coding-agent sessions, one JSON object a line (the converted WEKA traces): prompts as runs of 64-token block ids,
// subagents and joins.
struct CodingOptions {
  // Input lengths and shared prefixes are divided by this: 8 fits Llama 3.2's 128 Ki window (the longest is 868,539).
  uint32_t divide = 8;
  uint32_t out_cap = 8192;
  // Waits are multiplied, then capped. 0 = no cap.
  double gap_scale = 1;
  double tool_cap_s = 0, think_cap_s = 0;
  // Sessions are cut into pieces of at most so many jobs (user turns), each replayed as a session of its own whose
  // first call finds nothing cached but the shared system prompt. 0 = whole sessions.
  uint32_t jobs_per_session = 0;
  // Sessions with equal sizes of tool definitions and system prompt share them (production does; the trace hides it).
  bool share_system = true;
};
absl::StatusOr<Workload> ImportCoding(const std::string& file, const CodingOptions& options);

// {"timestamp" ms, "input_length", "output_length", "hash_ids"}: 512-token blocks named across requests. A request
// whose prompt continues an earlier one's is still a program of its own (the trace names no sessions).
absl::StatusOr<Workload> ImportMooncake(const std::string& file, size_t most = 0);

// CSV TIMESTAMP,ContextTokens,GeneratedTokens: lengths and arrivals only.
absl::StatusOr<Workload> ImportAzure(const std::string& file, const std::string& class_name, size_t most = 0);

// The two closed bursts of the published AgentServe benchmark description. `characters`: prompt sizes of the published
// run, one token per character, instead of Llama 3 tokens.
enum class Burst { kTrajectories, kAblation };
absl::StatusOr<Workload> ImportAgentServe(const std::string& file, Burst burst, bool characters = true);

// The whole file, inflated if it is gzip.
absl::StatusOr<std::string> ReadMaybeGzip(const std::string& file);

}  // namespace agentserve::workload
