#include "kernels/parallel/thread_pool.h"

#include <gtest/gtest.h>

#include <ctime>
#include <numeric>

namespace agentserve::kernels {
namespace {

TEST(ThreadPool, EachTaskOnceWhateverTheThreads) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (size_t tasks = 0; tasks < 40; ++tasks) {
      std::vector<int> hits(tasks);
      pool.Run(tasks, [&](size_t i, int thread) {
        EXPECT_LT(thread, threads);
        ++hits[i];
      });
      for (const int h : hits) ASSERT_EQ(h, 1);
    }
  }
}

TEST(ThreadPool, ManySmallJobsBackToBack) {
  ThreadPool pool(3);
  std::vector<size_t> sums(3);
  for (int job = 0; job < 20000; ++job) {
    pool.Run(5, [&](size_t i, int thread) { sums[thread] += i; });
  }
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), size_t{0}), size_t{20000} * 10);
}

TEST(ThreadPool, CallersOnDifferentThreadsBothFinish) {
  ThreadPool pool(2);
  std::atomic<int> total{0};
  const auto work = [&] {
    for (int job = 0; job < 500; ++job) pool.Run(8, [&](size_t, int) { total.fetch_add(1); });
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(total.load(), 2 * 500 * 8);
}

TEST(ThreadPool, IdleHelpersSleep) {
  ThreadPool pool(4);
  pool.Run(8, [](size_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  timespec before{}, after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double ms =
      static_cast<double>((after.tv_sec - before.tv_sec) * 1'000'000'000 + after.tv_nsec - before.tv_nsec) / 1e6;
  EXPECT_LT(ms, 5.0);
}

}  // namespace
}  // namespace agentserve::kernels
