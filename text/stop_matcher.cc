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
  for (size_t i = 0; i < stops_.size(); ++i) AddString(i);
  LinkSuffixes();
}

int32_t StopMatcher::Child(int32_t node, char byte) const {
  int32_t child = at(node).first_child;
  while (child >= 0 && at(child).byte != byte) child = at(child).sibling;
  return child;
}

int32_t StopMatcher::Step(int32_t node, char byte) const {
  while (true) {
    if (const int32_t child = Child(node, byte); child >= 0) return child;
    if (node == 0) return 0;
    node = at(node).fail;
  }
}

void StopMatcher::AddString(size_t index) {
  int32_t node = 0;
  for (const char c : stops_[index]) {
    int32_t child = Child(node, c);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      Node added;
      added.sibling = at(node).first_child;
      added.depth = at(node).depth + 1;
      added.byte = c;
      nodes_.push_back(added);
      at(node).first_child = child;
    }
    node = child;
  }
  if (at(node).match < 0) at(node).match = static_cast<int32_t>(index);
}

void StopMatcher::LinkSuffixes() {
  // Breadth first: the suffix of a node is shallower, so complete when the node is reached.
  std::deque<int32_t> queue{0};
  while (!queue.empty()) {
    const int32_t parent = queue.front();
    queue.pop_front();
    for (int32_t child = at(parent).first_child; child >= 0; child = at(child).sibling) {
      at(child).fail = parent == 0 ? 0 : Step(at(parent).fail, at(child).byte);
      if (at(child).match < 0) at(child).match = at(at(child).fail).match;
      queue.push_back(child);
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
    state_ = Step(state_, text[i]);
    const int32_t match = at(state_).match;
    if (match < 0) continue;
    stopped_ = true;
    result.stopped = true;
    result.match = stops_[static_cast<size_t>(match)];
    const size_t end = before + i + 1;
    result.text = held_.substr(0, include_ ? end : end - result.match.size());
    held_.clear();
    return result;
  }
  const size_t keep = static_cast<size_t>(at(state_).depth);
  result.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(held_, {});
}

}  // namespace agentserve::text
