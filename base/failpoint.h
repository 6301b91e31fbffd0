// Planned faults, for tests only: named places in the code that misbehave at their n-th visit.
//
//   AGENTSERVE_FAILPOINTS="xf.corrupt=3,pf.exit_at_chunk=2"     (absent or empty: nothing ever fires)
//
// Visits are counted per name and process; n = 0 fires at every visit. Thread-safe. A visit costs one load when nothing
// is armed.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace agentserve::base {

// Counts a visit; true if the fault planned for `name` is due now.
bool FailpointFires(std::string_view name);
// Ends the process at once, as a crash would (exit code 134), if due.
void FailpointExit(std::string_view name);
// Replaces what is armed; "" disarms all. The environment is read once, before the first visit, unless this was called.
absl::Status ArmFailpoints(std::string_view text);

}  // namespace agentserve::base
