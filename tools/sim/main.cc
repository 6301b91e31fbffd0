// agentserve-sim: `agentserve sim` alone, without the services' libraries.
#include "tools/cli/commands.h"

int main(int argc, char** argv) { return agentserve::tools::RunSim(argc, argv); }
