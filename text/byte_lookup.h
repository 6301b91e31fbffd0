// Fixed hash tables for the two look-ups of BPE. Built once, then read-only. Internal to text/.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace agentserve::text {

inline constexpr uint32_t kNoToken = UINT32_MAX;

// Byte string -> token id. Open addressing; 8 bytes a slot, at most half full. The table holds tokens of a file the
// operator chose, so texts of users cannot make probe chains longer.
class BytesToId {
 public:
  explicit BytesToId(const TokenTable* table, size_t expected) : table_(table) {
    slots_.resize(std::bit_ceil(expected * 2 + 2));
  }
  // False if an equal byte string is there. At most `expected` insertions.
  bool Insert(uint32_t id) {
    const std::string_view bytes = table_->bytes(id);
    const uint64_t hash = Hash(bytes);
    for (size_t i = hash & mask();; i = (i + 1) & mask()) {
      if (slots_[i].id == kNoToken) {
        slots_[i] = {static_cast<uint32_t>(hash >> 32), id};
        return true;
      }
      if (Same(slots_[i], hash, bytes)) return false;
    }
  }
  uint32_t Find(std::string_view bytes) const {
    const uint64_t hash = Hash(bytes);
    for (size_t i = hash & mask();; i = (i + 1) & mask()) {
      if (slots_[i].id == kNoToken || Same(slots_[i], hash, bytes)) return slots_[i].id;
    }
  }

 private:
  struct Slot {
    uint32_t tag = 0;
    uint32_t id = kNoToken;
  };
  size_t mask() const { return slots_.size() - 1; }
  bool Same(const Slot& slot, uint64_t hash, std::string_view bytes) const {
    return slot.tag == static_cast<uint32_t>(hash >> 32) && table_->bytes(slot.id) == bytes;
  }
  static uint64_t Mix(uint64_t h) {
    h *= 0x9E3779B97F4A7C15ull;
    return h ^ h >> 29;
  }
  static uint64_t Hash(std::string_view s) {
    uint64_t h = s.size();
    while (s.size() >= 8) {
      uint64_t word;
      std::memcpy(&word, s.data(), 8);
      h = Mix(h ^ word);
      s.remove_prefix(8);
    }
    uint64_t tail = 0;
    if (!s.empty()) std::memcpy(&tail, s.data(), s.size());
    return Mix(Mix(h ^ tail));
  }

  const TokenTable* table_;
  std::vector<Slot> slots_;
};

// (left id, right id) -> merge. 16 bytes a slot, at most half full.
class MergeTable {
 public:
  struct Hit {
    uint32_t rank = UINT32_MAX;  // UINT32_MAX: the pair does not merge
    uint32_t result = kNoToken;
  };
  explicit MergeTable(size_t expected) { slots_.resize(std::bit_ceil(expected * 2 + 2)); }
  // False if the pair is there. At most `expected` insertions.
  bool Insert(const Merge& m) {
    const uint64_t key = Key(m.left, m.right);
    Slot& slot = slots_[Probe(key)];
    if (slot.key == key) return false;
    slot = {key, {m.rank, m.result}};
    return true;
  }
  Hit Find(uint32_t left, uint32_t right) const { return slots_[Probe(Key(left, right))].hit; }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;
  struct Slot {
    uint64_t key = kEmpty;
    Hit hit;
  };
  static uint64_t Key(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }
  size_t Probe(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t i = (key * 0x9E3779B97F4A7C15ull >> 32) & mask;
    while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & mask;
    return i;
  }
  std::vector<Slot> slots_;
};

}  // namespace agentserve::text
