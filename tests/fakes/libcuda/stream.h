// libcuda/stream.h - work that is done later, in order, by a thread of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace nixl::fakes::cuda {

struct DeviceContext {
  int device = 0;
  unsigned uses = 0;         // guarded by the driver
  std::atomic<int> lost{0};  // what every call answers from then on
};

// What an event looks at, made anew each time that it is recorded.
class Mark {
 public:
  void set();
  bool isSet() const;
  void wait();  // until it is set

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
};

// Its thread ends after the last owner has gone and the work is done.
class WorkStream {
 public:
  static std::shared_ptr<WorkStream> make(DeviceContext* context);
  ~WorkStream();

  void add(std::function<void()> work);
  bool idle() const;
  void wait();
  DeviceContext* context() const { return shared_->context; }

 private:
  struct Shared {
    DeviceContext* context;
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> queue;  // guarded by mutex, as what follows
    bool working = false, over = false;
  };
  explicit WorkStream(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  static void run(const std::shared_ptr<Shared>& shared);

  const std::shared_ptr<Shared> shared_;
};

struct Recorder {
  DeviceContext* context = nullptr;
  std::mutex mutex;
  std::shared_ptr<Mark> mark;  // guarded by mutex; null: never recorded
};

}  // namespace nixl::fakes::cuda
