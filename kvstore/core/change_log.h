// Bounded, numbered log of directory changes. Single-threaded.
//
// Invariants: numbers start at 1 and have no gaps; the log holds (first_sequence .. last_sequence], at most `max`
// entries.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/core/types.h"

namespace agentserve::kvstore {

class ChangeLog {
 public:
  explicit ChangeLog(uint32_t max) : max_(max) {}

  void Append(Change::Kind kind, PoolIdentPtr pool, const SealedBlock& block);
  // Number of the last change; 0 = none yet.
  uint64_t last_sequence() const { return last_; }
  // Smallest number after which reading may start.
  uint64_t oldest_start() const { return last_ - entries_.size(); }
  // Up to `max` changes after number `after`. OUT_OF_RANGE: they are not kept any more, or lie in the future.
  absl::StatusOr<std::vector<Change>> Read(uint64_t after, size_t max) const;

 private:
  const uint32_t max_;
  uint64_t last_ = 0;
  std::deque<Change> entries_;
};

}  // namespace agentserve::kvstore
