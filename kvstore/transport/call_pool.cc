#include "kvstore/transport/call_pool.h"

namespace agentserve::kvstore {

CallPool::CallPool(size_t width) {
  for (size_t i = 1; i < width; ++i) threads_.emplace_back([this] { Work(); });
}

CallPool::~CallPool() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  begin_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void CallPool::Run(size_t n, const std::function<void(size_t)>& call) {
  std::unique_lock mine(run_mu_, std::try_to_lock);
  if (!mine.owns_lock() || n <= 1) {
    for (size_t i = 0; i < n; ++i) call(i);
    return;
  }
  std::unique_lock lock(mu_);
  call_ = &call;
  next_ = 0;
  calls_ = left_ = n;
  begin_.notify_all();
  while (next_ < calls_) {
    const size_t i = next_++;
    lock.unlock();
    call(i);
    lock.lock();
    --left_;
  }
  end_.wait(lock, [this] { return left_ == 0; });
  call_ = nullptr;
}

void CallPool::Work() {
  std::unique_lock lock(mu_);
  for (;;) {
    begin_.wait(lock, [this] { return stop_ || (call_ != nullptr && next_ < calls_); });
    if (stop_) return;
    const size_t i = next_++;
    const std::function<void(size_t)>& call = *call_;
    lock.unlock();
    call(i);
    lock.lock();
    if (--left_ == 0) end_.notify_all();
  }
}

}  // namespace agentserve::kvstore
