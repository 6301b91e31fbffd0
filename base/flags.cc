#include "base/flags.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <type_traits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/version.h"

namespace agentserve::base {
namespace {

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t up = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = up;
    }
  }
  return row[b.size()];
}

template <typename T>
std::function<absl::Status(const std::string&)> IntSetter(T* value) {
  return [value](const std::string& text) {
    if (!absl::SimpleAtoi(text, value)) return absl::InvalidArgumentError("a whole number is expected");
    return absl::OkStatus();
  };
}

}  // namespace

std::string Nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& c : candidates) {
    const size_t d = EditDistance(word, c);
    if (d < best_distance) {
      best_distance = d;
      best = c;
    }
  }
  return best;
}

FlagSet::FlagSet(std::string program, std::string summary)
    : program_(std::move(program)), summary_(std::move(summary)) {}

void FlagSet::AddFlag(Flag flag) { flags_.push_back(std::move(flag)); }

void FlagSet::Add(std::string name, std::string* value, std::string help, std::string group) {
  AddFlag({name, help, group, *value, false, false, [value](const std::string& t) {
             *value = t;
             return absl::OkStatus();
           }});
}
void FlagSet::Add(std::string name, int64_t* value, std::string help, std::string group) {
  AddFlag({name, help, group, StrCat(*value), false, false, IntSetter(value)});
}
void FlagSet::Add(std::string name, int* value, std::string help, std::string group) {
  AddFlag({name, help, group, StrCat(*value), false, false, IntSetter(value)});
}
void FlagSet::Add(std::string name, double* value, std::string help, std::string group) {
  AddFlag({name, help, group, StrCat(*value), false, false, [value](const std::string& t) {
             if (!absl::SimpleAtod(t, value)) return absl::InvalidArgumentError("a number is expected");
             return absl::OkStatus();
           }});
}
void FlagSet::Add(std::string name, bool* value, std::string help, std::string group) {
  AddFlag({name, help, group, *value ? "true" : "false", true, false, [value](const std::string& t) {
             if (!absl::SimpleAtob(t, value)) return absl::InvalidArgumentError("true or false is expected");
             return absl::OkStatus();
           }});
}
void FlagSet::Add(std::string name, std::vector<std::string>* value, std::string help, std::string group) {
  AddFlag({name, help, group, absl::StrJoin(*value, ","), false, true, [value](const std::string& t) {
             for (auto part : absl::StrSplit(t, ',', absl::SkipEmpty())) value->emplace_back(part);
             return absl::OkStatus();
           }});
}

void FlagSet::AllowPositional(std::string label, size_t most, std::vector<std::string>* out) {
  positional_label_ = std::move(label);
  positional_most_ = most;
  positional_ = out;
}

const FlagSet::Flag* FlagSet::Find(std::string_view name) const {
  for (const Flag& f : flags_) {
    if (f.name == name) return &f;
  }
  return nullptr;
}

std::string FlagSet::EnvName(std::string_view flag) const {
  std::string out = StrCat(program_, "_", flag);
  for (char& c : out) c = c == '-' || c == ' ' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

absl::Status FlagSet::SetFlag(const Flag& flag, const std::string& value, std::string_view origin) {
  absl::Status s = flag.set(value);
  if (s.ok()) return s;
  return absl::InvalidArgumentError(StrCat(origin, ": bad value '", value.substr(0, 200), "': ", MessageOf(s)));
}

absl::Status FlagSet::ParseOne(const std::vector<std::string>& args, size_t* i) {
  const std::string& arg = args[*i];
  if (arg.rfind("--", 0) != 0 || arg.size() == 2) {
    if (arg == "-h") {
      help_ = true;
      return absl::OkStatus();
    }
    if (positional_ != nullptr && positional_->size() < positional_most_ && (arg.empty() || arg[0] != '-')) {
      positional_->push_back(arg);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(StrCat("unexpected argument '", arg, "'; see ", program_, " --help"));
  }
  const size_t eq = arg.find('=');
  const std::string name = arg.substr(2, eq == arg.npos ? arg.npos : eq - 2);
  if (name == "help") {
    help_ = true;
    return absl::OkStatus();
  }
  if (name == "version") {
    version_ = true;
    return absl::OkStatus();
  }
  const Flag* flag = Find(name);
  if (flag == nullptr && name.rfind("no-", 0) == 0 && eq == arg.npos) {
    const Flag* positive = Find(name.substr(3));
    if (positive != nullptr && positive->is_bool) return SetFlag(*positive, "false", arg);
  }
  if (flag == nullptr) {
    std::vector<std::string> names = {"help", "version"};
    for (const Flag& f : flags_) names.push_back(f.name);
    const std::string near = Nearest(name, names);
    return absl::InvalidArgumentError(StrCat("unknown flag --", name,
                                             near.empty() ? "" : StrCat("; did you mean --", near, "?"), " See ",
                                             program_, " --help"));
  }
  if (eq != arg.npos) return SetFlag(*flag, arg.substr(eq + 1), StrCat("--", name));
  if (flag->is_bool) return SetFlag(*flag, "true", arg);
  if (*i + 1 >= args.size()) return absl::InvalidArgumentError(StrCat("--", name, " needs a value"));
  return SetFlag(*flag, args[++*i], StrCat("--", name));
}

absl::Status FlagSet::Parse(const std::vector<std::string>& args) {
  for (const Flag& f : flags_) {
    const std::string env = EnvName(f.name);
    if (const char* value = std::getenv(env.c_str())) AS_RETURN_IF_ERROR(SetFlag(f, value, env));
  }
  for (size_t i = 0; i < args.size(); ++i) AS_RETURN_IF_ERROR(ParseOne(args, &i));
  return absl::OkStatus();
}

std::optional<int> FlagSet::ParseOrExit(int argc, const char* const* argv) {
  absl::Status s = Parse(std::vector<std::string>(argv + 1, argv + argc));
  if (help_) {
    std::fputs(Help().c_str(), stdout);
    return kExitOk;
  }
  if (version_) {
    std::printf("%s %s (commit %s)\n", program_.c_str(), Version(), Commit());
    return kExitOk;
  }
  if (!s.ok()) {
    std::fprintf(stderr, "%s: %s\n", program_.c_str(), MessageOf(s).c_str());
    return kExitConfig;
  }
  return std::nullopt;
}

std::string FlagSet::Help() const {
  std::string out = StrCat(program_, ": ", summary_, "\n\nUsage: ", program_, " [flags]",
                           positional_label_.empty() ? "" : " " + positional_label_, "\n");
  std::vector<std::string> groups;
  for (const Flag& f : flags_) {
    if (std::find(groups.begin(), groups.end(), f.group) == groups.end()) groups.push_back(f.group);
  }
  for (const std::string& group : groups) {
    StrAppend(&out, "\n", group, ":\n");
    for (const Flag& f : flags_) {
      if (f.group != group) continue;
      std::string left = StrCat("  --", f.name, f.is_bool ? "" : " VALUE");
      left.resize(std::max<size_t>(left.size() + 1, 30), ' ');
      StrAppend(&out, left, f.help, " [", f.default_text.empty() ? "none" : f.default_text, "] (", EnvName(f.name),
                ")\n");
    }
  }
  out += "\n  --help, --version\n";
  return out;
}

std::string FlagSet::MarkdownTable() const {
  std::string out = "| flag | env | default | meaning |\n|---|---|---|---|\n";
  for (const Flag& f : flags_) {
    StrAppend(&out, "| `--", f.name, "` | `", EnvName(f.name), "` | ",
              f.default_text.empty() ? "" : StrCat("`", f.default_text, "`"), " | ", f.help, " |\n");
  }
  return out;
}

}  // namespace agentserve::base
