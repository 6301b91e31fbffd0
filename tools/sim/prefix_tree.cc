#include "tools/sim/prefix_tree.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::sim {

PrefixTree::PrefixTree() { Clear(); }

void PrefixTree::Clear() {
  nodes_.assign(1, Entry{});
  nodes_[0].live = true;
  nodes_[0].locks = 1;  // never evicted
  free_.clear();
  by_origin_.clear();
  pinned_.clear();
  total_ = locked_ = pinned_blocks_ = 0;
}

PrefixTree::Node PrefixTree::New() {
  Node n;
  if (free_.empty()) {
    n = static_cast<Node>(nodes_.size());
    nodes_.emplace_back();
  } else {
    n = free_.back();
    free_.pop_back();
    nodes_[n] = Entry{};
  }
  nodes_[n].live = true;
  return n;
}

void PrefixTree::Append(Node n) { InsertAfter(n, nodes_[kRoot].lru_prev); }

void PrefixTree::InsertAfter(Node n, Node at) {
  Entry& e = nodes_[n];
  e.lru_prev = at;
  e.lru_next = nodes_[at].lru_next;
  nodes_[at].lru_next = n;
  nodes_[e.lru_next].lru_prev = n;
}

void PrefixTree::Detach(Node n) {
  Entry& e = nodes_[n];
  nodes_[e.lru_prev].lru_next = e.lru_next;
  nodes_[e.lru_next].lru_prev = e.lru_prev;
}

// [from, at) becomes a new node above; `n` keeps [at, to), its children and its holds.
PrefixTree::Node PrefixTree::Split(Node n, uint32_t at) {
  const Node head = New();
  Entry& e = nodes_[n];
  Entry& h = nodes_[head];
  AS_CHECK(at > e.from && at < e.to);
  h.origin = e.origin;
  h.from = e.from;
  h.to = at;
  h.parent = e.parent;
  h.children = 1;
  h.pinned_until = e.pinned_until;
  if (h.pinned_until != 0) pinned_.push_back(head);
  h.locks = e.locks > 0 ? 1 : 0;
  e.from = at;
  e.parent = head;
  if (e.locks == 0) InsertAfter(head, n);  // released with its child, which goes first
  h.next_of_origin = e.next_of_origin;
  e.next_of_origin = head;
  return head;
}

uint32_t PrefixTree::Match(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t most, Node* deepest) {
  *deepest = kRoot;
  // A cached node has all its ancestors, so the deepest span with a node decides.
  for (size_t i = spans.size(); i-- > 0;) {
    const uint32_t from = i == 0 ? 0 : spans[i - 1].end / block_tokens;
    const uint32_t to = std::min(most, spans[i].end / block_tokens);
    if (from >= to) continue;
    const auto it = by_origin_.find(spans[i].origin);
    if (it == by_origin_.end()) continue;
    Node best = 0;
    for (Node n = it->second; n != 0; n = nodes_[n].next_of_origin) {
      // Runs of an origin follow each other; those that begin beyond `to` belong to another branch's tail.
      if (nodes_[n].from >= to || nodes_[n].to <= from) continue;
      if (best == 0 || nodes_[n].from > nodes_[best].from) best = n;
    }
    if (best == 0) continue;
    if (nodes_[best].to > to) best = Split(best, to);
    *deepest = best;
    return nodes_[best].to;
  }
  return 0;
}

PrefixTree::Node PrefixTree::Insert(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t have,
                                    uint32_t want, Node parent) {
  for (size_t i = 0; i < spans.size() && have < want; ++i) {
    const uint32_t to = std::min(want, spans[i].end / block_tokens);
    if (to <= have) continue;
    uint32_t& longest = ever_[spans[i].origin];
    longest = std::max(longest, to);
    Entry& p = nodes_[parent];
    if (parent != kRoot && p.origin == spans[i].origin && p.children == 0) {  // the run goes on
      p.to = to;
      total_ += to - have;
      if (p.locks > 0) locked_ += to - have;
      if (p.pinned_until != 0) pinned_blocks_ += to - have;
      have = to;
      continue;
    }
    const Node n = New();
    Entry& e = nodes_[n];
    e.origin = spans[i].origin;
    e.from = have;
    e.to = to;
    e.parent = parent;
    ++nodes_[parent].children;
    const auto [it, fresh] = by_origin_.try_emplace(e.origin, n);
    if (!fresh) {
      e.next_of_origin = nodes_[it->second].next_of_origin;
      nodes_[it->second].next_of_origin = n;
    }
    // Released with its parent if that is unlocked: children stand before parents.
    if (parent == kRoot || nodes_[parent].locks > 0) {
      Append(n);
    } else {
      InsertAfter(n, nodes_[parent].lru_prev);
    }
    total_ += to - have;
    have = to;
    parent = n;
  }
  return parent;
}

uint32_t PrefixTree::EverSeen(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t most) const {
  for (size_t i = spans.size(); i-- > 0;) {
    const uint32_t from = i == 0 ? 0 : spans[i - 1].end / block_tokens;
    const uint32_t to = std::min(most, spans[i].end / block_tokens);
    const auto it = ever_.find(spans[i].origin);
    if (it != ever_.end() && std::min(to, it->second) > from) return std::min(to, it->second);
  }
  return 0;
}

uint32_t PrefixTree::UnlockedOnPath(Node n) const {
  uint32_t blocks = 0;
  for (; n != kRoot && nodes_[n].locks == 0; n = nodes_[n].parent) blocks += nodes_[n].to - nodes_[n].from;
  return blocks;
}

void PrefixTree::Lock(Node n) {
  while (n != kRoot && nodes_[n].locks++ == 0) {
    Detach(n);
    locked_ += nodes_[n].to - nodes_[n].from;
    n = nodes_[n].parent;
  }
}

void PrefixTree::Unlock(Node n) {
  while (n != kRoot) {
    AS_CHECK_GT(nodes_[n].locks, 0u);
    if (--nodes_[n].locks > 0) return;
    Append(n);
    locked_ -= nodes_[n].to - nodes_[n].from;
    n = nodes_[n].parent;
  }
}

void PrefixTree::Forget(Node n) {
  Entry& e = nodes_[n];
  const auto it = by_origin_.find(e.origin);
  if (it->second == n) {
    if (e.next_of_origin == 0) {
      by_origin_.erase(it);
    } else {
      it->second = e.next_of_origin;
    }
  } else {
    Node k = it->second;
    while (nodes_[k].next_of_origin != n) k = nodes_[k].next_of_origin;
    nodes_[k].next_of_origin = e.next_of_origin;
  }
  Detach(n);
  --nodes_[e.parent].children;
  e.live = false;
  free_.push_back(n);
}

// Takes up to `blocks` from the end of an unlocked leaf.
uint32_t PrefixTree::Trim(Node n, uint32_t blocks) {
  Entry& e = nodes_[n];
  const uint32_t take = std::min(blocks, e.to - e.from);
  e.to -= take;
  total_ -= take;
  evicted_ += take;
  if (e.pinned_until != 0) pinned_blocks_ -= take;
  if (e.to == e.from) {
    e.pinned_until = 0;
    Forget(n);
  }
  return take;
}

void PrefixTree::Evict(uint32_t blocks) {
  AS_CHECK_LE(blocks, cached());
  for (const bool pinned_too : {false, true}) {
    Node n = nodes_[kRoot].lru_next;
    while (blocks > 0 && n != kRoot) {
      const Node next = nodes_[n].lru_next;
      const bool skip = nodes_[n].children > 0 || (nodes_[n].pinned_until != 0 && !pinned_too);
      if (!skip) blocks -= Trim(n, blocks);
      n = next;
    }
  }
  AS_CHECK_EQ(blocks, 0u);
}

void PrefixTree::Pin(Node n, int64_t until, uint32_t most_blocks) {
  for (; n != kRoot; n = nodes_[n].parent) {
    Entry& e = nodes_[n];
    const uint32_t size = e.to - e.from;
    if (until == 0) {
      if (e.pinned_until != 0 && e.children <= 1) pinned_blocks_ -= size, e.pinned_until = 0;
      continue;
    }
    if (e.pinned_until == 0) {
      if (pinned_blocks_ + size > most_blocks) continue;
      pinned_blocks_ += size;
      pinned_.push_back(n);
    }
    e.pinned_until = std::max(e.pinned_until, until);
  }
}

void PrefixTree::ExpirePins(int64_t now) {
  std::erase_if(pinned_, [&](Node n) {
    Entry& e = nodes_[n];
    if (e.live && e.pinned_until > now) return false;
    if (e.live && e.pinned_until != 0) {
      pinned_blocks_ -= e.to - e.from;
      e.pinned_until = 0;
    }
    return true;
  });
}

void PrefixTree::CheckInvariants() const {
  uint32_t total = 0, locked = 0, unlocked_nodes = 0;
  std::vector<uint32_t> children(nodes_.size(), 0), position(nodes_.size(), 0);
  uint32_t at = 0;
  for (Node n = nodes_[kRoot].lru_next; n != kRoot; n = nodes_[n].lru_next) {
    position[n] = ++at;
    AS_CHECK_EQ(nodes_[n].locks, 0u);
    AS_CHECK(nodes_[nodes_[n].lru_next].lru_prev == n);
  }
  for (Node n = 1; n < nodes_.size(); ++n) {
    const Entry& e = nodes_[n];
    if (!e.live) continue;
    AS_CHECK_LT(e.from, e.to);
    total += e.to - e.from;
    if (e.locks > 0) locked += e.to - e.from;
    if (e.locks == 0) ++unlocked_nodes;
    ++children[e.parent];
    if (e.parent == kRoot) continue;
    AS_CHECK(nodes_[e.parent].live);
    AS_CHECK_EQ(nodes_[e.parent].to, e.from);
    AS_CHECK(e.locks == 0 || nodes_[e.parent].locks > 0) << "locked below an unlocked parent";
    if (nodes_[e.parent].locks == 0) AS_CHECK_LT(position[n], position[e.parent]);
  }
  for (Node n = 1; n < nodes_.size(); ++n) {
    if (nodes_[n].live) AS_CHECK_EQ(children[n], nodes_[n].children);
  }
  AS_CHECK_EQ(at, unlocked_nodes);
  AS_CHECK_EQ(total, total_);
  AS_CHECK_EQ(locked, locked_);
}

}  // namespace agentserve::sim
