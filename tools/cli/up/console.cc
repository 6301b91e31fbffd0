#include "tools/cli/up/console.h"

#include <unistd.h>

#include <algorithm>

#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

constexpr std::string_view kReset = "\x1b[0m";
// Colours that are readable on dark and light backgrounds.
constexpr int kPalette[] = {36, 35, 34, 32, 33, 96, 95, 94, 92, 93};

// "2026-01-02T03:04:05.678Z level service event ..." -> its level and event, or nothing.
bool SplitTextLine(std::string_view line, std::string_view* level, std::string_view* event) {
  std::string_view words[4];
  for (std::string_view& word : words) {
    const size_t end = std::min(line.find(' '), line.size());
    word = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  if (words[0].size() != 24 || words[0].back() != 'Z') return false;
  *level = words[1];
  *event = words[3];
  return true;
}

bool HasJsonField(std::string_view line, std::string_view field) {
  return !line.empty() && line.front() == '{' && line.find(field) != line.npos;
}

}  // namespace

bool IsReadyLine(std::string_view line) {
  std::string_view level, event;
  if (SplitTextLine(line, &level, &event)) return event == "service.ready";
  return HasJsonField(line, "\"event\":\"service.ready\"");
}

bool IsLoudLine(std::string_view line) {
  std::string_view level, event;
  if (SplitTextLine(line, &level, &event)) return level == "warn" || level == "error";
  return !HasJsonField(line, "\"level\":\"info\"") && !HasJsonField(line, "\"level\":\"debug\"");
}

Console::Console(std::vector<std::string> names, ConsoleOptions options) : options_(options) {
  constexpr std::string_view kOwn = "agentserve";
  size_t width = kOwn.size();
  for (const std::string& name : names) width = std::max(width, name.size());
  for (size_t i = 0; i < names.size(); ++i) {
    std::string text = names[i];
    text.resize(width, ' ');
    text += " | ";
    prefixes_.push_back(options_.color ? StrCat("\x1b[", kPalette[i % std::size(kPalette)], "m", text, kReset) : text);
  }
  own_prefix_ = kOwn;
  own_prefix_.resize(width, ' ');
  own_prefix_ = options_.color ? StrCat("\x1b[1m", own_prefix_, " | ", kReset) : own_prefix_ + " | ";
}

Console::~Console() { Status(""); }

void Console::Write(const std::string& text) {
  // A reader that went away must not stop the supervisor from stopping its children: errors are ignored.
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(options_.fd, text.data() + done, text.size() - done);
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

std::string Console::ClearStatus() { return status_.empty() ? "" : "\r\x1b[2K"; }

void Console::Line(size_t component, std::string_view line) {
  if (options_.quiet && !IsLoudLine(line)) return;
  Write(StrCat(ClearStatus(), options_.json ? "" : prefixes_[component], line, "\n", status_));
}

void Console::Note(std::string_view text) { Write(StrCat(ClearStatus(), own_prefix_, text, "\n", status_)); }

void Console::Error(std::string_view text) {
  Write(StrCat(ClearStatus(), own_prefix_, options_.color ? "\x1b[31m" : "", "error: ", text,
               options_.color ? kReset : "", "\n", status_));
}

void Console::Status(std::string_view text) {
  if (!options_.color || text == status_) return;
  Write(StrCat(ClearStatus(), text));
  status_ = text;
}

}  // namespace agentserve::tools
