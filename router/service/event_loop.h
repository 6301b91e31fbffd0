// The one thread that runs the router core: a queue of closures and a turn after each batch of them.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace agentserve::router {

// Post is thread-safe and never blocks. The queue needs no bound of its own: its producers are bounded (links stop
// reading, edge threads have a bounded queue, streams and unary calls are bounded by the server).
class EventLoop {
 public:
  // `turn` runs after each batch of events, and whenever the time it last returned has come.
  EventLoop(const base::Clock& clock, std::function<base::TimeNs()> turn);
  ~EventLoop() { Stop(); }
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  void Start();
  // Runs what is queued, then ends the thread. Later Posts are dropped.
  void Stop();
  void Post(std::function<void()> event);
  // Runs `event` on the loop and waits for it. Not from the loop itself. False: the loop has stopped.
  bool Call(const std::function<void()>& event);

 private:
  void Run();

  const base::Clock& clock_;
  const std::function<base::TimeNs()> turn_;
  std::thread thread_;
  std::mutex mu_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> events_;  // guarded by mu_
  bool stop_ = false;                          // guarded by mu_
};

}  // namespace agentserve::router
