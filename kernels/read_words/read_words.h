// Reads memory as fast as plain code can: the yardstick for kernels that are bound by memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::kernels {

// Sum of n words.
uint64_t SumWords(const uint64_t* words, size_t n);

}  // namespace agentserve::kernels
