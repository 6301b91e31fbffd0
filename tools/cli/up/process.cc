#include "tools/cli/up/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/strings.h"

extern char** environ;

namespace agentserve::tools {
namespace {

constexpr int kExitCannotExecute = 127;

// Everything the child needs, made before fork: afterwards only async-signal-safe calls are allowed.
struct ChildPlan {
  std::vector<char*> argv;
  std::vector<char*> env;
  int output = -1;
  pid_t parent = 0;
};

bool SameName(const char* env_entry, const std::string& assignment) {
  const size_t name = assignment.find('=');
  return name != std::string::npos && std::strncmp(env_entry, assignment.c_str(), name + 1) == 0;
}

ChildPlan MakePlan(const ProcessSpec& spec, int output) {
  ChildPlan plan;
  for (const std::string& a : spec.argv) plan.argv.push_back(const_cast<char*>(a.c_str()));
  plan.argv.push_back(nullptr);
  for (char** e = environ; *e != nullptr; ++e) {
    bool replaced = false;
    for (const std::string& x : spec.extra_env) replaced = replaced || SameName(*e, x);
    if (!replaced) plan.env.push_back(*e);
  }
  for (const std::string& x : spec.extra_env) plan.env.push_back(const_cast<char*>(x.c_str()));
  plan.env.push_back(nullptr);
  plan.output = output;
  plan.parent = getpid();
  return plan;
}

[[noreturn]] void RunChild(const ChildPlan& plan) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != plan.parent) _exit(kExitCannotExecute);  // the parent died before prctl took effect
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int s : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGCHLD}) signal(s, SIG_DFL);
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  dup2(plan.output, STDOUT_FILENO);
  dup2(plan.output, STDERR_FILENO);
  close_range(3, ~0u, 0);
  execve(plan.argv[0], plan.argv.data(), plan.env.data());
  constexpr char kMessage[] = "cannot be executed: ";
  [[maybe_unused]] ssize_t n = write(STDERR_FILENO, plan.argv[0], strlen(plan.argv[0]));
  n = write(STDERR_FILENO, " ", 1);
  n = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  const char* why = strerrorname_np(errno);
  if (why != nullptr) n = write(STDERR_FILENO, why, strlen(why));
  n = write(STDERR_FILENO, "\n", 1);
  _exit(kExitCannotExecute);
}

}  // namespace

absl::StatusOr<Process> Spawn(const ProcessSpec& spec) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(base::StrCat("cannot make a pipe for ", spec.argv[0], ": ", strerror(errno)));
  }
  base::UniqueFd read_end(ends[0]), write_end(ends[1]);
  fcntl(read_end.get(), F_SETFL, O_NONBLOCK);
  const ChildPlan plan = MakePlan(spec, write_end.get());
  const pid_t pid = fork();
  if (pid < 0) {
    return absl::ResourceExhaustedError(base::StrCat("cannot start ", spec.argv[0], ": ", strerror(errno)));
  }
  if (pid == 0) RunChild(plan);
  setpgid(pid, pid);  // also here, so that the group exists before anyone signals it
  Process process;
  process.pid = pid;
  process.output = std::move(read_end);
  return process;
}

}  // namespace agentserve::tools
