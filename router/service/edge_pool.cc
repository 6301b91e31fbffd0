#include "router/service/edge_pool.h"

#include <utility>

namespace agentserve::router {

EdgePool::EdgePool(uint32_t threads, uint32_t max_jobs, uint64_t max_bytes)
    : max_jobs_(max_jobs), max_bytes_(max_bytes) {
  for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

bool EdgePool::Submit(size_t bytes, std::function<void()> job) {
  {
    std::lock_guard lock(mu_);
    if (stop_ || jobs_.size() >= max_jobs_ || bytes_ + bytes > max_bytes_) return false;
    bytes_ += bytes;
    jobs_.emplace_back(bytes, std::move(job));
  }
  wake_.notify_one();
  return true;
}

void EdgePool::Stop() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : threads_) {
    if (t.joinable()) t.join();
  }
}

void EdgePool::Run() {
  for (;;) {
    std::pair<size_t, std::function<void()>> job;
    {
      std::unique_lock lock(mu_);
      wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      bytes_ -= job.first;
    }
    job.second();
  }
}

}  // namespace agentserve::router
