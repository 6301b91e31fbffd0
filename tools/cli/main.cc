// The agentserve command line: one program, one sub-command each time.
#include <cstdio>
#include <string>
#include <vector>

#include "base/flags.h"
#include "base/version.h"
#include "tools/cli/commands.h"

namespace agentserve::tools {
namespace {

struct CommandEntry {
  const char* name;
  const char* summary;
  int (*run)(int argc, const char* const* argv);
};

constexpr CommandEntry kCommands[] = {
    {"up", "run a whole cluster on this machine", RunUp},
    {"chat", "talk to a running cluster", RunChat},
    {"top", "watch a running cluster", RunTop},
    {"why", "why a request waited and went where it went", RunWhy},
    {"bench", "measure: a running server, the model alone, single operations", RunBench},
    {"sim", "replay agent workloads on a simulated cluster, under each scheduling policy", RunSim},
#ifdef AGENTSERVE_HAS_OFFLINE
    {"generate", "generate text in this process, without services", RunGenerate},
#endif
#ifdef AGENTSERVE_HAS_DEMO
    {"demo", "let a small agent with tools work against a running cluster", RunDemoCommand},
#endif
    {"probe", "health check for containers and scripts", RunProbe},
};

void PrintHelp() {
  std::printf("agentserve: serves Llama models to agents.\n\nUsage: agentserve COMMAND [flags]\n\nCommands:\n");
  for (const CommandEntry& c : kCommands) std::printf("  %-10s %s\n", c.name, c.summary);
  std::printf(
      "\n  agentserve COMMAND --help   flags of a command, their defaults and environment names\n"
      "  agentserve --version        version and commit\n");
}

int Dispatch(int argc, const char* const* argv) {
  const std::string word = argc > 1 ? argv[1] : "--help";
  const bool help = word == "help" || word == "--help" || word == "-h";
  if (help && argc > 2) {
    const char* const args[] = {argv[0], argv[2], "--help"};
    return Dispatch(3, args);
  }
  if (help) {
    PrintHelp();
    return argc > 1 ? base::kExitOk : base::kExitConfig;
  }
  if (word == "--version" || word == "version") {
    std::printf("agentserve %s (commit %s)\n", base::Version(), base::Commit());
    return base::kExitOk;
  }
  std::vector<std::string> names;
  for (const CommandEntry& c : kCommands) {
    if (word == c.name) return c.run(argc - 1, argv + 1);
    names.push_back(c.name);
  }
  const std::string near = base::Nearest(word, names);
  std::fprintf(stderr, "agentserve: unknown command '%s'%s See agentserve --help\n", word.substr(0, 100).c_str(),
               near.empty() ? "." : ("; did you mean '" + near + "'?").c_str());
  return base::kExitConfig;
}

}  // namespace
}  // namespace agentserve::tools

int main(int argc, char** argv) { return agentserve::tools::Dispatch(argc, argv); }
