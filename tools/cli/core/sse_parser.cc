#include "tools/cli/core/sse_parser.h"

#include <algorithm>

namespace agentserve::tools {

bool SseParser::OnLine(std::string_view line, const Sink& sink) {
  if (line.empty()) {
    if (!has_data_) return true;
    has_data_ = false;
    const bool go_on = sink(data_);
    data_.clear();
    return go_on;
  }
  constexpr std::string_view kData = "data:";
  if (line.substr(0, kData.size()) != kData) return true;  // comments and other fields
  line.remove_prefix(kData.size());
  if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += line;
  has_data_ = true;
  return true;
}

bool SseParser::Feed(std::string_view bytes, const Sink& sink) {
  while (!bytes.empty()) {
    const size_t end = std::min(bytes.find('\n'), bytes.size());
    line_.append(bytes.substr(0, end));
    if (line_.size() + data_.size() > kMaxEventBytes) {
      too_long_ = true;
      return false;
    }
    if (end == bytes.size()) return true;
    bytes.remove_prefix(end + 1);
    if (!line_.empty() && line_.back() == '\r') line_.pop_back();
    const bool go_on = OnLine(line_, sink);
    line_.clear();
    if (!go_on) return false;
  }
  return true;
}

}  // namespace agentserve::tools
