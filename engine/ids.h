// Distinct types for ids, so that a block index is never taken for a sequence.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <ostream>

namespace agentserve::engine {

// A number that only mixes with its own kind.
template <typename Tag, typename Rep>
struct StrongId {
  Rep value{};
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  auto operator<=>(const StrongId&) const = default;
  friend std::ostream& operator<<(std::ostream& os, StrongId id) { return os << id.value; }
};

using TokenId = uint32_t;
// A sequence: unique per router incarnation.
using SeqId = StrongId<struct SeqIdTag, uint64_t>;
// Index of a block in its pool, [0, num_blocks).
using BlockId = StrongId<struct BlockIdTag, uint32_t>;
// Bumped each time a block goes FREE -> WRITING; wraps are harmless (2^32 reuses of one block).
using Epoch = StrongId<struct EpochTag, uint32_t>;

}  // namespace agentserve::engine

template <typename Tag, typename Rep>
struct std::hash<agentserve::engine::StrongId<Tag, Rep>> {
  size_t operator()(agentserve::engine::StrongId<Tag, Rep> id) const { return std::hash<Rep>{}(id.value); }
};
