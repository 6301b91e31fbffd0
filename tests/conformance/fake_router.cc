// A router without a model, for the conformance client: answers by the text of the prompt
// (gateway/testing/fake_router.cc names the scripts). Prints `port=N` and serves until its standard input ends or it
// gets SIGTERM.
#include "gateway/testing/fake_router.h"

#include <cstdio>
#include <map>
#include <mutex>

int main() {
  namespace fake = agentserve::gateway::testing;
  fake::FakeRouter router;
  std::mutex mutex;
  std::map<std::string, int> attempts;
  router.set_script([&](const fake::pb::GenerateRequest& request) {
    std::lock_guard lock(mutex);
    return fake::ScriptByPrompt(request, attempts[fake::PromptOf(request)]++);
  });
  const int port = router.Start();
  if (port == 0) {
    std::fprintf(stderr, "fake_router: cannot listen on 127.0.0.1\n");
    return 1;
  }
  std::printf("port=%d\n", port);
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  return 0;
}
