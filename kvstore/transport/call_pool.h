// A few threads that make blocking calls at the same time.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace agentserve::kvstore {

// Thread-safe; one Run has the threads at a time, others meanwhile make their calls one after the other.
class CallPool {
 public:
  // `width` calls at once, of which the caller of Run makes one.
  explicit CallPool(size_t width);
  ~CallPool();
  CallPool(const CallPool&) = delete;
  CallPool& operator=(const CallPool&) = delete;

  size_t width() const { return threads_.size() + 1; }
  // call(0) .. call(n - 1), in any order and on any thread; returns when all have returned.
  void Run(size_t n, const std::function<void(size_t)>& call);

 private:
  void Work();

  std::mutex run_mu_;  // held by the Run that has the threads
  std::mutex mu_;      // guards below
  std::condition_variable begin_, end_;
  const std::function<void(size_t)>* call_ = nullptr;  // null: nothing to do
  size_t next_ = 0, calls_ = 0, left_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace agentserve::kvstore
