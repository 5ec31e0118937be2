// base/mutex.h - locks that say what they guard; clang checks it, gcc compiles it away.
#pragma once

#include <pthread.h>

#include <chrono>
#include <mutex>
#include <shared_mutex>

#include "base/clock.h"

#if defined(__clang__)
#define NIXL_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define NIXL_THREAD_ANNOTATION(x)
#endif

// On data: may be touched only with the lock held (PT: what the pointer points to).
#define NIXL_GUARDED_BY(x) NIXL_THREAD_ANNOTATION(guarded_by(x))
#define NIXL_PT_GUARDED_BY(x) NIXL_THREAD_ANNOTATION(pt_guarded_by(x))

// On functions: the caller holds the lock, or must not hold it.
#define NIXL_REQUIRES(...) NIXL_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define NIXL_REQUIRES_SHARED(...) NIXL_THREAD_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define NIXL_EXCLUDES(...) NIXL_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))

// On functions: they take or give the lock.
#define NIXL_ACQUIRE(...) NIXL_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define NIXL_ACQUIRE_SHARED(...) NIXL_THREAD_ANNOTATION(acquire_shared_capability(__VA_ARGS__))
#define NIXL_TRY_ACQUIRE(...) NIXL_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define NIXL_RELEASE(...) NIXL_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define NIXL_RELEASE_SHARED(...) NIXL_THREAD_ANNOTATION(release_shared_capability(__VA_ARGS__))
#define NIXL_RELEASE_GENERIC(...) NIXL_THREAD_ANNOTATION(release_generic_capability(__VA_ARGS__))
#define NIXL_ASSERT_HELD(x) NIXL_THREAD_ANNOTATION(assert_capability(x))

// On lock members: their order. On functions: returns the lock; not checked (say why).
#define NIXL_ACQUIRED_BEFORE(...) NIXL_THREAD_ANNOTATION(acquired_before(__VA_ARGS__))
#define NIXL_ACQUIRED_AFTER(...) NIXL_THREAD_ANNOTATION(acquired_after(__VA_ARGS__))
#define NIXL_RETURN_CAPABILITY(x) NIXL_THREAD_ANNOTATION(lock_returned(x))
#define NIXL_NO_THREAD_SAFETY_ANALYSIS NIXL_THREAD_ANNOTATION(no_thread_safety_analysis)

// On classes.
#define NIXL_CAPABILITY(x) NIXL_THREAD_ANNOTATION(capability(x))
#define NIXL_SCOPED_CAPABILITY NIXL_THREAD_ANNOTATION(scoped_lockable)

namespace nixl::base {

class NIXL_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() NIXL_ACQUIRE() { mutex_.lock(); }
  void unlock() NIXL_RELEASE() { mutex_.unlock(); }
  // NOLINTNEXTLINE(readability-identifier-naming): the name that std::unique_lock calls
  bool try_lock() NIXL_TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Many readers or one writer. Only where reads are long: otherwise a Mutex is faster.
class NIXL_CAPABILITY("shared_mutex") SharedMutex {
 public:
  SharedMutex() = default;
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void lock() NIXL_ACQUIRE() { mutex_.lock(); }
  void unlock() NIXL_RELEASE() { mutex_.unlock(); }
  // NOLINTBEGIN(readability-identifier-naming): the names that std::shared_lock calls
  void lock_shared() NIXL_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void unlock_shared() NIXL_RELEASE_SHARED() { mutex_.unlock_shared(); }
  // NOLINTEND(readability-identifier-naming)

 private:
  std::shared_mutex mutex_;
};

// Holds a Mutex for a scope. unlock() and lock() open a gap in it, for a call that must not be made
// with the lock held.
class NIXL_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) NIXL_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() NIXL_RELEASE() {
    if (held_) mutex_.unlock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  void unlock() NIXL_RELEASE() {
    held_ = false;
    mutex_.unlock();
  }
  void lock() NIXL_ACQUIRE() {
    mutex_.lock();
    held_ = true;
  }

 private:
  Mutex& mutex_;
  bool held_ = true;
};

class NIXL_SCOPED_CAPABILITY ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& mutex) NIXL_ACQUIRE_SHARED(mutex) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~ReaderLock() NIXL_RELEASE_GENERIC() { mutex_.unlock_shared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& mutex_;
};

class NIXL_SCOPED_CAPABILITY WriterLock {
 public:
  explicit WriterLock(SharedMutex& mutex) NIXL_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~WriterLock() NIXL_RELEASE() { mutex_.unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& mutex_;
};

// Waits on the monotonic clock, so that somebody who sets the date does not lengthen a wait. (The
// standard one does that only where glibc is newer than what our packages are built for.)
//
// Wakes spuriously: wait in a loop over the condition. There is no form that takes a predicate,
// because clang cannot see that a lambda runs with the lock held.
class CondVar {
 public:
  CondVar() {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&condition_, &attributes);
    pthread_condattr_destroy(&attributes);
  }
  ~CondVar() { pthread_cond_destroy(&condition_); }
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  void notifyOne() { pthread_cond_signal(&condition_); }
  void notifyAll() { pthread_cond_broadcast(&condition_); }

  void wait(Mutex& mutex) NIXL_REQUIRES(mutex) {
    pthread_cond_wait(&condition_, mutex.mutex_.native_handle());
  }

  // False once the deadline has passed; look at the condition once more even then.
  bool waitUntil(Mutex& mutex, const Deadline& deadline) NIXL_REQUIRES(mutex) {
    if (deadline.isNever()) {
      wait(mutex);
      return true;
    }
    timespec when;
    when.tv_sec = static_cast<time_t>(deadline.ns() / 1'000'000'000u);
    when.tv_nsec = static_cast<long>(deadline.ns() % 1'000'000'000u);
    return pthread_cond_timedwait(&condition_, mutex.mutex_.native_handle(), &when) == 0;
  }
  bool waitUntil(Mutex& mutex, std::chrono::steady_clock::time_point when) NIXL_REQUIRES(mutex) {
    return waitUntil(mutex, Deadline::at(when));
  }

 private:
  pthread_cond_t condition_;
};

}  // namespace nixl::base
