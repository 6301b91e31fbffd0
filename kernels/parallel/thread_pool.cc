#include "kernels/parallel/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

namespace agentserve::kernels {
namespace {

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int AvailableCpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = AvailableCpus();
  threads = std::min(threads, kMaxThreads);
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { HelperLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& t : helpers_) t.join();
}

void ThreadPool::Drain(int thread) {
  for (;;) {
    const size_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    call_(fn_, task, thread);
  }
}

void ThreadPool::RunErased(size_t tasks, void* fn, Call call) {
  std::unique_lock<std::mutex> lock(run_mutex_, std::defer_lock);
  if (helpers_.empty() || tasks <= 1 || !lock.try_lock()) {
    for (size_t i = 0; i < tasks; ++i) call(fn, i, 0);
    return;
  }
  tasks_ = tasks;
  fn_ = fn;
  call_ = call;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  Drain(0);
  CloseAndAwaitLeavers();
}

// All tasks are taken by now; once every helper has left, all are done.
void ThreadPool::CloseAndAwaitLeavers() {
  uint32_t gate = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  const int64_t deadline = gate == 0 ? 0 : NowNs() + kSpinNs;
  for (int i = 1; gate != 0; ++i) {
    Pause();
    if (i % 32 == 0 && NowNs() > deadline) gate_.wait(gate, std::memory_order_acquire);
    gate = gate_.load(std::memory_order_acquire);
  }
}

bool ThreadPool::Enter() {
  uint32_t gate = gate_.load(std::memory_order_relaxed);
  while ((gate & kOpen) != 0) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) return true;
  }
  return false;
}

void ThreadPool::Leave() {
  if ((gate_.fetch_sub(1, std::memory_order_release) & kOpen) == 0) gate_.notify_all();
}

uint32_t ThreadPool::AwaitJob(uint32_t seen) {
  const int64_t deadline = NowNs() + kSpinNs;
  for (int i = 1;; ++i) {
    const uint32_t now = generation_.load(std::memory_order_acquire);
    if (now != seen) return now;
    Pause();
    if (i % 32 == 0 && NowNs() > deadline) break;
  }
  generation_.wait(seen, std::memory_order_acquire);
  return generation_.load(std::memory_order_acquire);
}

void ThreadPool::HelperLoop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    seen = AwaitJob(seen);
    if (stop_.load()) return;
    if (!Enter()) continue;
    Drain(thread);
    Leave();
  }
}

}  // namespace agentserve::kernels
