// Splits independent tasks over a few threads. Which thread runs a task never changes its result.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace agentserve::kernels {

// The caller is thread 0; `threads - 1` helpers wait for work. An idle helper spins for at most kSpinNs and then sleeps
// in the kernel, so idle processes cost nothing. Run is for one caller at a time: a second caller, from another thread,
// does its tasks alone rather than wait.
class ThreadPool {
 public:
  static constexpr int64_t kSpinNs = 20'000;  // longer than the gap between two ops of one step
  static constexpr int kMaxThreads = 256;

  // threads <= 0: one per CPU this process may run on.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls fn(task, thread) once for each task in [0, tasks), thread in [0, threads()); returns when all are done.
  // fn must not throw and must not call Run.
  template <typename Fn>
  void Run(size_t tasks, Fn&& fn) {
    using F = std::remove_reference_t<Fn>;
    RunErased(tasks, const_cast<void*>(static_cast<const void*>(&fn)),
              [](void* f, size_t task, int thread) { (*static_cast<F*>(f))(task, thread); });
  }

 private:
  using Call = void (*)(void* fn, size_t task, int thread);
  void RunErased(size_t tasks, void* fn, Call call);
  void HelperLoop(int thread);
  void Drain(int thread);
  uint32_t AwaitJob(uint32_t seen);
  bool Enter();
  void Leave();
  void CloseAndAwaitLeavers();

  static constexpr uint32_t kOpen = 1u << 31;

  std::mutex run_mutex_;                 // held by the one caller whose tasks the helpers share
  std::atomic<uint32_t> generation_{0};  // bumped to wake helpers
  std::atomic<bool> stop_{false};
  // kOpen while a job may be joined, plus the number of helpers inside. The job's fields change only while this is 0.
  std::atomic<uint32_t> gate_{0};
  std::atomic<size_t> next_{0};
  size_t tasks_ = 0;
  void* fn_ = nullptr;
  Call call_ = nullptr;
  std::vector<std::thread> helpers_;
};

// CPUs that this process may run on.
int AvailableCpus();

}  // namespace agentserve::kernels
