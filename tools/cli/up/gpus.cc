#include "tools/cli/up/gpus.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "base/strings.h"
#include "base/unix_fd.h"
#include "kvstore/transport/device_memory.h"

namespace agentserve::tools {
namespace {

// One line of ordinals, one of the reason why there is none.
std::string Report() {
  std::string why, out;
  for (const kvstore::DeviceInfo& d : kvstore::ListDevices(&why)) out += base::StrCat(d.index, " ");
  return base::StrCat(out, "\n", why, "\n");
}

void WriteAll(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace

std::vector<int> FindGpusInChild(std::string* why) {
  int ends[2];
  if (pipe(ends) != 0) {
    *why = base::StrCat("cannot look for GPUs: pipe: ", strerror(errno));
    return {};
  }
  base::UniqueFd in(ends[0]), out(ends[1]);
  const pid_t child = fork();
  if (child < 0) {
    *why = base::StrCat("cannot look for GPUs: fork: ", strerror(errno));
    return {};
  }
  if (child == 0) {
    WriteAll(out.get(), Report());
    _exit(0);  // no destructors: they belong to the parent
  }
  out.Reset();
  std::istringstream report(ReadAll(in.get()));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  std::string line;
  if (status != 0 || !std::getline(report, line)) {
    *why = base::StrCat("the look for GPUs ended with status ", status);
    return {};
  }
  std::istringstream ordinals(line);
  std::vector<int> found;
  for (int gpu; ordinals >> gpu;) found.push_back(gpu);
  std::getline(report, *why);
  return found;
}

}  // namespace agentserve::tools
