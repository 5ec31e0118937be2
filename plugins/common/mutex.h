// plugins/common/mutex.h - a lock that says what it guards: clang checks it, gcc compiles it away.
//
// For data with a lock of its own. Locks that are passed on, or of which several are held in an
// order that is only known at run time, are std::mutex, and comments say what they are for.
#pragma once

#include <mutex>

#if defined(__clang__)
#define NIXL_PLUGIN_ANNOTATION(x) __attribute__((x))
#else
#define NIXL_PLUGIN_ANNOTATION(x)
#endif

// On data: may be touched only with the lock held.
#define NIXL_PLUGIN_GUARDED_BY(x) NIXL_PLUGIN_ANNOTATION(guarded_by(x))
// On functions: the caller holds the lock.
#define NIXL_PLUGIN_REQUIRES(...) NIXL_PLUGIN_ANNOTATION(requires_capability(__VA_ARGS__))

namespace nixl {

class NIXL_PLUGIN_ANNOTATION(capability("mutex")) PluginMutex {
 public:
  void lock() NIXL_PLUGIN_ANNOTATION(acquire_capability()) { mutex_.lock(); }
  void unlock() NIXL_PLUGIN_ANNOTATION(release_capability()) { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

// Holds one for a scope.
class NIXL_PLUGIN_ANNOTATION(scoped_lockable) PluginLock {
 public:
  explicit PluginLock(PluginMutex& mutex) NIXL_PLUGIN_ANNOTATION(acquire_capability(mutex))
      : mutex_(mutex) {
    mutex_.lock();
  }
  ~PluginLock() NIXL_PLUGIN_ANNOTATION(release_capability()) { mutex_.unlock(); }
  PluginLock(const PluginLock&) = delete;
  PluginLock& operator=(const PluginLock&) = delete;

 private:
  PluginMutex& mutex_;
};

}  // namespace nixl
