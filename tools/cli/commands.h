// The sub-commands. Each parses its own flags (argv[0] is ignored) and returns the exit code of the process.
#pragma once

namespace agentserve::tools {

int RunUp(int argc, const char* const* argv);
int RunChat(int argc, const char* const* argv);
int RunGenerate(int argc, const char* const* argv);
int RunTop(int argc, const char* const* argv);
int RunWhy(int argc, const char* const* argv);
int RunBench(int argc, const char* const* argv);
int RunSim(int argc, const char* const* argv);
int RunProbe(int argc, const char* const* argv);
int RunDemoCommand(int argc, const char* const* argv);

}  // namespace agentserve::tools
