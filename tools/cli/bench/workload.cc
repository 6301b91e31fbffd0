#include "tools/cli/bench/workload.h"

#include <array>
#include <cmath>

#include "absl/strings/numbers.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

constexpr uint32_t kMaxLength = 1'000'000;
constexpr std::array kWords = {"river",  "stone",  "about",  "seven",  "market", "quiet", "letter", "green",   "window",
                               "after",  "people", "small",  "carry",  "north",  "bread", "silver", "learn",   "table",
                               "winter", "simple", "before", "house",  "music",  "open",  "friend", "paper",   "light",
                               "number", "garden", "storm",  "answer", "long",   "water", "field",  "morning", "under"};
// Keeps the words of the shared prefix, of each prompt and of each length apart.
constexpr uint64_t kPrefixStream = 0x5eed;

uint64_t Mix(uint64_t a, uint64_t b) { return base::SplitMix64(a ^ (b * 0x9e3779b97f4a7c15ull)).Next(); }

}  // namespace

uint32_t LengthRange::Draw(base::SplitMix64* rng) const {
  return least + static_cast<uint32_t>(rng->Below(uint64_t{most} - least + 1));
}

absl::StatusOr<LengthRange> ParseLengthRange(const std::string& flag, const std::string& text) {
  LengthRange out;
  const size_t colon = text.find(':');
  const bool ok = absl::SimpleAtoi(text.substr(0, colon), &out.least) &&
                  absl::SimpleAtoi(colon == text.npos ? text : text.substr(colon + 1), &out.most);
  if (!ok || out.least < 1 || out.most < out.least || out.most > kMaxLength) {
    return absl::InvalidArgumentError(
        StrCat("--", flag, " is '", text.substr(0, 100), "'; N or LEAST:MOST is expected, each 1 to ", kMaxLength));
  }
  return out;
}

base::TimeNs PoissonGaps::Next() {
  // 1 - u is in (0, 1], so the logarithm is finite.
  return static_cast<base::TimeNs>(-std::log(1.0 - rng_.Uniform()) / rate_ * 1e9);
}

Workload::Workload(Options options, std::vector<uint32_t> token_pool)
    : options_(options), pool_(std::move(token_pool)) {}

WorkItem Workload::Item(uint64_t number) const {
  WorkItem item;
  item.number = number;
  base::SplitMix64 rng(Mix(options_.seed, number + 1));
  base::SplitMix64 prefix(Mix(options_.seed, kPrefixStream << 32));
  const uint32_t length = options_.prompt.Draw(&rng);
  item.output_tokens = options_.output.Draw(&rng);
  for (uint32_t i = 0; i < length; ++i) {
    base::SplitMix64& from = i < options_.shared_prefix ? prefix : rng;
    if (pool_.empty()) {
      base::StrAppend(&item.prompt_text, i == 0 ? "" : " ", kWords[from.Below(kWords.size())]);
    } else {
      item.prompt_ids.push_back(pool_[from.Below(pool_.size())]);
    }
  }
  return item;
}

const std::string& SampleText() {
  static const std::string text = [] {
    std::string out;
    for (const char* word : kWords) base::StrAppend(&out, " ", word);
    return out;
  }();
  return text;
}

}  // namespace agentserve::tools
