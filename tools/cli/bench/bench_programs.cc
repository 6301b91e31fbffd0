#include "tools/cli/bench/bench_programs.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/core/line_splitter.h"
#include "tools/cli/paths.h"
#include "tools/cli/up/process.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

// What a bench exits with where it finds no GPU.
constexpr int kSkipped = 77;

struct Program {
  std::string name;
  std::vector<std::string> args;
};

// "name arg arg,name,..."; empty entries are none.
std::vector<Program> ParsePrograms(const std::string& text) {
  std::vector<Program> out;
  std::stringstream entries(text);
  for (std::string entry; std::getline(entries, entry, ',');) {
    std::stringstream words(entry);
    Program p;
    if (!(words >> p.name)) continue;
    for (std::string word; words >> word;) p.args.push_back(word);
    out.push_back(std::move(p));
  }
  return out;
}

struct Config {
  std::string dir, only, args, json_file;
  bool list = false;
};

// Runs one program; *json gets its JSON lines. Returns its exit code (128 + signal if one ended it).
absl::StatusOr<int> RunProgram(const std::string& file, const Program& p, bool show, std::string* json) {
  ProcessSpec spec;
  spec.argv = {file};
  spec.argv.insert(spec.argv.end(), p.args.begin(), p.args.end());
  AS_ASSIGN_OR_RETURN(Process process, Spawn(spec));
  const auto on_line = [&](std::string_view line) {
    nlohmann::json object = line.starts_with("{") ? nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false)
                                                  : nlohmann::json(nlohmann::json::value_t::discarded);
    if (object.is_object()) {
      object["program"] = p.name;
      *json += object.dump() + "\n";
    } else if (show) {
      std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
      std::fflush(stdout);
    }
  };
  LineSplitter lines;
  std::array<char, 4096> buffer;
  for (;;) {
    pollfd fd = {process.output.get(), POLLIN, 0};
    if (poll(&fd, 1, -1) < 0 && errno != EINTR) break;
    const ssize_t n = read(process.output.get(), buffer.data(), buffer.size());
    if (n == 0) break;
    if (n > 0) lines.Feed({buffer.data(), static_cast<size_t>(n)}, on_line);
    if (n < 0 && errno != EAGAIN && errno != EINTR) break;
  }
  lines.Finish(on_line);
  int status = 0;
  while (waitpid(process.pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

absl::Status WriteText(const std::string& file, const std::string& text) {
  if (file == "-") std::printf("%s", text.c_str());
  if (file.empty() || file == "-") return absl::OkStatus();
  std::ofstream out(file);
  out << text;
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(base::ToAbsl(StrCat("cannot write --json ", file, ": ", strerror(errno))));
}

// *failed: programs that ended with an error.
absl::Status RunAll(const Config& c, const std::vector<Program>& programs, int* failed) {
  const std::string dir =
      c.dir.empty() ? std::filesystem::path(StrCat(ProgramDir(), "/../bench")).lexically_normal().string() : c.dir;
  std::string json;
  int ran = 0;
  for (Program p : programs) {
    if (!c.args.empty()) p.args = ParsePrograms("x " + c.args).front().args;
    if (p.name.find(c.only) == std::string::npos) continue;
    const std::string file = StrCat(dir, "/", p.name);
    std::error_code error;
    if (c.list) {
      std::printf("%s%s\n", file.c_str(), std::filesystem::exists(file, error) ? "" : "   (not built)");
      continue;
    }
    if (!std::filesystem::exists(file, error)) {
      std::fprintf(stderr, "%s is not built: cmake --build --preset release --target %s\n", file.c_str(),
                   p.name.c_str());
      continue;
    }
    ++ran;
    const bool show = c.json_file != "-";
    if (show) std::printf("== %s\n", p.name.c_str());
    AS_ASSIGN_OR_RETURN(const int code, RunProgram(file, p, show, &json));
    if (code == kSkipped) {
      std::fprintf(stderr, "%s skipped: no GPU here\n", p.name.c_str());
    } else if (code != 0) {
      std::fprintf(stderr, "%s ended with exit code %d\n", p.name.c_str(), code);
      ++*failed;
    }
  }
  if (c.list) return absl::OkStatus();
  if (ran == 0) {
    return absl::NotFoundError(
        base::ToAbsl(StrCat("no bench program to run in ", dir, "; build them, or name their folder with --dir")));
  }
  return WriteText(c.json_file, json);
}

int RunPrograms(int argc, const char* const* argv, const char* name, const char* summary, const char* programs) {
  Config c;
  base::FlagSet flags(name, summary);
  flags.Add("only", &c.only, "run those whose name contains this");
  flags.Add("args", &c.args, "words given to each program instead of its usual arguments; best with --only");
  flags.Add("dir", &c.dir, "folder of the bench programs; none = ../bench beside this program");
  flags.Add("json", &c.json_file, "file that gets the figures as JSON, one object a line; - = standard output");
  flags.Add("list", &c.list, "only name the programs");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  int failed = 0;
  const absl::Status s = RunAll(c, ParsePrograms(programs), &failed);
  if (s.ok()) return failed == 0 ? base::kExitOk : base::kExitFailure;
  std::fprintf(stderr, "%s: %s\n", name, base::MessageOf(s).c_str());
  return absl::IsNotFound(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace

int RunBenchKernels(int argc, const char* const* argv) {
  return RunPrograms(argc, argv, "agentserve bench kernels", "Runs the benches of the operations, CPU and GPU.",
                     AGENTSERVE_KERNEL_BENCHES);
}

int RunBenchHandoff(int argc, const char* const* argv) {
  return RunPrograms(argc, argv, "agentserve bench handoff", "Runs the benches of moving KV between workers.",
                     AGENTSERVE_HANDOFF_BENCHES);
}

}  // namespace agentserve::tools
