#include "stream.h"

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace nixl::fakes::cuda {

void Mark::set() {
  {
    std::lock_guard lock(mutex_);
    set_ = true;
  }
  changed_.notify_all();
}

bool Mark::isSet() const {
  std::lock_guard lock(mutex_);
  return set_;
}

void Mark::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return set_; });
}

std::shared_ptr<WorkStream> WorkStream::make(DeviceContext* context) {
  auto shared = std::make_shared<Shared>();
  shared->context = context;
  // It may outlive the process' main(), as a driver's threads do: it has what it uses for itself.
  std::thread([shared] { run(shared); }).detach();
  return std::shared_ptr<WorkStream>(new WorkStream(std::move(shared)));
}

WorkStream::~WorkStream() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->over = true;
  }
  shared_->changed.notify_all();
}

void WorkStream::run(const std::shared_ptr<Shared>& shared) {
  pthread_setname_np(pthread_self(), "fake-cuda");
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  std::unique_lock lock(shared->mutex);
  while (true) {
    shared->changed.wait(lock, [&] { return shared->over || !shared->queue.empty(); });
    if (shared->queue.empty()) return;
    std::function<void()> work = std::move(shared->queue.front());
    shared->queue.pop_front();
    shared->working = true;
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
    shared->working = false;
    shared->changed.notify_all();
  }
}

void WorkStream::add(std::function<void()> work) {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->queue.push_back(std::move(work));
  }
  shared_->changed.notify_all();
}

bool WorkStream::idle() const {
  std::lock_guard lock(shared_->mutex);
  return shared_->queue.empty() && !shared_->working;
}

void WorkStream::wait() {
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [&] { return shared_->queue.empty() && !shared_->working; });
}

}  // namespace nixl::fakes::cuda
