#pragma once

namespace agentserve::base {

const char* Version();  // e.g. "0.1.0"
const char* Commit();   // e.g. "1a2b3c4d5e6f" or "...-dirty"

}  // namespace agentserve::base
