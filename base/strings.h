// Debian's Abseil has its own string_view, distinct from std::string_view. These bridges let the rest of the code use
// std types only.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace agentserve::base {

namespace strings_internal {
template <typename T>
decltype(auto) Piece(const T& v) {
  if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    const std::string_view s = v;
    return absl::string_view(s.data(), s.size());
  } else {
    return (v);
  }
}
}  // namespace strings_internal

// absl::StrCat that also takes std::string_view.
template <typename... Args>
std::string StrCat(const Args&... args) {
  return absl::StrCat(strings_internal::Piece(args)...);
}
template <typename... Args>
void StrAppend(std::string* out, const Args&... args) {
  absl::StrAppend(out, strings_internal::Piece(args)...);
}

inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }
inline std::string MessageOf(const absl::Status& s) { return std::string(s.message()); }

}  // namespace agentserve::base
