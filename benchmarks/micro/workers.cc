#include "workers.h"

namespace nixl::micro {

Workers::Workers(unsigned count) {
  for (unsigned i = 1; i <= count; ++i) workers_.emplace_back([this, i] { loop(i); });
}

Workers::~Workers() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Workers::run(unsigned threads, const std::function<void(unsigned)>& work) {
  {
    std::lock_guard lock(mutex_);
    work_ = &work;
    threads_ = threads;
    running_ = threads - 1;
    ++round_;
  }
  if (threads > 1) wake_.notify_all();
  work(0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
}

void Workers::loop(unsigned self) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
    if (stopping_) return;
    seen = round_;
    if (self >= threads_) continue;
    lock.unlock();
    (*work_)(self);
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace nixl::micro
