#include "tests/integration/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "base/check.h"
#include "base/strings.h"
#include "base/unix_fd.h"

namespace agentserve::testing {
namespace {

using SteadyClock = std::chrono::steady_clock;

[[noreturn]] void Exec(const std::vector<std::string>& argv, const std::string& log_path,
                       const std::vector<std::string>& env) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int fd = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(fd, STDOUT_FILENO);
  dup2(fd, STDERR_FILENO);
  for (const std::string& e : env) putenv(const_cast<char*>(e.c_str()));
  std::vector<char*> args;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  execv(args[0], args.data());
  perror(args[0]);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const std::vector<std::string>& argv,
                                                        const std::string& log_path,
                                                        const std::vector<std::string>& env) {
  if (access(argv[0].c_str(), X_OK) != 0) return absl::NotFoundError(base::StrCat("no such program: ", argv[0]));
  const pid_t pid = fork();
  if (pid < 0) return absl::UnavailableError("fork failed");
  if (pid == 0) Exec(argv, log_path, env);
  return std::unique_ptr<Process>(new Process(pid, log_path));
}

Process::~Process() {
  if (Running()) Signal(SIGKILL);
}

bool Process::Running() {
  if (exit_.has_value()) return false;
  return !Wait(0).has_value();
}

void Process::Signal(int signal) {
  if (!Running()) return;
  kill(pid_, signal);
  if (signal == SIGKILL) {
    Wait(5000);
    AS_CHECK(exit_.has_value()) << "SIGKILL did not end process " << pid_;
  }
}

std::optional<int> Process::Wait(int timeout_ms) {
  const auto end = SteadyClock::now() + std::chrono::milliseconds(timeout_ms);
  while (!exit_.has_value()) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      break;
    }
    if (SteadyClock::now() >= end) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return exit_;
}

std::string Process::Log() const {
  std::ifstream in(log_path_);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

bool Process::WaitForLog(const std::string& text, int timeout_ms) {
  const auto end = SteadyClock::now() + std::chrono::milliseconds(timeout_ms);
  while (Log().find(text) == std::string::npos) {
    if (!Running() || SteadyClock::now() >= end) return Log().find(text) != std::string::npos;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

int64_t Process::ResidentKib() const {
  std::ifstream in(base::StrCat("/proc/", pid_, "/status"));
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::atoll(line.c_str() + 6);
  }
  return 0;
}

int PickPort() {
  static std::set<int> taken;
  for (;;) {
    base::UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in addr{};
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    AS_CHECK_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)), 0);
    socklen_t len = sizeof(addr);
    getsockname(fd.get(), reinterpret_cast<sockaddr*>(&addr), &len);
    if (taken.insert(ntohs(addr.sin_port)).second) return ntohs(addr.sin_port);
  }
}

std::string MakeTempDir() {
  const char* tmp = std::getenv("TMPDIR");
  std::string pattern = base::StrCat(tmp != nullptr ? tmp : "/tmp", "/agentserve-test-XXXXXX");
  AS_CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
  return pattern;
}

void RemoveTree(const std::string& dir) {
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
}

std::string BinaryPath(const std::string& name) {
  if (const char* bin = std::getenv("AGENTSERVE_BIN")) return base::StrCat(bin, "/", name);
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / name;
}

std::string SourcePath(const std::string& relative) {
  const char* root = std::getenv("AGENTSERVE_SOURCE");
  return base::StrCat(root != nullptr ? root : ".", "/", relative);
}

}  // namespace agentserve::testing
