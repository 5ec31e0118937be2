// metadata/queued_store.h - makes an asynchronous store of one that works at once.
#pragma once

#include <deque>
#include <map>
#include <thread>

#include "base/fd.h"
#include "base/mutex.h"
#include "metadata/store.h"

namespace nixl::metadata {

// A store that does what it is asked to before it returns. One thread at a time. Errors and limits
// as in Store.
class StoreEngine {
 public:
  struct Changes {
    std::vector<StoreChange> changes;
    uint64_t revision = 0;  // up to which they are told
  };

  virtual ~StoreEngine() = default;
  virtual StoreFacts facts() const = 0;
  virtual Result<uint64_t> apply(const StoreTransaction& transaction, base::Deadline deadline) = 0;
  virtual Result<StoreEntry> get(const std::string& key, base::Deadline deadline) = 0;
  virtual Result<StorePage> list(const std::string& prefix, const std::string& after, size_t limit,
                                 base::Deadline deadline) = 0;
  virtual Result<LeaseId> lease(std::chrono::milliseconds time_to_live,
                                base::Deadline deadline) = 0;
  virtual Status keepAlive(LeaseId lease, base::Deadline deadline) = 0;
  virtual Status endLease(LeaseId lease, base::Deadline deadline) = 0;
  virtual Result<Changes> changesAfter(uint64_t revision, const std::string& prefix,
                                       base::Deadline deadline) = 0;

  // From any thread: what waits in one of the above returns soon. Nothing else is called then.
  virtual void interrupt() {}

  // While there are watches. Readable when there may be changes; rest() makes it unreadable again.
  virtual int changedFd() const = 0;
  virtual void rest() = 0;

  // When to look for changes even if the descriptor says nothing: a lease ends, for example.
  virtual base::Deadline nextLook() = 0;
};

class QueuedStore final : public Store {
 public:
  static Result<std::unique_ptr<Store>> start(std::unique_ptr<StoreEngine> engine);
  ~QueuedStore() override;

  StoreFacts facts() const override { return facts_; }
  void put(std::string key, std::string value, PutOptions options, base::Deadline deadline,
           Callback<Revision> done) override;
  void get(std::string key, base::Deadline deadline, Callback<StoreEntry> done) override;
  void erase(std::string key, base::Deadline deadline, Callback<Revision> done) override;
  void list(std::string prefix, std::string page, size_t limit, base::Deadline deadline,
            Callback<StorePage> done) override;
  void transact(StoreTransaction transaction, base::Deadline deadline,
                Callback<Revision> done) override;
  void lease(std::chrono::milliseconds time_to_live, base::Deadline deadline,
             Callback<LeaseId> done) override;
  void keepAlive(LeaseId lease, base::Deadline deadline, Callback<LeaseId> done) override;
  void endLease(LeaseId lease, base::Deadline deadline, Callback<LeaseId> done) override;
  WatchId watch(std::string prefix, Revision from,
                Callback<std::vector<StoreChange>> on_changes) override;
  void unwatch(WatchId watch) override;

 private:
  // Runs with OK, or with the reason why it must not do its work.
  using Task = std::function<void(const Status&)>;
  struct Queued {
    base::Deadline deadline;
    Task task;
  };
  struct Watch {
    std::string prefix;
    Revision revision;
    std::shared_ptr<Callback<std::vector<StoreChange>>> on_changes;
  };

  QueuedStore(std::unique_ptr<StoreEngine> engine, base::EventFd wake);
  template <typename T, typename Work>
  void enqueue(base::Deadline deadline, Callback<T> done, Work work);
  Status checkKey(const std::string& key) const;
  Status check(const StoreTransaction& transaction) const;
  void run();
  void lookForChanges();
  void tell(WatchId id, Result<std::vector<StoreChange>> changes);

  std::unique_ptr<StoreEngine> engine_;  // used by the thread only
  const StoreFacts facts_;
  const base::EventFd wake_;
  const uint64_t born_;

  base::Mutex mu_;  // a leaf
  base::CondVar told_;
  bool stopping_ NIXL_GUARDED_BY(mu_) = false;
  bool look_ NIXL_GUARDED_BY(mu_) = false;  // for changes: there is a new watch
  std::deque<Queued> queue_ NIXL_GUARDED_BY(mu_);
  std::map<WatchId, Watch> watches_ NIXL_GUARDED_BY(mu_);
  WatchId next_watch_ NIXL_GUARDED_BY(mu_) = 1;
  WatchId telling_ NIXL_GUARDED_BY(mu_) = 0;  // whose callback runs

  std::thread thread_;  // last: it uses the others
};

}  // namespace nixl::metadata
