#include "base/clock.h"

#include <chrono>
#include <ctime>

namespace agentserve::base {

TimeNs MonotonicClock::Now() const {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<TimeNs>(ts.tv_sec) * kNsPerSecond + ts.tv_nsec;
}

int64_t UnixSeconds() { return std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()); }

}  // namespace agentserve::base
