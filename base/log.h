// Structured logs on stderr: one line per event, `key=value` text or JSON, bounded in length. Thread-safe.
//
//   AS_LOG(kInfo, "worker.registered") << Field("worker", id) << Field("blocks", n);
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/strings.h"

namespace agentserve::base {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

// One key and its value; values longer than 1,000 bytes are cut.
struct Field {
  std::string key;
  std::string value;
  bool quoted;
  Field(std::string_view k, std::string_view v) : key(k), value(v), quoted(true) {}
  Field(std::string_view k, const std::string& v) : key(k), value(v), quoted(true) {}
  Field(std::string_view k, const char* v) : key(k), value(v), quoted(true) {}
  Field(std::string_view k, bool v) : key(k), value(v ? "true" : "false"), quoted(false) {}
  template <typename T>
  Field(std::string_view k, T v) : key(k), value(StrCat(v)), quoted(false) {}
};

// Once, in main: service name shown on each line, least level, JSON or text.
void InitLog(std::string_view service, LogLevel least, bool json);
// "debug", "info", "warn", "error"; anything else is false.
bool ParseLogLevel(std::string_view text, LogLevel* level);
bool LogEnabled(LogLevel level);

// A line being built; written when destroyed.
class LogLine {
 public:
  LogLine(LogLevel level, std::string_view event) : level_(level), event_(event) {}
  ~LogLine();
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;
  LogLine& operator<<(Field f) {
    fields_.push_back(std::move(f));
    return *this;
  }

 private:
  LogLevel level_;
  std::string event_;
  std::vector<Field> fields_;
};

}  // namespace agentserve::base

#define AS_LOG(level, event)                                                  \
  if (!::agentserve::base::LogEnabled(::agentserve::base::LogLevel::level)) { \
  } else                                                                      \
    ::agentserve::base::LogLine(::agentserve::base::LogLevel::level, event)
