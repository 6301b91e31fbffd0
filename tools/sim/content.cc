#include "tools/sim/content.h"

#include <algorithm>

namespace agentserve::sim {
namespace {

uint64_t Mix(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

engine::TokenId TokenAt(uint64_t origin, uint32_t position) {
  return static_cast<engine::TokenId>(Mix(origin + position * 0x9e3779b97f4a7c15ull) % (kSimVocab - 1)) + 1;
}

std::vector<engine::TokenId> Tokens(std::span<const workload::Span> spans, uint32_t tokens) {
  std::vector<engine::TokenId> out;
  out.reserve(tokens);
  for (const workload::Span& s : spans) {
    while (out.size() < std::min(s.end, tokens)) out.push_back(TokenAt(s.origin, static_cast<uint32_t>(out.size())));
  }
  return out;
}

void BlockNames(std::span<const workload::Span> spans, uint32_t tokens, uint32_t block_tokens,
                std::vector<base::Hash128>* out) {
  out->clear();
  const uint32_t blocks = tokens / block_tokens;
  out->reserve(blocks);
  for (const workload::Span& s : spans) {
    for (auto b = static_cast<uint32_t>(out->size()); b < std::min(blocks, s.end / block_tokens); ++b) {
      const uint64_t h = Mix(s.origin + (b + 1) * 0x9e3779b97f4a7c15ull);
      out->push_back({s.origin ^ b, h});
    }
  }
}

}  // namespace agentserve::sim
