#include "gateway/http/target.h"

namespace agentserve::gateway {
namespace {

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

void SplitTarget(std::string_view target, std::string* path, std::string* query) {
  if (const size_t scheme = target.find("://"); scheme != target.npos && !target.starts_with('/')) {
    const size_t slash = target.find('/', scheme + 3);
    target = slash == target.npos ? std::string_view("/") : target.substr(slash);
  }
  target = target.substr(0, target.find('#'));
  const size_t mark = target.find('?');
  *query = mark == target.npos ? std::string() : std::string(target.substr(mark + 1));
  target = target.substr(0, mark);
  path->clear();
  for (size_t i = 0; i < target.size(); ++i) {
    if (target[i] == '%' && i + 2 < target.size()) {
      const int hi = HexValue(target[i + 1]), lo = HexValue(target[i + 2]);
      if (hi >= 0 && lo >= 0) {
        *path += static_cast<char>(hi * 16 + lo);
        i += 2;
        continue;
      }
    }
    *path += target[i];
  }
  while (path->size() > 1 && path->back() == '/') path->pop_back();
}

}  // namespace agentserve::gateway
