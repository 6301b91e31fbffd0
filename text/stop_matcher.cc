#include "text/stop_matcher.h"

#include <algorithm>
#include <deque>
#include <utility>

namespace agentserve::text {

// An Aho-Corasick automaton: the state is the longest suffix of the text that begins some stop string, so exactly that
// suffix must be held back.
StopMatcher::StopMatcher(std::vector<std::string> stops, bool include) : stops_(std::move(stops)), include_(include) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
  nodes_.emplace_back();
  nodes_[0].next.fill(-1);
  for (size_t i = 0; i < stops_.size(); ++i) AddString(i);
  BuildTransitions();
}

void StopMatcher::AddString(size_t index) {
  size_t node = 0;
  for (const char c : stops_[index]) {
    const auto byte = static_cast<uint8_t>(c);
    if (nodes_[node].next[byte] < 0) {
      nodes_[node].next[byte] = static_cast<int32_t>(nodes_.size());
      const int32_t depth = nodes_[node].depth + 1;
      nodes_.emplace_back();
      nodes_.back().next.fill(-1);
      nodes_.back().depth = depth;
    }
    node = static_cast<size_t>(nodes_[node].next[byte]);
  }
  if (nodes_[node].match < 0) nodes_[node].match = static_cast<int32_t>(index);
}

void StopMatcher::BuildTransitions() {
  // Breadth first: fail[n] is the longest proper suffix of n that is a node; it is shallower, so already complete.
  std::vector<int32_t> fail(nodes_.size(), 0);
  std::deque<int32_t> queue{0};
  while (!queue.empty()) {
    const int32_t n = queue.front();
    queue.pop_front();
    Node& node = nodes_[static_cast<size_t>(n)];
    const Node& suffix = nodes_[static_cast<size_t>(fail[static_cast<size_t>(n)])];
    if (node.match < 0) node.match = suffix.match;
    for (size_t b = 0; b < 256; ++b) {
      if (node.next[b] < 0) {
        node.next[b] = n == 0 ? 0 : suffix.next[b];
      } else {
        fail[static_cast<size_t>(node.next[b])] = n == 0 ? 0 : suffix.next[b];
        queue.push_back(node.next[b]);
      }
    }
  }
}

StopMatcher::Result StopMatcher::Feed(std::string_view text) {
  Result result;
  if (stopped_) {
    result.stopped = true;
    return result;
  }
  if (stops_.empty()) {
    result.text = text;
    return result;
  }
  held_.append(text);  // held_ now is the text from the start of the possible match on
  const size_t before = held_.size() - text.size();
  for (size_t i = 0; i < text.size(); ++i) {
    state_ = nodes_[static_cast<size_t>(state_)].next[static_cast<uint8_t>(text[i])];
    const int32_t match = nodes_[static_cast<size_t>(state_)].match;
    if (match < 0) continue;
    stopped_ = true;
    result.stopped = true;
    result.match = stops_[static_cast<size_t>(match)];
    const size_t end = before + i + 1;
    result.text = held_.substr(0, include_ ? end : end - result.match.size());
    held_.clear();
    return result;
  }
  const size_t keep = static_cast<size_t>(nodes_[static_cast<size_t>(state_)].depth);
  result.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(held_, {});
}

}  // namespace agentserve::text
