#include "core/progress.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "core/transfer.h"

namespace nixl::core {
namespace {

constexpr uint64_t kUs = 1000, kMs = 1000 * kUs;
constexpr uint64_t kPollGrace = 50 * kUs;     // who polled so recently will poll again
constexpr uint64_t kLongestGrace = 1 * kMs;   // while somebody polls without a pause
constexpr uint64_t kThreadBudget = 200 * kUs;  // then the token is offered to others
constexpr uint64_t kWaitSpin = 20 * kUs;      // a waiting user drives so long before sleeping

}  // namespace

Progress::Progress(std::string name, Clockwork clockwork)
    : name_(std::move(name)), clockwork_(std::move(clockwork)) {}

Progress::~Progress() { stop(); }

Status Progress::start(bool with_thread) {
  auto doorbell = base::EventFd::create();
  if (!doorbell.has_value()) return std::move(doorbell).error().within("start progress");
  doorbell_ = std::make_unique<base::EventFd>(*std::move(doorbell));
  epoll_ = base::Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return base::errnoStatus("start progress: epoll_create1", errno);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = doorbell_->fd();
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, doorbell_->fd(), &event);
  if (!with_thread) return {};
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    return Status(Errc::LIMIT, fmt::format("start the progress thread: {}", error.what()));
  }
  return {};
}

void Progress::stop() {
  if (thread_.joinable()) {
    stopping_.store(true);
    doorbell_->signal();
    thread_.join();
  }
  // What still waits refers to engines, which go next.
  std::vector<std::shared_ptr<Transfer>> left;
  {
    base::MutexLock lock(queue_mu_);
    left = queue_.takeAll();
    queued_.store(0, std::memory_order_release);
  }
  // Who sleeps on a duplicate of the descriptor learns that nothing will come any more.
  if (fd_wanted_.load(std::memory_order_seq_cst)) change_fd_->signal();
}

void Progress::forget() {
  // The thread is the parent's. detach() of it would touch nothing that exists here, but a
  // joinable std::thread may not be destroyed.
  if (thread_.joinable()) thread_.detach();
}

void Progress::add(Backend* backend) {
  const size_t slot = backend_count_.load(std::memory_order_relaxed);
  backends_[slot].store(backend, std::memory_order_release);
  backend_count_.store(slot + 1, std::memory_order_release);
  wake();
}

void Progress::queue(std::shared_ptr<Transfer> transfer) {
  const uint64_t left = transfer->bytesLeft();
  {
    base::MutexLock lock(queue_mu_);
    queue_.push(std::move(transfer), left);
    queued_.store(queue_.size(), std::memory_order_release);
  }
  wake();
}

void Progress::wake() {
  if (sleeping_.load(std::memory_order_seq_cst)) doorbell_->signal();
}

void Progress::handOver() {
  last_poll_ns_.store(0, std::memory_order_seq_cst);
  if (standing_back_.load(std::memory_order_seq_cst)) doorbell_->signal();
  wake();
}

bool Progress::tryDrive(uint64_t budget_ns) {
  std::unique_lock<std::mutex> token(token_, std::try_to_lock);
  last_poll_ns_.store(base::nowNs(), std::memory_order_relaxed);
  if (!token) return false;
  const bool worked = drive(budget_ns);
  // What was started here may need more than this thread comes back for, and an engine's
  // descriptors tell only of what arrives: the thread that sleeps on them looks again.
  if (worked) wake();
  return worked;
}

bool Progress::drainQueue(uint64_t until_ns) {
  bool worked = false;
  while (queued_.load(std::memory_order_acquire) != 0) {
    WorkQueue<Transfer>::Item item;
    {
      base::MutexLock lock(queue_mu_);
      if (queue_.empty()) break;
      item = queue_.take();
      queued_.store(queue_.size(), std::memory_order_release);
    }
    worked = true;
    const bool all = item.work->drive(until_ns);
    if (!all) {
      const uint64_t left = item.work->bytesLeft();
      base::MutexLock lock(queue_mu_);
      queue_.putBack(std::move(item), left);
      queued_.store(queue_.size(), std::memory_order_release);
    }
    if (base::nowNs() >= until_ns) break;
  }
  return worked;
}

bool Progress::drive(uint64_t budget_ns) {
  bool worked = false;
  const size_t count = backend_count_.load(std::memory_order_acquire);
  for (size_t i = 0; i < count; ++i)
    worked |= backends_[i].load(std::memory_order_acquire)->engine->progress(budget_ns) > 0;
  if (queued_.load(std::memory_order_acquire) != 0)
    worked |= drainQueue(base::nowNs() + budget_ns);
  const uint64_t due = clock_due_.load(std::memory_order_relaxed);
  if (due != UINT64_MAX) {
    const uint64_t now = base::nowNs();
    if (now >= due) {
      // What changes while the clockwork looks must not be overwritten by what it saw.
      uint64_t unchanged = UINT64_MAX;
      clock_due_.store(unchanged, std::memory_order_relaxed);
      clock_due_.compare_exchange_strong(unchanged, clockwork_(now), std::memory_order_relaxed);
    }
  }
  return worked;
}

void Progress::refreshPoll() {
  const size_t count = backend_count_.load(std::memory_order_acquire);
  for (; polled_ < count; ++polled_)
    for (int fd : backends_[polled_].load()->engine->waitFds()) {
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.fd = fd;
      if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
        NIXL_LOG_ERROR("agent \"{}\": cannot wait for descriptor {} of backend {}: {}", name_, fd,
                       backends_[polled_].load()->name, base::errnoText(errno));
    }
}

void Progress::sleepArmed(std::unique_lock<std::mutex>& token, base::Deadline deadline) {
  refreshPoll();
  sleeping_.store(true, std::memory_order_seq_cst);
  uint64_t until = std::min(deadline.ns(), clock_due_.load(std::memory_order_relaxed));
  bool busy = queued_.load(std::memory_order_seq_cst) != 0 || stopping_.load();
  const size_t count = backend_count_.load(std::memory_order_acquire);
  busy |= polled_ != count;
  for (size_t i = 0; i < count && !busy; ++i) {
    plugin::Engine& engine = *backends_[i].load()->engine;
    busy = engine.arm() != 0;
    until = std::min(until, engine.nextTimer());
  }
  token.unlock();
  if (!busy) {
    epoll_event events[8];
    epoll_wait(epoll_.get(), events, 8, base::Deadline::atNs(until).remainingMs());
  }
  sleeping_.store(false, std::memory_order_seq_cst);
  doorbell_->drain();
}

void Progress::run() {
  pthread_setname_np(pthread_self(), "nixl-progress");
  prctl(PR_SET_TIMERSLACK, 1000);  // ns: a grace of 50 us should not take 100
  // Signals are the program's business, never this thread's.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);

  uint64_t grace = kPollGrace;
  while (!stopping_.load(std::memory_order_relaxed)) {
    const uint64_t now = base::nowNs();
    const uint64_t polled = last_poll_ns_.load(std::memory_order_relaxed);
    if (now < polled + grace) {
      // Somebody polls, and moves the data sooner than this thread would. Or says that it is over.
      timespec pause{};
      pause.tv_nsec = static_cast<long>(polled + grace - now);
      pollfd bell{doorbell_->fd(), POLLIN, 0};
      standing_back_.store(true, std::memory_order_seq_cst);
      if (last_poll_ns_.load(std::memory_order_seq_cst) != 0) ppoll(&bell, 1, &pause, nullptr);
      standing_back_.store(false, std::memory_order_seq_cst);
      doorbell_->drain();
      grace = std::min(grace * 2, kLongestGrace);
      continue;
    }
    grace = kPollGrace;
    std::unique_lock<std::mutex> token(token_);
    if (drive(kThreadBudget)) continue;
    sleepArmed(token, base::Deadline::never());
  }
}

void Progress::changed() {
  changes_.fetch_add(1, std::memory_order_seq_cst);
  if (waiters_.load(std::memory_order_seq_cst) != 0) {
    base::MutexLock lock(wait_mu_);
    wait_cv_.notifyAll();
  }
  if (fd_wanted_.load(std::memory_order_seq_cst)) change_fd_->signal();
}

bool Progress::waitUntil(const std::function<bool()>& done, base::Deadline deadline) {
  const uint64_t spin_until = base::nowNs() + kWaitSpin;
  while (true) {
    const uint64_t seen = changes_.load(std::memory_order_seq_cst);
    tryDrive(kThreadBudget);
    if (done()) return true;
    if (deadline.expired()) return false;
    if (base::nowNs() < spin_until) continue;
    if (hasThread()) {
      handOver();
      waiters_.fetch_add(1, std::memory_order_seq_cst);
      {
        base::MutexLock lock(wait_mu_);
        if (changes_.load(std::memory_order_seq_cst) == seen) {
          // Bounded, so that a condition nobody announces is still seen.
          const auto slice = base::Deadline::after(std::chrono::milliseconds(100));
          wait_cv_.waitUntil(wait_mu_, std::min(slice, deadline));
        }
      }
      waiters_.fetch_sub(1, std::memory_order_seq_cst);
    } else {
      std::unique_lock<std::mutex> token(token_, std::try_to_lock);
      if (!token) {
        timespec pause{0, 50'000};
        nanosleep(&pause, nullptr);
        continue;
      }
      if (!drive(kThreadBudget)) {
        const auto slice = base::Deadline::after(std::chrono::milliseconds(100));
        if (done()) return true;
        sleepArmed(token, std::min(slice, deadline));
      }
    }
  }
}

Result<int> Progress::changeFd() {
  base::MutexLock lock(wait_mu_);
  if (!change_fd_) {
    auto fd = base::EventFd::create();
    if (!fd.has_value()) return std::move(fd).error();
    change_fd_ = std::make_unique<base::EventFd>(*std::move(fd));
    fd_wanted_.store(true, std::memory_order_seq_cst);
  }
  return change_fd_->fd();
}

}  // namespace nixl::core
