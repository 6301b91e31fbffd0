#include "tools/cli/core/line_splitter.h"

#include <algorithm>

namespace agentserve::tools {

void LineSplitter::Emit(const Sink& sink) {
  if (!pending_.empty() && pending_.back() == '\r') pending_.pop_back();
  sink(pending_);
  pending_.clear();
}

void LineSplitter::Feed(std::string_view bytes, const Sink& sink) {
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const size_t room = kMaxLineBytes - pending_.size();
    const size_t take = std::min(end == bytes.npos ? bytes.size() : end, room);
    pending_.append(bytes.substr(0, take));
    bytes.remove_prefix(take);
    if (!bytes.empty() && bytes.front() == '\n') {
      bytes.remove_prefix(1);
      Emit(sink);
    } else if (pending_.size() == kMaxLineBytes) {
      Emit(sink);
    }
  }
}

void LineSplitter::Finish(const Sink& sink) {
  if (!pending_.empty()) Emit(sink);
}

}  // namespace agentserve::tools
