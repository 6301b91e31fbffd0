// A few threads that tokenize, with a queue bounded in jobs and bytes.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace agentserve::router {

class EdgePool {
 public:
  EdgePool(uint32_t threads, uint32_t max_jobs, uint64_t max_bytes);
  ~EdgePool() { Stop(); }
  EdgePool(const EdgePool&) = delete;
  EdgePool& operator=(const EdgePool&) = delete;

  // False: the queue is full, or stopped. Thread-safe.
  bool Submit(size_t bytes, std::function<void()> job);
  // Runs what is queued, then ends the threads.
  void Stop();

 private:
  void Run();

  const uint32_t max_jobs_;
  const uint64_t max_bytes_;
  std::vector<std::thread> threads_;
  std::mutex mu_;
  std::condition_variable wake_;
  std::deque<std::pair<size_t, std::function<void()>>> jobs_;  // guarded by mu_
  uint64_t bytes_ = 0;                                         // guarded by mu_
  bool stop_ = false;                                          // guarded by mu_
};

}  // namespace agentserve::router
