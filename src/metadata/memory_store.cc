#include "metadata/memory_store.h"

#include <algorithm>
#include <list>
#include <map>
#include <set>
#include <utility>

#include "base/fd.h"
#include "base/mutex.h"
#include "metadata/queued_store.h"

namespace nixl::metadata {

namespace {

using base::Deadline;
using std::chrono::milliseconds;

constexpr size_t kTombstones = 10'000;  // erased keys that watches can still be told of

// What stores of one name share. Its lock is a leaf.
struct Space {
  struct Item {
    std::string value;
    uint64_t revision;
    LeaseId lease;
  };
  struct Lease {
    milliseconds time_to_live;
    Deadline ends = Deadline::never();
  };

  base::Mutex mu;
  std::map<std::string, Item> items NIXL_GUARDED_BY(mu);
  std::map<std::string, uint64_t> erased NIXL_GUARDED_BY(mu);        // key to revision
  std::set<std::pair<uint64_t, std::string>> erased_in_order NIXL_GUARDED_BY(mu);
  std::map<LeaseId, Lease> leases NIXL_GUARDED_BY(mu);
  uint64_t revision NIXL_GUARDED_BY(mu) = 0;
  uint64_t forgotten NIXL_GUARDED_BY(mu) = 0;  // erased keys up to this revision are
  LeaseId next_lease NIXL_GUARDED_BY(mu) = 1;
  std::list<const base::EventFd*> open NIXL_GUARDED_BY(mu);  // stores, to be told of changes

  void changed() NIXL_REQUIRES(mu) {
    for (const base::EventFd* store : open) store->signal();
  }

  void eraseAt(const std::string& key, uint64_t at) NIXL_REQUIRES(mu) {
    items.erase(key);
    erased[key] = at;
    erased_in_order.emplace(at, key);
    if (erased.size() <= kTombstones) return;
    forgotten = erased_in_order.begin()->first;
    forgetErased(erased_in_order.begin()->second);
  }

  // A copy: callers pass what is about to go.
  void forgetErased(std::string key) NIXL_REQUIRES(mu) {
    auto found = erased.find(key);
    if (found == erased.end()) return;
    erased_in_order.erase({found->second, key});
    erased.erase(found);
  }

  // Takes away what leases that are over have left.
  void sweep() NIXL_REQUIRES(mu) {
    std::vector<LeaseId> over;
    for (auto& [id, lease] : leases)
      if (lease.ends.expired()) over.push_back(id);
    for (LeaseId id : over) end(id);
  }

  void end(LeaseId id) NIXL_REQUIRES(mu) {
    leases.erase(id);
    std::vector<std::string> keys;
    for (auto& [key, item] : items)
      if (item.lease == id) keys.push_back(key);
    if (keys.empty()) return;
    ++revision;
    for (const std::string& key : keys) eraseAt(key, revision);
    changed();
  }
};

std::shared_ptr<Space> spaceOf(const std::string& name) {
  static auto& mu = *new base::Mutex;
  static auto& spaces = *new std::map<std::string, std::weak_ptr<Space>>;
  base::MutexLock lock(mu);
  std::erase_if(spaces, [](const auto& each) { return each.second.expired(); });
  std::shared_ptr<Space> space = spaces[name].lock();
  if (!space) spaces[name] = space = std::make_shared<Space>();
  return space;
}

class MemoryEngine final : public StoreEngine {
 public:
  MemoryEngine(std::shared_ptr<Space> space, base::EventFd changed)
      : space_(std::move(space)), changed_(std::move(changed)) {
    base::MutexLock lock(space_->mu);
    space_->open.push_back(&changed_);
  }
  ~MemoryEngine() override {
    base::MutexLock lock(space_->mu);
    space_->open.remove(&changed_);
  }

  StoreFacts facts() const override {
    return {.name = "memory",
            .watch = true,
            .lease = true,
            .transaction = true,
            .between_processes = false,
            .largest_value = uint64_t{1} << 30,
            .largest_key = 64 << 10};
  }

  Result<uint64_t> apply(const StoreTransaction& transaction, Deadline) override {
    base::MutexLock lock(space_->mu);
    space_->sweep();
    for (const auto& compare : transaction.compare) {
      auto found = space_->items.find(compare.key);
      uint64_t revision = found == space_->items.end() ? 0 : found->second.revision;
      if (revision != compare.revision)
        return {Errc::MISMATCH, "\"" + compare.key + "\" is at revision " +
                                    std::to_string(revision) + ", not at " +
                                    std::to_string(compare.revision)};
    }
    for (const auto& put : transaction.puts)
      if (put.lease != 0 && !space_->leases.contains(put.lease))
        return {Errc::NOT_FOUND, "put \"" + put.key + "\": its lease is over"};
    uint64_t revision = ++space_->revision;
    for (const auto& put : transaction.puts) {
      space_->items[put.key] = {put.value, revision, put.lease};
      space_->forgetErased(put.key);
    }
    for (const std::string& key : transaction.erases)
      if (space_->items.contains(key)) space_->eraseAt(key, revision);
    space_->changed();
    return revision;
  }

  Result<StoreEntry> get(const std::string& key, Deadline) override {
    base::MutexLock lock(space_->mu);
    space_->sweep();
    auto found = space_->items.find(key);
    if (found == space_->items.end()) return {Errc::NOT_FOUND, "no key \"" + key + "\""};
    return StoreEntry{key, found->second.value, found->second.revision};
  }

  Result<StorePage> list(const std::string& prefix, const std::string& after, size_t limit,
                         Deadline) override {
    base::MutexLock lock(space_->mu);
    space_->sweep();
    StorePage page;
    page.revision = space_->revision;
    auto next = after.empty() ? space_->items.lower_bound(prefix)
                              : space_->items.upper_bound(std::max(after, prefix));
    for (; next != space_->items.end() && next->first.starts_with(prefix); ++next) {
      if (page.entries.size() == limit) {
        page.next = page.entries.back().key;
        break;
      }
      page.entries.push_back({next->first, next->second.value, next->second.revision});
    }
    return page;
  }

  Result<LeaseId> lease(milliseconds time_to_live, Deadline) override {
    base::MutexLock lock(space_->mu);
    LeaseId id = space_->next_lease++;
    space_->leases[id] = {time_to_live, Deadline::after(time_to_live)};
    space_->changed();  // another time to look
    return id;
  }

  Status keepAlive(LeaseId id, Deadline) override {
    base::MutexLock lock(space_->mu);
    space_->sweep();
    auto found = space_->leases.find(id);
    if (found == space_->leases.end()) return {Errc::NOT_FOUND, "the lease is over"};
    found->second.ends = Deadline::after(found->second.time_to_live);
    return {};
  }

  Status endLease(LeaseId id, Deadline) override {
    base::MutexLock lock(space_->mu);
    space_->sweep();
    if (!space_->leases.contains(id)) return {Errc::NOT_FOUND, "the lease is over"};
    space_->end(id);
    return {};
  }

  Result<Changes> changesAfter(uint64_t revision, const std::string& prefix, Deadline) override {
    base::MutexLock lock(space_->mu);
    space_->sweep();
    if (revision != 0 && revision < space_->forgotten)
      return {Errc::NOT_FOUND,
              "changes after revision " + std::to_string(revision) +
                  " are forgotten; list again, and watch from there"};
    Changes found;
    found.revision = space_->revision;
    if (revision == space_->revision) return found;
    for (auto item = space_->items.lower_bound(prefix);
         item != space_->items.end() && item->first.starts_with(prefix); ++item)
      if (item->second.revision > revision)
        found.changes.push_back({false, {item->first, item->second.value, item->second.revision}});
    if (revision != 0)
      for (auto gone = space_->erased.lower_bound(prefix);
           gone != space_->erased.end() && gone->first.starts_with(prefix); ++gone)
        if (gone->second > revision)
          found.changes.push_back({true, {gone->first, "", gone->second}});
    std::stable_sort(found.changes.begin(), found.changes.end(), [](const auto& a, const auto& b) {
      return a.entry.revision < b.entry.revision;
    });
    return found;
  }

  int changedFd() const override { return changed_.fd(); }
  void rest() override { changed_.drain(); }

  Deadline nextLook() override {
    base::MutexLock lock(space_->mu);
    Deadline next = Deadline::never();
    for (auto& [id, lease] : space_->leases) next = std::min(next, lease.ends);
    return next;
  }

 private:
  const std::shared_ptr<Space> space_;
  const base::EventFd changed_;
};

}  // namespace

Result<std::unique_ptr<Store>> openMemoryStore(const std::string& name) {
  NIXL_ASSIGN_OR_RETURN(base::EventFd changed, base::EventFd::create());
  return QueuedStore::start(std::make_unique<MemoryEngine>(spaceOf(name), std::move(changed)));
}

}  // namespace nixl::metadata
