// Command-line flags with env twins. One plain config struct per program is filled here, once, in main; nothing below
// main reads flags or the environment.
//
//   FlagSet flags("agentserve-router", "Admits and places requests.");
//   flags.Add("port", &config.port, "gRPC port", "Network");        // --port N or AGENTSERVE_ROUTER_PORT=N
//   if (auto rc = flags.ParseOrExit(argc, argv)) return *rc;
//
// Order of precedence: command line, environment, default. Unknown flags are refused with the nearest known one.
// `--help` shows groups, defaults and env names; `--version` shows version and commit.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace agentserve::base {

// Process exit codes.
enum ExitCode : int { kExitOk = 0, kExitFailure = 1, kExitConfig = 2, kExitModel = 3, kExitGpu = 4 };

class FlagSet {
 public:
  // `program` is shown in --help; the env prefix is the program in upper case with '-' and ' ' as '_'.
  FlagSet(std::string program, std::string summary);

  // `name` without dashes, e.g. "max-batch". *value holds the default. Bools accept --x, --no-x, --x=true|false.
  void Add(std::string name, std::string* value, std::string help, std::string group = "General");
  void Add(std::string name, int64_t* value, std::string help, std::string group = "General");
  void Add(std::string name, int* value, std::string help, std::string group = "General");
  void Add(std::string name, double* value, std::string help, std::string group = "General");
  void Add(std::string name, bool* value, std::string help, std::string group = "General");
  // May be repeated; env value is comma-separated.
  void Add(std::string name, std::vector<std::string>* value, std::string help, std::string group = "General");
  // Allows up to `most` positional arguments, named in --help.
  void AllowPositional(std::string label, size_t most, std::vector<std::string>* out);

  // Parses. Errors name the flag, the value, and what is expected.
  absl::Status Parse(const std::vector<std::string>& args);
  // Parses argv[1..]; prints help, version or the error. Value = exit now with this code.
  std::optional<int> ParseOrExit(int argc, const char* const* argv);

  std::string Help() const;
  // Markdown rows `| --flag | ENV | default | meaning |`, for docs.
  std::string MarkdownTable() const;
  std::string EnvName(std::string_view flag) const;

 private:
  struct Flag {
    std::string name, help, group, default_text;
    bool is_bool = false;
    bool is_list = false;
    std::function<absl::Status(const std::string&)> set;
  };
  void AddFlag(Flag flag);
  const Flag* Find(std::string_view name) const;
  absl::Status SetFlag(const Flag& flag, const std::string& value, std::string_view origin);
  absl::Status ParseOne(const std::vector<std::string>& args, size_t* i);

  std::string program_, summary_;
  std::vector<Flag> flags_;
  std::string positional_label_;
  size_t positional_most_ = 0;
  std::vector<std::string>* positional_ = nullptr;
  bool help_ = false, version_ = false;
};

// The candidate with the smallest edit distance to `word`, or "" if none is near (more than a third of its length off).
std::string Nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace agentserve::base
