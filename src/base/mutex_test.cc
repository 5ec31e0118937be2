#include "base/mutex.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace nixl::base {
namespace {

using namespace std::chrono_literals;

bool isFree(Mutex& mutex) NIXL_EXCLUDES(mutex) {
  if (!mutex.try_lock()) return false;
  mutex.unlock();
  return true;
}

TEST(Mutex, LetsOneThreadInAtATime) {
  Mutex mutex;
  int count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        MutexLock lock(mutex);
        ++count;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 4000);
}

TEST(MutexLock, OpensAGapInItself) {
  Mutex mutex;
  {
    MutexLock lock(mutex);
    lock.unlock();
    EXPECT_TRUE(isFree(mutex));
    lock.lock();
    std::thread([&] { EXPECT_FALSE(isFree(mutex)); }).join();
    lock.unlock();
  }
  EXPECT_TRUE(isFree(mutex));
}

TEST(SharedMutex, LetsReadersInTogether) {
  SharedMutex mutex;
  ReaderLock lock(mutex);
  std::thread([&] { ReaderLock another(mutex); }).join();  // would hang if it excluded the first
}

TEST(CondVar, WakesWhoWaits) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread waker([&] {
    MutexLock lock(mutex);
    ready = true;
    changed.notifyAll();
  });
  {
    MutexLock lock(mutex);
    Deadline deadline = Deadline::after(60s);
    while (!ready && changed.waitUntil(mutex, deadline)) {
    }
    EXPECT_TRUE(ready);
  }
  waker.join();
}

TEST(CondVar, GivesUpAtTheDeadlineAndNotBefore) {
  Mutex mutex;
  CondVar never;
  MutexLock lock(mutex);
  uint64_t start = nowNs();
  Deadline deadline = Deadline::after(20ms);
  while (never.waitUntil(mutex, deadline)) {
  }
  EXPECT_GE(nowNs() - start, 20'000'000u);
  EXPECT_FALSE(never.waitUntil(mutex, std::chrono::steady_clock::now() - 1s));
  std::thread([&] { EXPECT_FALSE(isFree(mutex)); }).join();  // waiting has taken it back
}

}  // namespace
}  // namespace nixl::base
