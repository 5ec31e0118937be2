// core/progress.h - who moves the data, and when. Read docs/design/threads.md first.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "core/backend.h"
#include "core/work_queue.h"

namespace nixl::core {

class Transfer;

// Drives an agent's engines. Progress is a token that one thread at a time holds: user's threads
// that poll or wait try it without blocking, and do the work themselves if they get it; the
// progress thread takes it only when nobody polls, and sleeps in epoll when there is nothing to do.
//
// Threads: any. The token is not a data lock: engines are called, and transfers finished, by whoever
// holds it. queue_mu_ and wait_mu_ are leaves.
class Progress {
 public:
  // `clockwork` looks at deadlines: gets the time, returns when it wants to look again.
  using Clockwork = std::function<uint64_t(uint64_t now_ns)>;

  Progress(std::string name, Clockwork clockwork);
  ~Progress();

  Status start(bool with_thread);
  // Joins the thread; nothing runs afterwards. In a child after fork() forgets it instead.
  void stop();
  void forget();

  void add(Backend* backend);  // engines are only ever added
  void queue(std::shared_ptr<Transfer> transfer);  // has pieces that wait to be posted
  void wake();                                     // somebody gave an engine something to do
  // Who polled sleeps from now on: the thread need not stand back any longer.
  void handOver();
  void clockChanged() { clock_due_.store(0, std::memory_order_relaxed); }

  // Does what can be done now, for about `budget_ns` at most; whether there was anything. Returns
  // false at once when another thread is at it.
  bool tryDrive(uint64_t budget_ns);

  // A change that sleepers may be waiting for: a transfer ended, a message came.
  void changed();
  // Drives or sleeps until `done` says so or the deadline passes; its last answer.
  bool waitUntil(const std::function<bool()>& done, base::Deadline deadline);

  // Readable after changed(); made at the first call.
  Result<int> changeFd();

  bool hasThread() const { return thread_.joinable(); }

 private:
  void run();
  bool drive(uint64_t budget_ns);
  bool drainQueue(uint64_t until_ns);
  // Sleeps until an engine, a timer, or wake(). Called with the token held, which it gives back.
  void sleepArmed(std::unique_lock<std::mutex>& token, base::Deadline deadline);
  void refreshPoll();

  const std::string name_;
  const Clockwork clockwork_;
  std::array<std::atomic<Backend*>, kMaxBackends> backends_{};
  std::atomic<size_t> backend_count_{0};

  std::mutex token_;
  std::atomic<uint64_t> last_poll_ns_{0};
  std::atomic<uint64_t> clock_due_{0};
  std::atomic<bool> sleeping_{false};  // in epoll: wake() must ring
  std::atomic<bool> standing_back_{false};  // in run(), for somebody who polls
  std::atomic<bool> stopping_{false};

  base::Mutex queue_mu_;
  WorkQueue<Transfer> queue_ NIXL_GUARDED_BY(queue_mu_);
  std::atomic<size_t> queued_{0};

  base::Mutex wait_mu_;
  base::CondVar wait_cv_;
  std::atomic<uint64_t> changes_{0};
  std::atomic<int> waiters_{0};
  std::atomic<bool> fd_wanted_{false};
  std::unique_ptr<base::EventFd> change_fd_;

  std::unique_ptr<base::EventFd> doorbell_;
  base::Fd epoll_;
  size_t polled_ = 0;  // backends whose descriptors are in epoll_; by the token's holder
  std::thread thread_;
};

}  // namespace nixl::core
