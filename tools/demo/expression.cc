#include "tools/demo/expression.h"

#include <cmath>
#include <cstdlib>
#include <string>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::tools {
namespace {

using base::StrCat;

constexpr size_t kMaxBytes = 256;  // a model that babbles is cut off early
constexpr int kMaxLevels = 32;     // bounds the recursion

// Recursive descent: sum = term {(+|-) term}, term = factor {(*|/) factor}, factor = [+|-] (number | ( sum )).
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  absl::StatusOr<double> Whole() {
    AS_ASSIGN_OR_RETURN(const double value, Sum());
    if (Peek() != '\0') return Wrong("an operator");
    return value;
  }

 private:
  char Peek() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  absl::Status Wrong(std::string_view expected) const {
    return absl::InvalidArgumentError(StrCat("expected ", expected, " at byte ", at_, " of '", text_, "'"));
  }

  absl::StatusOr<double> Sum() {
    AS_ASSIGN_OR_RETURN(double value, Term());
    for (char op = Peek(); op == '+' || op == '-'; op = Peek()) {
      ++at_;
      AS_ASSIGN_OR_RETURN(const double right, Term());
      value = op == '+' ? value + right : value - right;
    }
    return value;
  }
  absl::StatusOr<double> Term() {
    AS_ASSIGN_OR_RETURN(double value, Factor());
    for (char op = Peek(); op == '*' || op == '/'; op = Peek()) {
      ++at_;
      AS_ASSIGN_OR_RETURN(const double right, Factor());
      if (op == '/' && right == 0) return absl::InvalidArgumentError(StrCat("division by zero in '", text_, "'"));
      value = op == '*' ? value * right : value / right;
    }
    return value;
  }
  absl::StatusOr<double> Factor() {
    if (++level_ > kMaxLevels) return absl::InvalidArgumentError(StrCat("'", text_, "' is nested too deeply"));
    const absl::StatusOr<double> value = Inner();
    --level_;
    return value;
  }
  absl::StatusOr<double> Inner() {
    const char c = Peek();
    if (c == '+' || c == '-') {
      ++at_;
      AS_ASSIGN_OR_RETURN(const double value, Factor());
      return c == '-' ? -value : value;
    }
    if (c == '(') {
      ++at_;
      AS_ASSIGN_OR_RETURN(const double value, Sum());
      if (Peek() != ')') return Wrong("')'");
      ++at_;
      return value;
    }
    return Number();
  }
  absl::StatusOr<double> Number() {
    const size_t start = at_;
    while (at_ < text_.size() && (text_[at_] == '.' || (text_[at_] >= '0' && text_[at_] <= '9'))) ++at_;
    const std::string digits(text_.substr(start, at_ - start));
    char* end = nullptr;
    const double value = std::strtod(digits.c_str(), &end);
    if (digits.empty() || *end != '\0') {
      at_ = start;
      return Wrong("a number");
    }
    return value;
  }

  const std::string_view text_;
  size_t at_ = 0;
  int level_ = 0;
};

}  // namespace

absl::StatusOr<double> EvaluateExpression(std::string_view text) {
  if (text.size() > kMaxBytes) return absl::InvalidArgumentError("an expression has at most 256 bytes");
  AS_ASSIGN_OR_RETURN(const double value, Parser(text).Whole());
  if (!std::isfinite(value)) return absl::InvalidArgumentError(StrCat("'", text, "' has no finite value"));
  return value;
}

}  // namespace agentserve::tools
