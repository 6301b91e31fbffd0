// Time as a value. Cores never read a clock: shells read one once per loop turn and pass the value in.
#pragma once

#include <cstdint>

namespace agentserve::base {

// Nanoseconds of a monotonic clock of unspecified origin. Never sent to another process (send durations).
using TimeNs = int64_t;
inline constexpr TimeNs kNsPerMs = 1'000'000;
inline constexpr TimeNs kNsPerSecond = 1'000'000'000;
inline constexpr double ToMs(TimeNs ns) { return static_cast<double>(ns) / 1e6; }

// A source of monotonic time. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimeNs Now() const = 0;
};

// CLOCK_MONOTONIC.
class MonotonicClock final : public Clock {
 public:
  TimeNs Now() const override;
};

// Set by a test or a simulator. Not thread-safe.
class ManualClock final : public Clock {
 public:
  TimeNs Now() const override { return now_; }
  void Set(TimeNs now) { now_ = now; }
  void Advance(TimeNs by) { now_ += by; }

 private:
  TimeNs now_ = 0;
};

// Wall-clock seconds since the Unix epoch; for OpenAI's `created` fields and log lines only.
int64_t UnixSeconds();

}  // namespace agentserve::base
