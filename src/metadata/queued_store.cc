#include "metadata/queued_store.h"

#include <poll.h>

#include <utility>

#include "base/fork.h"
#include "metadata/quiet_thread.h"

namespace nixl::metadata {

namespace {

using base::Deadline;

constexpr std::chrono::seconds kLookDeadline(5);  // to read changes for watches
constexpr std::chrono::seconds kLookAgain(1);     // after that failed

Status canceled() { return {Errc::CANCELED, "the store was closed"}; }

}  // namespace

QueuedStore::QueuedStore(std::unique_ptr<StoreEngine> engine, base::EventFd wake)
    : engine_(std::move(engine)),
      facts_(engine_->facts()),
      wake_(std::move(wake)),
      born_(base::forkGeneration()) {}

Result<std::unique_ptr<Store>> QueuedStore::start(std::unique_ptr<StoreEngine> engine) {
  NIXL_ASSIGN_OR_RETURN(base::EventFd wake, base::EventFd::create());
  std::unique_ptr<QueuedStore> store(new QueuedStore(std::move(engine), std::move(wake)));
  NIXL_ASSIGN_OR_RETURN(store->thread_,
                        startQuietThread("nixl-store", [s = store.get()] { s->run(); }));
  return std::unique_ptr<Store>(std::move(store));
}

QueuedStore::~QueuedStore() {
  if (base::forkGeneration() != born_) {
    // The thread is in the parent, and may have held any lock of the engine.
    (void)new std::thread(std::move(thread_));
    (void)engine_.release();
    return;
  }
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
  }
  engine_->interrupt();
  wake_.signal();
  if (thread_.joinable()) thread_.join();
}

// Calls `work` on the store's thread, and `done` with what it returns.
template <typename T, typename Work>
void QueuedStore::enqueue(Deadline deadline, Callback<T> done, Work work) {
  auto task = [done = std::move(done), work = std::move(work), deadline](const Status& status) {
    if (status.ok())
      done(work(deadline));
    else
      done(status);
  };
  Status refused;
  if (base::forkGeneration() != born_) {
    refused = Status(Errc::FORKED, "the store belongs to the parent process");
  } else {
    base::MutexLock lock(mu_);
    if (stopping_)
      refused = canceled();
    else
      queue_.push_back({deadline, task});
  }
  if (refused.ok())
    wake_.signal();
  else
    task(refused);
}

Status QueuedStore::checkKey(const std::string& key) const {
  if (key.empty()) return {Errc::INVALID_PARAM, "a key is empty"};
  if (key.size() > facts_.largest_key)
    return {Errc::LIMIT, "a key has " + std::to_string(key.size()) + " bytes; at most " +
                             std::to_string(facts_.largest_key) + " can be stored"};
  return {};
}

Status QueuedStore::check(const StoreTransaction& transaction) const {
  for (const auto& compare : transaction.compare) NIXL_TRY(checkKey(compare.key));
  for (const auto& key : transaction.erases) NIXL_TRY(checkKey(key));
  uint64_t bytes = 0;
  for (const auto& put : transaction.puts) {
    NIXL_TRY(checkKey(put.key));
    bytes += put.value.size();
    if (bytes > facts_.largest_value)
      return {Errc::LIMIT, "put \"" + put.key + "\": there are " + std::to_string(bytes) +
                               " bytes of values; at most " +
                               std::to_string(facts_.largest_value) + " can be stored at once"};
  }
  return {};
}

void QueuedStore::transact(StoreTransaction transaction, Deadline deadline,
                           Callback<Revision> done) {
  enqueue(deadline, std::move(done),
          [this, t = std::move(transaction)](Deadline until) -> Result<Revision> {
            NIXL_TRY(check(t));
            return engine_->apply(t, until);
          });
}

void QueuedStore::put(std::string key, std::string value, PutOptions options, Deadline deadline,
                      Callback<Revision> done) {
  StoreTransaction transaction;
  if (options.expected) transaction.compare.push_back({key, *options.expected});
  transaction.puts.push_back({std::move(key), std::move(value), options.lease});
  transact(std::move(transaction), deadline, std::move(done));
}

void QueuedStore::erase(std::string key, Deadline deadline, Callback<Revision> done) {
  enqueue(deadline, std::move(done),
          [this, key = std::move(key)](Deadline until) -> Result<Revision> {
            NIXL_TRY(checkKey(key));
            // Again when somebody else changes it in between.
            for (;;) {
              NIXL_ASSIGN_OR_RETURN(StoreEntry entry, engine_->get(key, until));
              StoreTransaction transaction;
              transaction.compare.push_back({key, entry.revision});
              transaction.erases.push_back(key);
              Result<Revision> revision = engine_->apply(transaction, until);
              if (revision.has_value() || revision.error().code() != Errc::MISMATCH ||
                  until.expired())
                return revision;
            }
          });
}

void QueuedStore::get(std::string key, Deadline deadline, Callback<StoreEntry> done) {
  enqueue(deadline, std::move(done),
          [this, key = std::move(key)](Deadline until) -> Result<StoreEntry> {
            NIXL_TRY(checkKey(key));
            return engine_->get(key, until);
          });
}

void QueuedStore::list(std::string prefix, std::string page, size_t limit, Deadline deadline,
                       Callback<StorePage> done) {
  enqueue(deadline, std::move(done),
          [this, prefix = std::move(prefix), page = std::move(page),
           limit](Deadline until) -> Result<StorePage> {
            if (limit == 0) return {Errc::INVALID_PARAM, "a page of no entries"};
            return engine_->list(prefix, page, limit, until);
          });
}

void QueuedStore::lease(std::chrono::milliseconds time_to_live, Deadline deadline,
                        Callback<LeaseId> done) {
  enqueue(deadline, std::move(done), [this, time_to_live](Deadline until) -> Result<LeaseId> {
    if (time_to_live.count() <= 0)
      return {Errc::INVALID_PARAM,
              "a lease of " + std::to_string(time_to_live.count()) + " ms"};
    return engine_->lease(time_to_live, until);
  });
}

void QueuedStore::keepAlive(LeaseId lease, Deadline deadline, Callback<LeaseId> done) {
  enqueue(deadline, std::move(done), [this, lease](Deadline until) -> Result<LeaseId> {
    NIXL_TRY(engine_->keepAlive(lease, until));
    return lease;
  });
}

void QueuedStore::endLease(LeaseId lease, Deadline deadline, Callback<LeaseId> done) {
  enqueue(deadline, std::move(done), [this, lease](Deadline until) -> Result<LeaseId> {
    NIXL_TRY(engine_->endLease(lease, until));
    return lease;
  });
}

WatchId QueuedStore::watch(std::string prefix, Revision from,
                           Callback<std::vector<StoreChange>> on_changes) {
  if (base::forkGeneration() != born_) {
    on_changes(Status(Errc::FORKED, "the store belongs to the parent process"));
    return 0;
  }
  base::MutexLock lock(mu_);
  WatchId id = next_watch_++;
  watches_[id] = {std::move(prefix), from,
                  std::make_shared<Callback<std::vector<StoreChange>>>(std::move(on_changes))};
  look_ = true;
  wake_.signal();
  return id;
}

void QueuedStore::unwatch(WatchId watch) {
  if (base::forkGeneration() != born_) return;
  std::shared_ptr<void> callback;  // destroyed without the lock
  base::MutexLock lock(mu_);
  auto found = watches_.find(watch);
  if (found != watches_.end()) {
    callback = found->second.on_changes;
    watches_.erase(found);
  }
  if (std::this_thread::get_id() == thread_.get_id()) return;
  while (telling_ == watch && watch != 0) told_.wait(mu_);
}

void QueuedStore::tell(WatchId id, Result<std::vector<StoreChange>> changes) {
  std::shared_ptr<Callback<std::vector<StoreChange>>> callback;
  {
    base::MutexLock lock(mu_);
    auto found = watches_.find(id);
    if (found == watches_.end()) return;
    callback = found->second.on_changes;
    if (!changes.has_value()) watches_.erase(found);
    telling_ = id;
  }
  (*callback)(std::move(changes));
  callback.reset();
  base::MutexLock lock(mu_);
  telling_ = 0;
  told_.notifyAll();
}

void QueuedStore::lookForChanges() {
  std::vector<std::pair<WatchId, Watch>> watches;
  {
    base::MutexLock lock(mu_);
    look_ = false;
    watches.assign(watches_.begin(), watches_.end());
  }
  engine_->rest();
  for (auto& [id, watch] : watches) {
    Result<StoreEngine::Changes> found =
        engine_->changesAfter(watch.revision, watch.prefix, Deadline::after(kLookDeadline));
    if (!found.has_value()) {
      if (found.error().code() == Errc::TIMEOUT) {
        base::MutexLock lock(mu_);
        look_ = true;  // somebody holds the store's lock for long: look again
      } else {
        tell(id, std::move(found).error());
      }
      continue;
    }
    {
      base::MutexLock lock(mu_);
      auto still = watches_.find(id);
      if (still == watches_.end()) continue;
      still->second.revision = found->revision;
    }
    if (!found->changes.empty()) tell(id, std::move(found->changes));
  }
}

void QueuedStore::run() {
  Deadline look_at = Deadline::never();
  for (;;) {
    bool has_watches, look;
    {
      base::MutexLock lock(mu_);
      if (stopping_) break;
      has_watches = !watches_.empty();
      look_ = look_ && has_watches;
      look = look_;
    }
    if (has_watches && (look || look_at.expired())) {
      lookForChanges();
      look_at = engine_->nextLook();
    }
    std::deque<Queued> tasks;
    Deadline until = has_watches ? look_at : Deadline::never();
    {
      base::MutexLock lock(mu_);
      if (stopping_) break;
      if (!queue_.empty()) {
        tasks.push_back(std::move(queue_.front()));
        queue_.pop_front();
      } else if (look_ && look) {
        until = std::min(until, Deadline::after(kLookAgain));
      } else if (look_) {
        continue;
      }
    }
    if (!tasks.empty()) {
      Queued& queued = tasks.front();
      queued.task(queued.deadline.expired()
                      ? Status(Errc::TIMEOUT, "the deadline passed before the store began")
                      : Status());
    }
    pollfd ready[2] = {{wake_.fd(), POLLIN, 0},
                       {has_watches ? engine_->changedFd() : -1, POLLIN, 0}};
    (void)poll(ready, 2, tasks.empty() ? until.remainingMs() : 0);
    if (ready[0].revents != 0) wake_.drain();
    {
      base::MutexLock lock(mu_);
      if (ready[1].revents != 0) look_ = true;
    }
  }
  std::deque<Queued> left;
  std::vector<WatchId> watches;
  {
    base::MutexLock lock(mu_);
    left.swap(queue_);
    for (auto& [id, watch] : watches_) watches.push_back(id);
  }
  for (Queued& queued : left) queued.task(canceled());
  for (WatchId id : watches) tell(id, canceled());
}

}  // namespace nixl::metadata
