#include "router/core/program_table.h"

#include "base/check.h"

namespace agentserve::router {

std::string ProgramTable::Key(std::string_view tenant, std::string_view program) {
  std::string key(tenant);
  key.push_back('\0');
  key.append(program);
  return key;
}

Program& ProgramTable::Touch(const std::string& key, int64_t arrival, Program* forgotten) {
  if (auto it = index_.find(key); it != index_.end()) {
    lru_.splice(lru_.begin(), lru_, it->second);
    return lru_.front();
  }
  if (index_.size() >= most_) {
    index_.erase(lru_.back().key);
    if (forgotten != nullptr) *forgotten = std::move(lru_.back());
    lru_.pop_back();
  }
  lru_.emplace_front();
  lru_.front().key = key;
  lru_.front().serial = next_serial_++;
  lru_.front().first_arrival = arrival;
  lru_.front().age = arrival;
  index_.emplace(lru_.front().key, lru_.begin());
  return lru_.front();
}

Program* ProgramTable::Find(const std::string& key) {
  auto it = index_.find(key);
  return it == index_.end() ? nullptr : &*it->second;
}

const Program* ProgramTable::Find(const std::string& key) const {
  auto it = index_.find(key);
  return it == index_.end() ? nullptr : &*it->second;
}

void ProgramTable::Erase(const std::string& key) {
  auto it = index_.find(key);
  if (it == index_.end()) return;
  auto node = it->second;
  index_.erase(it);
  lru_.erase(node);
}

void ProgramTable::CheckInvariants() const {
  AS_CHECK_EQ(index_.size(), lru_.size());
  AS_CHECK_LE(index_.size(), most_);
}

}  // namespace agentserve::router
