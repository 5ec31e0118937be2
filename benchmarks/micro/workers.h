// micro/workers.h - a few threads that wait for work, started before anything is timed.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nixl::micro {

class Workers {
 public:
  explicit Workers(unsigned count);  // beside the caller
  ~Workers();

  // Runs work(0) here and work(1) ... work(threads - 1) on the others; returns when all are done.
  void run(unsigned threads, const std::function<void(unsigned)>& work);

 private:
  void loop(unsigned self);

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(unsigned)>* work_ = nullptr;
  unsigned threads_ = 0, running_ = 0;
  uint64_t round_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace nixl::micro
