// What a load test sends: lengths, prompts and arrival times, all from one seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/rng.h"

namespace agentserve::tools {

// "64" = always 64; "32:128" = uniform over 32..128.
struct LengthRange {
  uint32_t least = 0;
  uint32_t most = 0;
  uint32_t Draw(base::SplitMix64* rng) const;
};
// `flag` is named in errors. Lengths are 1..1,000,000, the longest context any Llama 3 model has and room above.
absl::StatusOr<LengthRange> ParseLengthRange(const std::string& flag, const std::string& text);

// Gaps of a Poisson process with `rate` events per second. `rate` > 0.
class PoissonGaps {
 public:
  PoissonGaps(double rate, uint64_t seed) : rate_(rate), rng_(seed) {}
  base::TimeNs Next();

 private:
  double rate_;
  base::SplitMix64 rng_;
};

struct WorkItem {
  uint64_t number = 0;
  // One of the two is used: ids if the server's token ids are known, else words.
  std::vector<uint32_t> prompt_ids;
  std::string prompt_text;
  uint32_t output_tokens = 0;
};

// Makes prompts that share their first `shared_prefix` tokens and nothing after. The item of a number depends only on
// the seed and the number.
class Workload {
 public:
  struct Options {
    LengthRange prompt, output;
    uint32_t shared_prefix = 0;
    uint64_t seed = 1;
  };
  // `token_pool`: ids to draw prompts from; empty = prompts are text of one word per token.
  Workload(Options options, std::vector<uint32_t> token_pool);
  WorkItem Item(uint64_t number) const;

 private:
  const Options options_;
  const std::vector<uint32_t> pool_;
};

// Plain English words; their tokens make the pool.
const std::string& SampleText();

}  // namespace agentserve::tools
