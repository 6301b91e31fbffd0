#include "kvstore/core/change_log.h"

#include <algorithm>

#include "base/strings.h"

namespace agentserve::kvstore {

void ChangeLog::Append(Change::Kind kind, PoolIdentPtr pool, const SealedBlock& block) {
  entries_.push_back({++last_, kind, std::move(pool), block});
  if (entries_.size() > max_) entries_.pop_front();
}

absl::StatusOr<std::vector<Change>> ChangeLog::Read(uint64_t after, size_t max) const {
  if (after < oldest_start() || after > last_) {
    return absl::OutOfRangeError(base::StrCat("change ", after, " is not in the log (", oldest_start(), "..", last_,
                                              "]; start over with a snapshot"));
  }
  const auto begin = entries_.begin() + static_cast<std::ptrdiff_t>(after - oldest_start());
  const auto n = std::min<size_t>(max, static_cast<size_t>(entries_.end() - begin));
  return std::vector<Change>(begin, begin + static_cast<std::ptrdiff_t>(n));
}

}  // namespace agentserve::kvstore
