// Invariant checks that stay on in release builds. A failed check is a bug in this program: it prints a report and
// aborts. Never use it on input from users, peers, disks or networks; those get an absl::Status.
#pragma once

#include <sstream>
#include <string>

namespace agentserve::base {

// Prints `file:line: check failed: expr: detail` to stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expr, const std::string& detail);

// Collects `<<` details of a failing check; aborts when destroyed.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* expr) : file_(file), line_(line), expr_(expr) {}
  [[noreturn]] ~CheckFailure() { CheckFailed(file_, line_, expr_, out_.str()); }
  std::ostream& stream() { return out_; }

 private:
  const char* file_;
  int line_;
  const char* expr_;
  std::ostringstream out_;
};

}  // namespace agentserve::base

// AS_CHECK(cond) << "detail";
#define AS_CHECK(cond) \
  while (!(cond)) ::agentserve::base::CheckFailure(__FILE__, __LINE__, #cond).stream()
#define AS_CHECK_OP_(a, op, b) AS_CHECK((a)op(b)) << (a) << " vs " << (b) << " "
#define AS_CHECK_EQ(a, b) AS_CHECK_OP_(a, ==, b)
#define AS_CHECK_NE(a, b) AS_CHECK_OP_(a, !=, b)
#define AS_CHECK_LE(a, b) AS_CHECK_OP_(a, <=, b)
#define AS_CHECK_LT(a, b) AS_CHECK_OP_(a, <, b)
#define AS_CHECK_GE(a, b) AS_CHECK_OP_(a, >=, b)
#define AS_CHECK_GT(a, b) AS_CHECK_OP_(a, >, b)
