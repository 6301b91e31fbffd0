#include "router/service/event_loop.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

namespace agentserve::router {

EventLoop::EventLoop(const base::Clock& clock, std::function<base::TimeNs()> turn)
    : clock_(clock), turn_(std::move(turn)) {}

void EventLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

void EventLoop::Stop() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void EventLoop::Post(std::function<void()> event) {
  bool first;
  {
    std::lock_guard lock(mu_);
    if (stop_) return;
    first = events_.empty();
    events_.push_back(std::move(event));
  }
  if (first) wake_.notify_one();
}

bool EventLoop::Call(const std::function<void()>& event) {
  struct Wait {
    std::mutex mu;
    std::condition_variable cv;
    bool done = false;
  };
  auto wait = std::make_shared<Wait>();
  {
    std::lock_guard lock(mu_);
    if (stop_) return false;
    events_.push_back([wait, event] {
      event();
      std::lock_guard done(wait->mu);
      wait->done = true;
      wait->cv.notify_all();
    });
  }
  wake_.notify_one();
  std::unique_lock lock(wait->mu);
  wait->cv.wait(lock, [&] { return wait->done; });
  return true;
}

void EventLoop::Run() {
  std::vector<std::function<void()>> batch;
  base::TimeNs wake_at = 0;
  for (;;) {
    bool stopping;
    {
      std::unique_lock lock(mu_);
      const base::TimeNs wait_ns = std::clamp<base::TimeNs>(wake_at - clock_.Now(), 0, base::kNsPerSecond);
      wake_.wait_for(lock, std::chrono::nanoseconds(wait_ns), [this] { return stop_ || !events_.empty(); });
      batch.swap(events_);
      stopping = stop_;
    }
    for (auto& event : batch) event();
    batch.clear();
    wake_at = turn_();
    if (stopping) return;
  }
}

}  // namespace agentserve::router
