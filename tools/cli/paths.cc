#include "tools/cli/paths.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/strings.h"

namespace agentserve::tools {

namespace fs = std::filesystem;
using base::StrCat;

namespace {
constexpr std::string_view kRunDirPrefix = "agentserve-";
}  // namespace

std::string ProgramDir() {
  std::error_code ec;
  const fs::path self = fs::read_symlink("/proc/self/exe", ec);
  return ec ? std::string(".") : self.parent_path().string();
}

absl::StatusOr<std::string> FindBundledModel() {
  const fs::path dir = ProgramDir();
  // build/bin -> the source tree; bin -> share of an installation; and where the user stands.
  const fs::path places[] = {dir / "../../models/tiny-agent", dir / "../share/agentserve/models/tiny-agent",
                             fs::path("models/tiny-agent")};
  std::error_code ec;
  for (const fs::path& p : places) {
    if (fs::exists(p / "config.json", ec)) return fs::weakly_canonical(p, ec).string();
  }
  return absl::NotFoundError("the bundled model models/tiny-agent was not found; name a model folder with --model DIR");
}

std::string Absolute(const std::string& path) {
  std::error_code ec;
  const fs::path p = fs::weakly_canonical(fs::absolute(path, ec), ec);
  return ec ? path : p.string();
}

std::string RuntimeBase() {
  const char* xdg = std::getenv("XDG_RUNTIME_DIR");
  if (xdg != nullptr && *xdg == '/' && access(xdg, W_OK | X_OK) == 0) return xdg;
  return "/tmp";
}

absl::StatusOr<RunDir> RunDir::Make(const std::string& path) {
  if (path.empty()) {
    std::string name = StrCat(RuntimeBase(), "/", kRunDirPrefix, "XXXXXX");
    if (mkdtemp(name.data()) == nullptr) {
      return absl::PermissionDeniedError(StrCat("cannot make a folder ", name, ": ", strerror(errno)));
    }
    return RunDir(name, true);
  }
  std::error_code ec;
  if (fs::is_directory(path, ec)) return RunDir(Absolute(path), false);
  fs::create_directories(path, ec);
  if (!ec) fs::permissions(path, fs::perms::owner_all, ec);
  if (ec) return absl::PermissionDeniedError(StrCat("cannot make --run-dir ", path, ": ", ec.message()));
  return RunDir(Absolute(path), true);
}

RunDir::RunDir(RunDir&& other) noexcept : path_(std::move(other.path_)), owned_(std::exchange(other.owned_, false)) {}

RunDir::~RunDir() {
  if (!owned_) return;
  std::error_code ec;
  fs::remove_all(path_, ec);
}

absl::StatusOr<std::string> FindStateFile() {
  std::string best;
  fs::file_time_type best_time;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(RuntimeBase(), ec)) {
    if (entry.path().filename().string().rfind(kRunDirPrefix, 0) != 0) continue;
    const fs::path file = entry.path() / "state.json";
    std::ifstream in(file);
    const nlohmann::json state = in ? nlohmann::json::parse(in, nullptr, false) : nlohmann::json();
    if (!state.is_object() || !state.contains("pid") || !state["pid"].is_number_integer()) continue;
    if (kill(state["pid"].get<pid_t>(), 0) != 0) continue;
    const auto time = fs::last_write_time(file, ec);
    if (best.empty() || time > best_time) {
      best = file.string();
      best_time = time;
    }
  }
  if (best.empty()) {
    return absl::NotFoundError(
        StrCat("no running `agentserve up` found in ", RuntimeBase(), "; name one with --state-file"));
  }
  return best;
}

absl::StatusOr<std::string> RouterAddress(const std::string& state_file) {
  std::string path = state_file;
  if (path.empty()) {
    absl::StatusOr<std::string> found = FindStateFile();
    if (!found.ok()) return found.status();
    path = *found;
  }
  std::ifstream in(path);
  const nlohmann::json state = nlohmann::json::parse(in, nullptr, false);
  if (state.is_object() && state.contains("processes")) {
    for (const nlohmann::json& p : state["processes"]) {
      if (p.value("role", "") == "router") return StrCat(p.value("host", "127.0.0.1"), ":", p.value("port", 0));
    }
  }
  return absl::NotFoundError(StrCat("--state-file ", path, " names no router"));
}

}  // namespace agentserve::tools
