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
  leaves_.clear();
  lost_.clear();
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

uint32_t PrefixTree::WorthOf(const Entry& e) const {
  const uint32_t worth = e.shared ? kSharedWorth * e.worth : e.worth;
  return e.clean ? worth / kCleanDivisor : worth;
}

// Puts a node into leaves_, out of it or elsewhere in it, as its state asks for.
void PrefixTree::Refile(Node n) {
  Entry& e = nodes_[n];
  if (e.leaf) leaves_.erase(e.key);
  e.leaf = n != kRoot && e.live && e.locks == 0 && e.children == 0;
  if (!e.leaf) return;
  if (e.pinned_until != 0) {
    e.key = {3, static_cast<uint64_t>(e.pinned_until), e.tick, n};
  } else if (e.final) {
    e.key = {0, 0, e.tick, n};
  } else {
    e.key = {2, e.clock + WorthOf(e), e.tick, n};
  }
  leaves_.insert(e.key);
}

void PrefixTree::Released(Node n) {
  nodes_[n].clock = clock_;
  nodes_[n].tick = ++tick_;
  Refile(n);
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
  h.worth = e.worth;
  h.clock = e.clock;
  h.tick = e.tick;
  h.clean = e.clean;
  e.from = at;
  e.parent = head;
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
    if (++nodes_[parent].children > 1) nodes_[parent].shared = true;
    const auto [it, fresh] = by_origin_.try_emplace(e.origin, n);
    if (!fresh) {
      e.next_of_origin = nodes_[it->second].next_of_origin;
      nodes_[it->second].next_of_origin = n;
    }
    Refile(parent);
    Released(n);
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
    Refile(n);
    nodes_[n].final = false;
    locked_ += nodes_[n].to - nodes_[n].from;
    n = nodes_[n].parent;
  }
}

void PrefixTree::Unlock(Node n) {
  while (n != kRoot) {
    AS_CHECK_GT(nodes_[n].locks, 0u);
    if (--nodes_[n].locks > 0) return;
    Released(n);
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
  e.live = false;
  Refile(n);
  --nodes_[e.parent].children;
  Refile(e.parent);
  free_.push_back(n);
}

// Takes up to `blocks` from the end of an unlocked leaf.
uint32_t PrefixTree::Trim(Node n, uint32_t blocks) {
  Entry& e = nodes_[n];
  const uint32_t take = std::min(blocks, e.to - e.from);
  const uint32_t worth = e.shared ? kSharedWorth * e.worth : e.worth;
  if (!e.final && !e.clean && worth > kBaseWorth) lost_.push_back({e.origin, e.to - take, e.to, worth});
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
  while (blocks > 0) {
    AS_CHECK(!leaves_.empty());
    const auto& [rank, due, tick, n] = *leaves_.begin();
    if (rank == 2) clock_ = std::max(clock_, due);
    blocks -= Trim(n, blocks);
  }
}

void PrefixTree::Pin(Node n, int64_t until, uint32_t most_blocks) {
  for (; n != kRoot; n = nodes_[n].parent) {
    Entry& e = nodes_[n];
    const uint32_t size = e.to - e.from;
    if (e.pinned_until == 0) {
      if (pinned_blocks_ + size > most_blocks) continue;
      pinned_blocks_ += size;
      pinned_.push_back(n);
    }
    e.pinned_until = std::max(e.pinned_until, until);
    Refile(n);
  }
}

void PrefixTree::ExpirePins(int64_t now) {
  if (now < pins_checked_ + kPinGrain) return;
  pins_checked_ = now;
  std::erase_if(pinned_, [&](Node n) {
    Entry& e = nodes_[n];
    if (e.live && e.pinned_until > now) return false;
    if (e.live && e.pinned_until != 0) {
      pinned_blocks_ -= e.to - e.from;
      e.pinned_until = 0;
      Refile(n);
    }
    return true;
  });
}

void PrefixTree::Unpin(Node n) {
  for (; n != kRoot && !nodes_[n].shared && nodes_[n].children <= 1; n = nodes_[n].parent) {
    Entry& e = nodes_[n];
    if (e.pinned_until == 0) continue;
    pinned_blocks_ -= e.to - e.from;
    e.pinned_until = 0;
    Refile(n);
  }
}

void PrefixTree::SetWorth(Node n, uint32_t worth) {
  for (; n != kRoot; n = nodes_[n].parent) {
    Entry& e = nodes_[n];
    e.worth = worth;
    e.final = false;
    e.clock = clock_;
    Refile(n);
  }
}

void PrefixTree::MakeFinal(Node n) {
  bool own = true;
  for (; n != kRoot && own; n = nodes_[n].parent) {
    Entry& e = nodes_[n];
    own = !e.shared && e.children <= 1 && e.locks == 0 && e.pinned_until == 0;
    if (!own) break;
    e.final = true;
    Refile(n);
  }
}

void PrefixTree::SetClean(Node n, bool clean) {
  nodes_[n].clean = clean;
  Refile(n);
}

void PrefixTree::CheckInvariants() const {
  uint32_t total = 0, locked = 0, leaves = 0;
  std::vector<uint32_t> children(nodes_.size(), 0);
  for (Node n = 1; n < nodes_.size(); ++n) {
    const Entry& e = nodes_[n];
    if (!e.live) continue;
    AS_CHECK_LT(e.from, e.to);
    total += e.to - e.from;
    if (e.locks > 0) locked += e.to - e.from;
    AS_CHECK_EQ(e.leaf, e.locks == 0 && e.children == 0);
    AS_CHECK(!e.leaf || leaves_.contains(e.key));
    leaves += e.leaf;
    ++children[e.parent];
    if (e.parent == kRoot) continue;
    AS_CHECK(nodes_[e.parent].live);
    AS_CHECK_EQ(nodes_[e.parent].to, e.from);
    AS_CHECK(e.locks == 0 || nodes_[e.parent].locks > 0) << "locked below an unlocked parent";
  }
  for (Node n = 1; n < nodes_.size(); ++n) {
    if (nodes_[n].live) AS_CHECK_EQ(children[n], nodes_[n].children);
  }
  AS_CHECK_EQ(leaves, leaves_.size());
  AS_CHECK_EQ(total, total_);
  AS_CHECK_EQ(locked, locked_);
}

}  // namespace agentserve::sim
