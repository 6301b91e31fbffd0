#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <ctime>

namespace agentserve::base {
namespace {

struct LogConfig {
  std::string service = "agentserve";
  bool json = false;
};
// Written by InitLog before other threads start.
LogConfig& Config() {
  static LogConfig config;
  return config;
}
std::atomic<int> least_level{static_cast<int>(LogLevel::kInfo)};

constexpr std::string_view kNames[] = {"debug", "info", "warn", "error"};
constexpr size_t kMaxValueBytes = 1000;

void AppendQuoted(std::string_view v, std::string* out) {
  *out += '"';
  for (char c : v) {
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (c == '\n') {
      *out += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      *out += ' ';
    } else {
      *out += c;
    }
  }
  *out += '"';
}

std::string Timestamp() {
  timespec ts{};
  clock_gettime(CLOCK_REALTIME, &ts);
  tm parts{};
  gmtime_r(&ts.tv_sec, &parts);
  char buf[40];
  const size_t n = strftime(buf, sizeof(buf), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(buf + n, sizeof(buf) - n, ".%03ldZ", ts.tv_nsec / 1'000'000);
  return buf;
}

}  // namespace

void InitLog(std::string_view service, LogLevel least, bool json) {
  Config().service = service;
  Config().json = json;
  least_level = static_cast<int>(least);
}

bool ParseLogLevel(std::string_view text, LogLevel* level) {
  for (int i = 0; i < 4; ++i) {
    if (text == kNames[i]) {
      *level = static_cast<LogLevel>(i);
      return true;
    }
  }
  return false;
}

bool LogEnabled(LogLevel level) { return static_cast<int>(level) >= least_level.load(std::memory_order_relaxed); }

LogLine::~LogLine() {
  const bool json = Config().json;
  std::string line;
  const auto level = kNames[static_cast<int>(level_)];
  if (json) {
    StrAppend(&line, "{\"ts\":\"", Timestamp(), "\",\"level\":\"", level, "\",\"service\":");
    AppendQuoted(Config().service, &line);
    line += ",\"event\":";
    AppendQuoted(event_, &line);
  } else {
    StrAppend(&line, Timestamp(), " ", level, " ", Config().service, " ", event_);
  }
  for (const Field& f : fields_) {
    const std::string_view value = std::string_view(f.value).substr(0, kMaxValueBytes);
    if (json) {
      line += ',';
      AppendQuoted(f.key, &line);
      line += ':';
    } else {
      StrAppend(&line, " ", f.key, "=");
    }
    const bool bare = !f.quoted || (!json && !value.empty() && value.find_first_of(" \"\n\\=") == value.npos);
    if (bare) {
      line += value;
    } else {
      AppendQuoted(value, &line);
    }
  }
  line += json ? "}\n" : "\n";
  // One write per line, so that lines of different threads and processes do not mix.
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace agentserve::base
