// Shell plumbing that prefill and decode workers share lives in worker/: the two never include each other.
//
// Events from any thread to the one loop thread of a worker.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace agentserve::worker {

// Thread-safe. Bounded by its producers: each stream has at most one read in flight, and each pull, connection and
// signal posts once.
template <typename T>
class Mailbox {
 public:
  void Post(T event) {
    {
      const std::lock_guard lock(mu_);
      events_.push_back(std::move(event));
    }
    cv_.notify_one();
  }

  // Everything posted so far, without waiting.
  std::vector<T> Take() {
    const std::lock_guard lock(mu_);
    return std::exchange(events_, {});
  }

  // Waits until something is posted, or `timeout_ns` have passed.
  std::vector<T> Wait(base::TimeNs timeout_ns) {
    std::unique_lock lock(mu_);
    if (timeout_ns > 0) {
      cv_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), [&] { return !events_.empty(); });
    }
    return std::exchange(events_, {});
  }

 private:
  std::mutex mu_;
  std::condition_variable cv_;
  std::vector<T> events_;  // guarded by mu_
};

}  // namespace agentserve::worker
