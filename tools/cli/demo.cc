// `agentserve demo`.
#include "tools/demo/demo.h"

#include "tools/cli/commands.h"

namespace agentserve::tools {

int RunDemoCommand(int argc, const char* const* argv) { return RunDemo(argc, argv); }

}  // namespace agentserve::tools
