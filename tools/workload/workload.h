// Agent workloads as rows: programs of calls with waits between them, sizes, and which prompt prefixes are equal. Text
// never matters; what matters is how many tokens two prompts share.
//
// Content: token p of a call's prompt-and-output has an *origin*. With a reference, the first `lcp` tokens are those of
// the referenced call (its prompt, then its output); without one, the first `prefix_tokens` are those of the shared
// prefix `prefix_id`; everything else is the call's own. Equal origin at position p means that all tokens up to p are
// equal, so a block's name is a function of (origin of its last token, block number).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace agentserve::workload {

inline constexpr uint32_t kNone = 0xffffffff;

struct Call {
  uint32_t in = 1, out = 1;        // tokens; both >= 1
  double wait_ms = 0;              // after all of wait_for have ended (or the program's arrival)
  bool user_turn = false;          // the wait is a person thinking: a new job of the session starts here
  bool background = false;         // nobody waits for it: the job ends without it
  std::vector<uint32_t> wait_for;  // earlier calls of the same program; empty: starts with the program
  // Shared prefix: `lcp` leading tokens equal call `ref` of program `ref_program` (kNone: of this program).
  uint32_t ref = kNone, ref_program = kNone;
  uint32_t lcp = 0;
  uint16_t tool = 0;   // place in Workload::tools of the tool that runs before this call; 0 = none
  uint16_t label = 0;  // 1 + place in Workload::labels; what published benchmarks call the call's class; 0 = none
};

// One agent session: one KV identity. `arrival_s` is the recorded or published start; replay may choose other times.
struct Program {
  std::string id;
  uint16_t workflow = 0;  // place in Workload::classes
  uint16_t tenant = 0;
  uint32_t prefix_tokens = 0;  // system prompt and tool definitions, shared with equal `prefix_id`
  uint64_t prefix_id = 0;
  double arrival_s = 0;
  double deadline_s = 0;  // after the arrival; 0 = none
  std::vector<Call> calls;
};

struct Workload {
  std::string name;
  std::vector<std::string> classes;
  std::vector<std::string> tools{""};
  std::vector<std::string> labels;
  std::vector<std::string> tenants{"default"};
  std::vector<Program> programs;
  // True: programs start at their arrival_s (a recorded trace or a closed burst); false: the replayer draws times.
  bool timed = false;

  size_t calls() const;
  uint16_t ClassOf(const std::string& class_name);
  uint16_t ToolOf(const std::string& tool_name);
};

// References point backwards, prefixes lie inside both calls, waits point to earlier calls, sizes are sane. The error
// names program and call.
absl::Status Validate(const Workload& w);

// A run of tokens [previous end, end) with one origin.
struct Span {
  uint32_t end = 0;
  uint64_t origin = 0;
};
// The spans of prompt and output of call `c` of program `p`; `instance` tells replays of one program apart (shared
// prefixes stay shared). The last span ends at in + out.
std::vector<Span> Spans(const Workload& w, uint32_t program, uint32_t call, uint64_t instance);
uint64_t OriginOf(uint64_t program, uint64_t call, uint64_t instance);

// Multiplies prompt sizes (with shared prefixes) and output sizes; results are at least 1.
void Scale(double in, double out, Workload* w);
// Prompts share earlier prompts only, not what was generated after them: as when a client's record of an answer is not
// token for token what the model made.
void ForgetOutputs(Workload* w);

// One JSON object a line: header, then a row per call in order.
absl::Status WriteRows(const Workload& w, const std::string& file);
absl::Status ReadRows(const std::string& file, Workload* w);

}  // namespace agentserve::workload
