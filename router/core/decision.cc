#include "router/core/decision.h"

#include "base/check.h"

namespace agentserve::router {

const char* WaitReasonName(WaitReason r) {
  static constexpr const char* kNames[kNumWaitReasons] = {"no_worker", "no_slot",       "no_blocks", "gated",
                                                          "saturated", "too_long_here", "behind",    "share",
                                                          "sibling",   "preempted"};
  return kNames[static_cast<size_t>(r)];
}

const char* PickReasonName(PickReason r) {
  static constexpr const char* kNames[kNumPickReasons] = {"order",    "oldest_program", "aged",     "strict_tier",
                                                          "deadline", "backfill",       "overflow", "window"};
  return kNames[static_cast<size_t>(r)];
}

const char* PlaceReasonName(PlaceReason r) {
  static constexpr const char* kNames[kNumPlaceReasons] = {"local_short", "local_append", "local_idle",
                                                           "local_no_prefill", "remote"};
  return kNames[static_cast<size_t>(r)];
}

const char* VerdictName(Verdict v) {
  static constexpr const char* kNames[kNumVerdicts] = {"chosen",    "fits",  "not_ready", "no_slot",
                                                       "no_blocks", "gated", "saturated", "too_long"};
  return kNames[static_cast<size_t>(v)];
}

void DecisionLog::Add(DecisionRecord record) {
  if (most_ == 0) return;
  if (ring_.size() >= most_) {
    auto it = index_.find(ring_.front().request_id);
    if (it != index_.end() && it->second == first_) index_.erase(it);
    ring_.pop_front();
    ++first_;
  }
  index_.insert_or_assign(record.request_id, first_ + ring_.size());
  ring_.push_back(std::move(record));
}

const DecisionRecord* DecisionLog::Find(std::string_view request_id) const {
  auto it = index_.find(std::string(request_id));
  return it == index_.end() ? nullptr : &ring_[it->second - first_];
}

DecisionRecord* DecisionLog::FindMutable(std::string_view request_id) {
  return const_cast<DecisionRecord*>(Find(request_id));
}

void DecisionLog::CheckInvariants() const {
  AS_CHECK_LE(ring_.size(), most_);
  AS_CHECK_LE(index_.size(), ring_.size());
  for (const auto& [id, number] : index_) {
    AS_CHECK(number >= first_ && number - first_ < ring_.size());
    AS_CHECK(ring_[number - first_].request_id == id);
  }
}

}  // namespace agentserve::router
