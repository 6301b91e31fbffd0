#include "router/service/request_index.h"

#include "base/check.h"
#include "base/strings.h"

namespace agentserve::router {

// Labels are the callers' own: those of different tenants may be equal. Ids hold no zero byte.
std::string RequestIndex::LabelKey(std::string_view tenant, std::string_view label) {
  std::string key(tenant);
  key.push_back('\0');
  key.append(label);
  return key;
}

void RequestIndex::Name(const std::string& name) { by_name_[name] = first_ + ring_.size() - 1; }

void RequestIndex::Unname(const std::string& name, uint64_t number) {
  const auto it = by_name_.find(name);
  if (it != by_name_.end() && it->second == number) by_name_.erase(it);
}

void RequestIndex::Add(RequestNote note) {
  ring_.push_back(std::move(note));
  const RequestNote& n = ring_.back();
  by_key_[n.key] = first_ + ring_.size() - 1;
  Name(n.request_id);
  if (!n.response_id.empty()) Name(LabelKey(n.tenant, n.response_id));
  if (!n.label.empty()) Name(LabelKey(n.tenant, n.label));
  if (ring_.size() <= most_) return;
  const RequestNote& old = ring_.front();
  Unname(old.request_id, first_);
  Unname(LabelKey(old.tenant, old.response_id), first_);
  Unname(LabelKey(old.tenant, old.label), first_);
  if (!old.ended) by_key_.erase(old.key);
  ring_.pop_front();
  ++first_;
}

void RequestIndex::OnEnd(const RequestDone& done) {
  const auto it = by_key_.find(done.request);
  if (it == by_key_.end()) return;
  RequestNote& n = ring_[it->second - first_];
  n.ended = true;
  n.reason = done.reason;
  n.message = done.message;
  n.timeline = done.timeline;
  n.completion_tokens = done.completion_tokens;
  by_key_.erase(it);
}

RequestNote* RequestIndex::Find(std::string_view tenant, std::string_view id) {
  auto it = by_name_.find(std::string(id));
  if (it == by_name_.end() && !tenant.empty()) it = by_name_.find(LabelKey(tenant, id));
  if (it == by_name_.end() && tenant.empty()) {
    // An operator names no tenant: the newest of any. Rare, so a walk will do.
    for (size_t i = ring_.size(); i-- > 0;) {
      if (ring_[i].response_id == id || ring_[i].label == id) return &ring_[i];
    }
  }
  if (it == by_name_.end()) return nullptr;
  RequestNote& n = ring_[it->second - first_];
  return tenant.empty() || n.tenant == tenant ? &n : nullptr;
}

void RequestIndex::CheckInvariants() const {
  AS_CHECK_LE(ring_.size(), most_);
  for (const auto& [name, number] : by_name_) AS_CHECK(number >= first_ && number < first_ + ring_.size());
  for (const auto& [key, number] : by_key_) AS_CHECK(number >= first_ && number < first_ + ring_.size());
}

}  // namespace agentserve::router
