// metadata/store.h - a place where agents leave what others look for: keys, values, changes.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace nixl::metadata {

// What a store can do. Callers ask here, never for a store's kind.
struct StoreFacts {
  std::string name = {};        // "memory", "directory"
  bool watch = false;           // tells of changes as they happen; else watch() asks now and then
  bool lease = false;           // forgets keys of those that no longer keep them alive
  bool transaction = false;     // several keys at once or not at all
  bool between_processes = false;
  uint64_t largest_value = 0;   // bytes
  uint64_t largest_key = 0;     // bytes
};

using LeaseId = uint64_t;  // 0: none
using WatchId = uint64_t;

// Every change of a store has a number greater than those before: its revision. An entry's is that
// of its last change. 0 stands for "not there".
struct StoreEntry {
  std::string key = {};
  std::string value = {};
  uint64_t revision = 0;

  bool operator==(const StoreEntry&) const = default;
};

struct StorePage {
  std::vector<StoreEntry> entries = {};  // by key
  std::string next = {};   // for list(), to go on; empty after the last page
  uint64_t revision = 0;   // of the store: a watch from that of the first page misses nothing
};

struct StoreChange {
  bool erased = false;     // by erase(), or because its lease ended: the value is empty
  StoreEntry entry = {};

  bool operator==(const StoreChange&) const = default;
};

// All or nothing: when every key of `compare` is at its revision (0: is not there).
struct StoreTransaction {
  struct Compare {
    std::string key;
    uint64_t revision;
  };
  struct Put {
    std::string key;
    std::string value;
    LeaseId lease = 0;
  };
  std::vector<Compare> compare = {};
  std::vector<Put> puts = {};
  std::vector<std::string> erases = {};  // of keys that are not there: nothing
};

// Keys and values are any bytes; keys are not empty.
//
// Threads:   any, for every method; none of them waits. Callbacks run one after the other on the
//            store's own thread with no lock held, and may call the store, but not destroy it.
// Order:     calls take effect in the order in which they were made through this object.
// Errors:    reach the callback. NOT_FOUND: no such key or lease. MISMATCH: another revision than
//            expected. TIMEOUT: the deadline passed; a change may have been made all the same, if
//            its deadline passed while it was. LIMIT: too large.
// Lifetime:  every callback is called exactly once, those of what is left at destruction with
//            CANCELED, before the destructor returns. In a child after fork() calls fail at once.
class Store {
 public:
  template <typename T>
  using Callback = std::function<void(Result<T>)>;
  using Revision = uint64_t;

  virtual ~Store() = default;
  virtual StoreFacts facts() const = 0;

  struct PutOptions {
    LeaseId lease = 0;
    std::optional<Revision> expected = {};
  };
  virtual void put(std::string key, std::string value, PutOptions options, base::Deadline deadline,
                   Callback<Revision> done) = 0;
  virtual void get(std::string key, base::Deadline deadline, Callback<StoreEntry> done) = 0;

  // NOT_FOUND when it is not there.
  virtual void erase(std::string key, base::Deadline deadline, Callback<Revision> done) = 0;

  // At most `limit` entries whose keys begin with `prefix`; `page` is StorePage::next, or empty.
  virtual void list(std::string prefix, std::string page, size_t limit, base::Deadline deadline,
                    Callback<StorePage> done) = 0;
  virtual void transact(StoreTransaction transaction, base::Deadline deadline,
                        Callback<Revision> done) = 0;

  // A lease ends `time_to_live` after it was made or last kept alive; its keys end with it.
  virtual void lease(std::chrono::milliseconds time_to_live, base::Deadline deadline,
                     Callback<LeaseId> done) = 0;
  virtual void keepAlive(LeaseId lease, base::Deadline deadline, Callback<LeaseId> done) = 0;
  virtual void endLease(LeaseId lease, base::Deadline deadline, Callback<LeaseId> done) = 0;

  // Calls back with changes after revision `from` of keys that begin with `prefix`, in their order,
  // as long as it is watched. Changes of one key in quick succession may come as the last of them.
  // From 0: begins with all there is. An error ends the watch; NOT_FOUND means that `from` is so
  // old that erased keys are forgotten: list again.
  virtual WatchId watch(std::string prefix, Revision from,
                        Callback<std::vector<StoreChange>> on_changes) = 0;

  // No call back after it returns, unless it is called from the watch's own callback, which then is
  // the last. Waits for a callback that runs.
  virtual void unwatch(WatchId watch) = 0;
};

// "memory:NAME": shared by name within this process. "dir:PATH": a directory that processes of one
// host share, made when it is not there.
Result<std::unique_ptr<Store>> openStore(std::string_view uri);

}  // namespace nixl::metadata
