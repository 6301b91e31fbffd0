// What the router remembers of its latest requests beside the decision records: names, program, end. Finds a request by
// any of its ids. Bounded; the oldest is forgotten. Single-threaded, owned by the loop.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>

#include "router/core/router_core.h"

namespace agentserve::router {

struct RequestNote {
  RequestKey key;
  std::string request_id, response_id, label;  // of the router, of the gateway's reply, of the caller
  std::string tenant, program, parent, workflow_class, call_id;
  Identity identity = Identity::kNone;
  uint32_t clamped = 0;
  TimeNs arrival = 0;
  bool ended = false;
  EndReason reason = EndReason::kDone;
  std::string message;
  Timeline timeline;
  uint32_t prompt_tokens = 0, completion_tokens = 0;
  std::string tool;  // called by the answer, as reported
};

class RequestIndex {
 public:
  // About 1 KiB each.
  explicit RequestIndex(size_t most) : most_(most) {}

  void Add(RequestNote note);
  void OnEnd(const RequestDone& done);
  // Of tenant `tenant`, or of any if that is empty. Null if unknown. Valid until the next Add.
  RequestNote* Find(std::string_view tenant, std::string_view id);
  // Oldest first.
  const std::deque<RequestNote>& all() const { return ring_; }
  void CheckInvariants() const;

 private:
  void Name(const std::string& name);
  void Unname(const std::string& name, uint64_t number);
  static std::string LabelKey(std::string_view tenant, std::string_view label);

  const size_t most_;
  uint64_t first_ = 0;  // number of ring_.front()
  std::deque<RequestNote> ring_;
  std::unordered_map<std::string, uint64_t> by_name_;  // ids and labels -> number of the newest that has it
  std::unordered_map<RequestKey, uint64_t> by_key_;    // not ended
};

}  // namespace agentserve::router
