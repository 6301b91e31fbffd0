#include "base/version.h"

#include "version_commit.h"

namespace agentserve::base {

const char* Version() { return AGENTSERVE_VERSION; }
const char* Commit() { return AGENTSERVE_COMMIT; }

}  // namespace agentserve::base
