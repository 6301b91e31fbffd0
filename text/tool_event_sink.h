// Collects the events of a tool-call parser: joins neighbouring fragments, numbers calls, drops those not wanted.
// Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "text/tool_call_parser.h"

namespace agentserve::text {

// "call_" and 24 letters or digits, a function of both arguments.
inline std::string MakeToolCallId(uint64_t seed, uint32_t index) {
  constexpr std::string_view kAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  base::SplitMix64 rng(seed ^ (uint64_t{index} + 1) * 0xD1342543DE82EF95ull);
  std::string id = "call_";
  for (int i = 0; i < 24; ++i) id.push_back(kAlphabet[rng.Below(kAlphabet.size())]);
  return id;
}

// Calls do not nest: StartCall, Arguments*, EndCall.
class ToolEventSink {
 public:
  ToolEventSink(uint64_t id_seed, bool only_first) : id_seed_(id_seed), only_first_(only_first) {}

  void Content(std::string_view text) { Append(ToolEvent::Kind::kContent, 0, text); }
  void StartCall(const std::string& name) {
    open_ = true;
    if (dropped()) return;
    ToolEvent* e = Emit(ToolEvent::Kind::kCallStart);
    e->id = MakeToolCallId(id_seed_, index_);
    e->name = name;
    ++calls_;
  }
  void Arguments(std::string_view json) {
    if (!dropped()) Append(ToolEvent::Kind::kArguments, index_, json);
  }
  void EndCall(bool complete) {
    open_ = false;
    if (!dropped()) {
      Emit(ToolEvent::Kind::kCallEnd)->complete = complete;
      complete_calls_ += complete ? 1 : 0;
    }
    ++index_;
  }
  // Events since the last Take.
  std::vector<ToolEvent> Take() { return std::exchange(events_, {}); }

  bool call_open() const { return open_; }
  uint32_t calls() const { return calls_; }
  uint32_t complete_calls() const { return complete_calls_; }

 private:
  bool dropped() const { return only_first_ && index_ > 0; }
  ToolEvent* Emit(ToolEvent::Kind kind) {
    events_.emplace_back();
    events_.back().kind = kind;
    events_.back().index = index_;
    return &events_.back();
  }
  void Append(ToolEvent::Kind kind, uint32_t index, std::string_view text) {
    if (text.empty()) return;
    if (events_.empty() || events_.back().kind != kind || events_.back().index != index) Emit(kind)->index = index;
    events_.back().text.append(text);
  }

  const uint64_t id_seed_;
  const bool only_first_;
  std::vector<ToolEvent> events_;
  bool open_ = false;
  uint32_t index_ = 0;  // of the current or next call
  uint32_t calls_ = 0;  // given out
  uint32_t complete_calls_ = 0;
};

}  // namespace agentserve::text
