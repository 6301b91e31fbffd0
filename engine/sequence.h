// One sequence inside a worker: its tokens, its blocks, how far its KV is computed.
//
//   tokens:  [0 .............. computed) [computed ........ tokens.size())
//             KV is in `blocks`           pending: run by the next steps
//
// The last token of a running sequence is always pending: its KV is written by the step that samples the next one.
// Steps in flight run [computed, computed + scheduled). A sequence that is planned ahead of the token which the step in
// flight samples ends with a placeholder for that token (`awaits_token`) until the step is over.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/hash.h"
#include "engine/block_pool.h"
#include "engine/ids.h"
#include "engine/sampling_params.h"

namespace agentserve::engine {

// What a caller says of a new sequence.
struct SequenceSpec {
  SeqId id;
  std::vector<TokenId> tokens;  // prompt, then tokens generated earlier (resumption)
  uint32_t prompt_tokens = 0;   // how many of them are prompt
  SamplingParams sampling;
  std::string cache_salt;
  int64_t rank = 0;  // larger sooner
};

struct Sequence {
  enum class Phase : uint8_t {
    kWaiting,  // in the waiting queue, without blocks
    kActive,   // has blocks
    kDormant,  // neither: lost its blocks while not runnable; waits for its owner to make it runnable
  };
  // What happens once nothing touches the blocks any more.
  enum class Fate : uint8_t { kKeep, kPreempt, kRemove };

  SeqId id;
  std::vector<TokenId> tokens;
  uint32_t prompt_tokens = 0;
  SamplingParams sampling;
  int64_t rank = 0;
  uint64_t arrival = 0;

  base::Hash128 root;
  std::vector<base::Hash128> chain;  // names of the full blocks of `tokens`, extended when needed
  BlockTable blocks;
  uint32_t computed = 0;
  uint32_t sealed = 0;        // leading blocks that are sealed
  uint32_t scheduled = 0;     // tokens in the steps in flight
  bool awaits_token = false;  // the last of `tokens` is a placeholder

  Phase phase = Phase::kWaiting;
  Fate fate = Fate::kKeep;
  // False: has or wants blocks but takes no part in steps (its KV is written by somebody else).
  bool runnable = true;
  // Somebody outside of steps writes the blocks: they must not be given away.
  bool io = false;

  uint32_t cached_tokens = 0;  // found in the cache when blocks were first given
  uint32_t preemptions = 0;
  bool counted = false;  // its prefix statistics are counted

  // Tokens that are really known; names of blocks are made of these only.
  uint32_t known() const { return static_cast<uint32_t>(tokens.size()) - (awaits_token ? 1 : 0); }
  uint32_t pending() const { return known() - computed; }
  // Tokens that no step has run or will run; 0 = the step in flight samples the next one.
  uint32_t unplanned() const { return static_cast<uint32_t>(tokens.size()) - computed - scheduled; }
  uint32_t generated() const { return known() - prompt_tokens; }
  bool busy() const { return scheduled > 0 || io; }
};

// Whether a sequence ends with `token`, just appended to it. End tokens and stop ids count once min_tokens are out.
// `total`: tokens of the sequence including `token`; `generated`: of these, beyond the prompt.
struct StopInput {
  TokenId token = 0;
  uint32_t total = 0;
  uint32_t generated = 0;
};
FinishReason StopAfter(const StopInput& in, const SamplingParams& sampling, const std::vector<TokenId>& end_tokens,
                       uint32_t context_length);

}  // namespace agentserve::engine
