// Where things lie on this machine.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace agentserve::tools {

// Folder of the running program.
std::string ProgramDir();
// The bundled model, looked for beside the program's build or installation and in the current folder.
absl::StatusOr<std::string> FindBundledModel();
// Absolute path without a trailing slash, of something that exists or not.
std::string Absolute(const std::string& path);
// Folder for run-time files of this user: $XDG_RUNTIME_DIR if it can be written to, else /tmp.
std::string RuntimeBase();

// A folder that is removed with everything in it when this object ends, if this object made it.
class RunDir {
 public:
  // Makes a new private folder under RuntimeBase(), or uses `path` (made if missing, mode 0700).
  static absl::StatusOr<RunDir> Make(const std::string& path);
  RunDir(RunDir&& other) noexcept;
  RunDir& operator=(RunDir&&) = delete;
  ~RunDir();
  const std::string& path() const { return path_; }

 private:
  RunDir(std::string path, bool owned) : path_(std::move(path)), owned_(owned) {}
  std::string path_;
  bool owned_;
};

// The state file that `agentserve up` of this user wrote last and whose supervisor still runs. NOT_FOUND if none does.
absl::StatusOr<std::string> FindStateFile();
// host:port of the router of a cluster: of the given state file, or of FindStateFile's.
absl::StatusOr<std::string> RouterAddress(const std::string& state_file);

}  // namespace agentserve::tools
