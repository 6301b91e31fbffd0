// `agentserve demo`: a small agent with real tools works against a running server over streamed OpenAI chat
// completions.
#pragma once

#include <cstdio>
#include <string>

#include "absl/status/status.h"

namespace agentserve::tools {

struct DemoConfig {
  std::string url = "http://127.0.0.1:8000";
  std::string model;  // empty: the first that the server offers
  std::string api_key;
  double timeout_s = 60;  // of one answer
};

// Runs the conversation and prints it to `out` as it arrives. OK only if every scene went as it should: text came as a
// stream, each needed tool was called with valid arguments and executed, and the answer names its result. Blocks;
// otherwise the error says in which scene what was wrong.
absl::Status PlayDemo(const DemoConfig& config, FILE* out);

// Parses flags (argv[0] is ignored), plays the demo and returns the exit code of the process.
int RunDemo(int argc, const char* const* argv);

}  // namespace agentserve::tools
