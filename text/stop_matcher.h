// Finds stop strings in a stream of text and never lets out text that may still turn out to be part of one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace agentserve::text {

// The match that ends first wins; of several ending there, the longest. The result does not depend on how the text is
// cut into Feed calls. Single-threaded. Memory: 24 bytes per byte of all stop strings
// (callers bound number and length); time: linear in the text for a few stop strings.
class StopMatcher {
 public:
  // Empty strings among `stops` are ignored. `include`: the matched stop string is part of the text given out.
  StopMatcher(std::vector<std::string> stops, bool include);

  struct Result {
    std::string text;      // safe to emit
    bool stopped = false;  // a stop string was found; later calls give no text
    std::string match;     // the stop string found, when stopped
  };
  // Every emitted piece is valid UTF-8 if the stop strings and each `text` are.
  Result Feed(std::string_view text);
  // At the end of the stream: the held text, which is no stop string. Empty after a stop.
  std::string Flush();

 private:
  // Of a trie of the stop strings. Children are a linked list: they are few.
  struct Node {
    int32_t first_child = -1;
    int32_t sibling = -1;
    int32_t fail = 0;    // node of the longest proper suffix that begins a stop string
    int32_t depth = 0;   // bytes of a stop string matched so far
    int32_t match = -1;  // longest stop string ending here, index into stops_
    char byte = 0;
  };
  void AddString(size_t index);
  void LinkSuffixes();
  int32_t Child(int32_t node, char byte) const;
  int32_t Step(int32_t node, char byte) const;
  Node& at(int32_t node) { return nodes_[static_cast<size_t>(node)]; }
  const Node& at(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

  std::vector<std::string> stops_;
  bool include_;
  std::vector<Node> nodes_;
  int32_t state_ = 0;
  std::string held_;  // nodes_[state_].depth bytes between Feed calls
  bool stopped_ = false;
};

}  // namespace agentserve::text
