// The identity of a model: its configuration and weights.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/weights.h"

namespace agentserve::model {

// Equal on every worker, whatever its device, that loaded the same folder.
uint64_t ModelFingerprint(const ModelConfig& config, const Weights& weights);

}  // namespace agentserve::model
