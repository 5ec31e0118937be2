// metadata/store_suite.h - what every store must do. A test names its store, and gets the cases.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "metadata/store.h"

namespace nixl::metadata {

struct StoreUnderTest {
  std::string name;
  std::function<std::string()> fresh_uri;  // of a store that holds nothing
};

// One case's stores, with calls that wait.
class StoreCase : public testing::Test {
 public:
  using Revision = Store::Revision;

  explicit StoreCase(const StoreUnderTest& under_test) : uri_(under_test.fresh_uri()) {
    store_ = another();
  }

  std::unique_ptr<Store> another() {
    Result<std::unique_ptr<Store>> opened = openStore(uri_);
    EXPECT_TRUE(opened.has_value()) << opened.status().message();
    return opened.has_value() ? *std::move(opened) : nullptr;
  }
  Store& store() { return *store_; }
  void close() { store_.reset(); }

  static base::Deadline soon() { return base::Deadline::after(std::chrono::seconds(20)); }

  // A callback whose result can be waited for.
  template <typename T>
  class Answer {
   public:
    Store::Callback<T> callback() {
      return [state = state_](Result<T> result) {
        base::MutexLock lock(state->mu);
        state->results.push_back(std::move(result));
        state->changed.notifyAll();
      };
    }
    Result<T> next() {
      base::Deadline deadline = soon();
      base::MutexLock lock(state_->mu);
      while (state_->results.empty())
        if (!state_->changed.waitUntil(state_->mu, deadline))
          return {Errc::STALLED, "the store does not call back"};
      Result<T> result = std::move(state_->results.front());
      state_->results.pop_front();
      return result;
    }

   private:
    struct State {
      base::Mutex mu;
      base::CondVar changed;
      std::deque<Result<T>> results NIXL_GUARDED_BY(mu);
    };
    std::shared_ptr<State> state_ = std::make_shared<State>();
  };

  Result<Revision> put(std::string key, std::string value, Store::PutOptions options = {}) {
    Answer<Revision> answer;
    store().put(std::move(key), std::move(value), options, soon(), answer.callback());
    return answer.next();
  }
  Result<Revision> erase(std::string key) {
    Answer<Revision> answer;
    store().erase(std::move(key), soon(), answer.callback());
    return answer.next();
  }
  Result<StoreEntry> get(std::string key) { return get(store(), std::move(key)); }
  Result<StoreEntry> get(Store& from, std::string key) {
    Answer<StoreEntry> answer;
    from.get(std::move(key), soon(), answer.callback());
    return answer.next();
  }
  std::string valueOf(std::string key) {
    Result<StoreEntry> entry = get(std::move(key));
    return entry.has_value() ? entry->value : "no: " + std::string(errcName(entry.error().code()));
  }
  Result<StorePage> list(std::string prefix, std::string page = "", size_t limit = 1000) {
    Answer<StorePage> answer;
    store().list(std::move(prefix), std::move(page), limit, soon(), answer.callback());
    return answer.next();
  }
  std::vector<std::string> keys(std::string prefix) {
    std::vector<std::string> found;
    Result<StorePage> page = list(std::move(prefix));
    EXPECT_TRUE(page.has_value()) << page.status().message();
    if (page.has_value())
      for (const StoreEntry& entry : page->entries) found.push_back(entry.key);
    return found;
  }
  Result<Revision> transact(StoreTransaction transaction) {
    Answer<Revision> answer;
    store().transact(std::move(transaction), soon(), answer.callback());
    return answer.next();
  }
  Result<LeaseId> lease(std::chrono::milliseconds time) {
    Answer<LeaseId> answer;
    store().lease(time, soon(), answer.callback());
    return answer.next();
  }
  Result<LeaseId> keepAlive(LeaseId id) {
    Answer<LeaseId> answer;
    store().keepAlive(id, soon(), answer.callback());
    return answer.next();
  }
  Result<LeaseId> endLease(LeaseId id) {
    Answer<LeaseId> answer;
    store().endLease(id, soon(), answer.callback());
    return answer.next();
  }

  // The last value that a watch told of each key; waits until `key` has `value` ("" is erased).
  using Changes = Answer<std::vector<StoreChange>>;
  static void awaitChange(Changes& changes, const std::string& key, const std::string& value,
                          std::vector<std::string>* seen = nullptr) {
    for (;;) {
      Result<std::vector<StoreChange>> next = changes.next();
      ASSERT_TRUE(next.has_value()) << next.status().message();
      bool found = false;
      for (const StoreChange& change : *next) {
        if (seen != nullptr) seen->push_back(change.entry.key);
        EXPECT_TRUE(!change.erased || change.entry.value.empty());
        found |= change.entry.key == key && change.entry.value == value;
      }
      if (found) return;
    }
  }

 private:
  const std::string uri_;
  std::unique_ptr<Store> store_;
};

namespace store_cases {

using namespace std::string_literals;
using std::chrono::milliseconds;

inline void keepsWhatWasPut(StoreCase& t) {
  EXPECT_EQ(t.valueOf("a"), "no: NOT_FOUND");
  auto first = t.put("a", "1");
  ASSERT_TRUE(first.has_value()) << first.error().message();
  EXPECT_GT(*first, 0u);
  auto second = t.put("b", "2");
  EXPECT_GT(*second, *first);
  auto third = t.put("a", "3");
  EXPECT_GT(*third, *second);
  EXPECT_EQ(*t.get("a"), (StoreEntry{"a", "3", *third}));
  EXPECT_EQ(*t.get("b"), (StoreEntry{"b", "2", *second}));
}

inline void keepsAnyBytes(StoreCase& t) {
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  std::vector<std::string> names = {
      "..", ".", "/", "a/b", "/etc/passwd", "../../x", "a\0b"s, "a", "A", "%", "%2F", "k.a", "~",
      "\xff", "\xc3\xa9t\xc3\xa9", "new", "state", "journal", "l.1", " ", std::string(199, 'n'),
      std::string(2000, 'n'), std::string(2001, 'n'), std::string(300, '/'), all};
  for (const std::string& name : names) {
    auto put = t.put(name, "value of " + name);
    ASSERT_TRUE(put.has_value()) << put.error().message();
  }
  for (const std::string& name : names) EXPECT_EQ(t.valueOf(name), "value of " + name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(t.keys(""), names);
  ASSERT_TRUE(t.put("bytes", all + all).has_value());
  EXPECT_EQ(t.valueOf("bytes"), all + all);
  ASSERT_TRUE(t.put("nothing", "").has_value());
  EXPECT_EQ(t.valueOf("nothing"), "");
}

inline void keepsLargeValues(StoreCase& t) {
  std::string large(16 << 20, '\0');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 31 + i / 977);
  ASSERT_TRUE(t.put("large", large).has_value());
  EXPECT_TRUE(t.valueOf("large") == large);
}

inline void refusesBadKeys(StoreCase& t) {
  EXPECT_EQ(t.put("", "x").status().code(), Errc::INVALID_PARAM);
  EXPECT_EQ(t.get("").status().code(), Errc::INVALID_PARAM);
  std::string long_key(t.store().facts().largest_key + 1, 'k');
  EXPECT_EQ(t.put(long_key, "x").status().code(), Errc::LIMIT);
  long_key.pop_back();
  EXPECT_TRUE(t.put(long_key, "x").has_value());
  EXPECT_EQ(t.valueOf(long_key), "x");
}

inline void erases(StoreCase& t) {
  EXPECT_EQ(t.erase("a").status().code(), Errc::NOT_FOUND);
  auto put = t.put("a", "1");
  auto erased = t.erase("a");
  ASSERT_TRUE(erased.has_value()) << erased.error().message();
  EXPECT_GT(*erased, *put);
  EXPECT_EQ(t.valueOf("a"), "no: NOT_FOUND");
  EXPECT_EQ(t.erase("a").status().code(), Errc::NOT_FOUND);
  EXPECT_GT(*t.put("a", "2"), *erased);
  EXPECT_EQ(t.valueOf("a"), "2");
}

inline void putsOnlyAtTheExpectedRevision(StoreCase& t) {
  auto first = t.put("a", "1", {.expected = 0});
  ASSERT_TRUE(first.has_value()) << first.error().message();
  EXPECT_EQ(t.put("a", "2", {.expected = 0}).status().code(), Errc::MISMATCH);
  EXPECT_EQ(t.put("a", "2", {.expected = *first + 1}).status().code(), Errc::MISMATCH);
  EXPECT_EQ(t.valueOf("a"), "1");
  EXPECT_TRUE(t.put("a", "2", {.expected = *first}).has_value());
  EXPECT_EQ(t.valueOf("a"), "2");
  ASSERT_TRUE(t.erase("a").has_value());
  EXPECT_TRUE(t.put("a", "3", {.expected = 0}).has_value());
}

inline void listsByPrefix(StoreCase& t) {
  for (std::string key : {"x/1", "x/2", "x/20", "x", "y/1", "w", "x0"})
    ASSERT_TRUE(t.put(key, "v").has_value());
  EXPECT_EQ(t.keys("x/"), (std::vector<std::string>{"x/1", "x/2", "x/20"}));
  EXPECT_EQ(t.keys("x/2"), (std::vector<std::string>{"x/2", "x/20"}));
  EXPECT_EQ(t.keys("z"), std::vector<std::string>{});
  EXPECT_EQ(t.keys("").size(), 7u);
  ASSERT_TRUE(t.erase("x/2").has_value());
  EXPECT_EQ(t.keys("x/"), (std::vector<std::string>{"x/1", "x/20"}));
}

inline void listsInPages(StoreCase& t) {
  std::vector<std::string> expected, found;
  for (int i = 100; i < 150; ++i) {
    expected.push_back("p/" + std::to_string(i));
    ASSERT_TRUE(t.put(expected.back(), "v").has_value());
  }
  ASSERT_TRUE(t.put("q", "v").has_value());
  std::string next;
  do {
    auto page = t.list("p/", next, 7);
    ASSERT_TRUE(page.has_value()) << page.error().message();
    EXPECT_LE(page->entries.size(), 7u);
    for (const StoreEntry& entry : page->entries) found.push_back(entry.key);
    next = page->next;
  } while (!next.empty() && found.size() < 100);
  EXPECT_EQ(found, expected);
  EXPECT_EQ(t.list("p/", "", 50)->next, "");
  EXPECT_EQ(t.list("p/", "", 0).status().code(), Errc::INVALID_PARAM);
}

inline void transactsAllOrNothing(StoreCase& t) {
  if (!t.store().facts().transaction) GTEST_SKIP() << "the store has no transactions";
  auto a = t.put("a", "1");
  StoreTransaction change;
  change.compare = {{"a", *a}, {"b", 0}};
  change.puts = {{"b", "2"}, {"c", "3"}};
  change.erases = {"a", "never was"};
  auto done = t.transact(change);
  ASSERT_TRUE(done.has_value()) << done.error().message();
  EXPECT_EQ(t.keys(""), (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(t.get("b")->revision, *done);
  EXPECT_EQ(t.get("c")->revision, *done);
  EXPECT_EQ(t.transact(change).status().code(), Errc::MISMATCH);
  change.compare = {{"b", *done}};
  change.puts = {{"d", "4"}, {"e", "5", LeaseId{12345}}};  // no such lease
  change.erases = {"b"};
  EXPECT_EQ(t.transact(change).status().code(), Errc::NOT_FOUND);
  EXPECT_EQ(t.keys(""), (std::vector<std::string>{"b", "c"}));
}

// Two stores count together; no count is lost.
inline void comparesBetweenStores(StoreCase& t) {
  constexpr int kEach = 100;
  auto count = [&](Store& store) {
    for (int i = 0; i < kEach;) {
      auto entry = t.get(store, "counter");
      uint64_t revision = entry.has_value() ? entry->revision : 0;
      int value = entry.has_value() ? std::stoi(entry->value) : 0;
      StoreCase::Answer<Store::Revision> answer;
      store.put("counter", std::to_string(value + 1), {.expected = revision}, StoreCase::soon(),
                answer.callback());
      auto put = answer.next();
      if (put.has_value()) ++i;
      if (!put.has_value() && put.error().code() != Errc::MISMATCH) {
        ADD_FAILURE() << put.error().message();
        return;
      }
    }
  };
  auto other = t.another();
  std::thread thread([&] { count(*other); });
  count(t.store());
  thread.join();
  EXPECT_EQ(t.valueOf("counter"), std::to_string(2 * kEach));
}

inline void isSharedByItsAddress(StoreCase& t) {
  auto other = t.another();
  ASSERT_TRUE(t.put("a", "1").has_value());
  EXPECT_EQ(t.get(*other, "a")->value, "1");
}

inline void callsHappenInOrder(StoreCase& t) {
  StoreCase::Answer<Store::Revision> puts;
  for (int i = 0; i < 200; ++i)
    t.store().put("a", std::to_string(i), {}, StoreCase::soon(), puts.callback());
  EXPECT_EQ(t.valueOf("a"), "199");
  uint64_t last = 0;
  for (int i = 0; i < 200; ++i) {
    auto revision = puts.next();
    ASSERT_TRUE(revision.has_value());
    EXPECT_GT(*revision, last);
    last = *revision;
  }
}

inline void watchTellsChanges(StoreCase& t) {
  ASSERT_TRUE(t.put("w/before", "0").has_value());
  auto from = t.list("w/")->revision;
  auto other = t.another();
  StoreCase::Changes changes;
  WatchId id = other->watch("w/", from, changes.callback());
  ASSERT_TRUE(t.put("w/a", "1").has_value());
  StoreCase::awaitChange(changes, "w/a", "1");
  ASSERT_TRUE(t.put("x", "not watched").has_value());
  ASSERT_TRUE(t.put("w/a", "2").has_value());
  StoreCase::awaitChange(changes, "w/a", "2");
  ASSERT_TRUE(t.erase("w/before").has_value());
  StoreCase::awaitChange(changes, "w/before", "");
  std::vector<std::string> seen;
  ASSERT_TRUE(t.put("w/end", "3").has_value());
  StoreCase::awaitChange(changes, "w/end", "3", &seen);
  EXPECT_EQ(seen, std::vector<std::string>{"w/end"});
  other->unwatch(id);
}

inline void watchFromZeroBeginsWithAllThereIs(StoreCase& t) {
  for (std::string key : {"w/c", "w/a", "w/b", "x"}) ASSERT_TRUE(t.put(key, "1").has_value());
  ASSERT_TRUE(t.erase("w/b").has_value());
  StoreCase::Changes changes;
  t.store().watch("w/", 0, changes.callback());
  auto first = changes.next();
  ASSERT_TRUE(first.has_value()) << first.error().message();
  std::vector<std::string> keys;
  for (const StoreChange& change : *first) keys.push_back(change.entry.key);
  EXPECT_EQ(keys, (std::vector<std::string>{"w/c", "w/a"}));
}

inline void watchFromAnEarlierRevisionMissesNothing(StoreCase& t) {
  ASSERT_TRUE(t.put("w/a", "1").has_value());
  ASSERT_TRUE(t.put("w/b", "1").has_value());
  auto from = t.list("")->revision;
  ASSERT_TRUE(t.put("w/c", "2").has_value());
  ASSERT_TRUE(t.erase("w/a").has_value());
  StoreCase::Changes changes;
  t.store().watch("w/", from, changes.callback());
  auto first = changes.next();
  ASSERT_TRUE(first.has_value()) << first.error().message();
  ASSERT_EQ(first->size(), 2u);
  EXPECT_EQ((*first)[0].entry.key, "w/c");
  EXPECT_EQ((*first)[1].entry.key, "w/a");
  EXPECT_TRUE((*first)[1].erased);
}

inline void unwatchIsTheEnd(StoreCase& t) {
  auto calls = std::make_shared<std::atomic<int>>(0);
  WatchId id = t.store().watch("", 0, [calls](auto) { ++*calls; });
  ASSERT_TRUE(t.put("a", "1").has_value());
  t.store().unwatch(id);
  int before = *calls;
  ASSERT_TRUE(t.put("a", "2").has_value());
  EXPECT_EQ(t.valueOf("a"), "2");
  EXPECT_EQ(*calls, before);
  EXPECT_EQ(calls.use_count(), 1);
  t.store().unwatch(id);
  t.store().unwatch(987654);
}

inline void callbacksMayCallTheStore(StoreCase& t) {
  StoreCase::Answer<Store::Revision> answer;
  WatchId id = 0;
  base::Mutex mu;
  base::MutexLock lock(mu);
  id = t.store().watch("a", 0, [&](auto changes) {
    if (!changes.has_value()) return;
    base::MutexLock inner(mu);
    t.store().unwatch(id);
    t.store().put("b", "2", {}, StoreCase::soon(), answer.callback());
  });
  lock.unlock();
  ASSERT_TRUE(t.put("a", "1").has_value());
  EXPECT_TRUE(answer.next().has_value());
  EXPECT_EQ(t.valueOf("b"), "2");
  lock.lock();
}

inline void keysEndWithTheirLease(StoreCase& t) {
  if (!t.store().facts().lease) GTEST_SKIP() << "the store has no leases";
  auto id = t.lease(milliseconds(150));
  ASSERT_TRUE(id.has_value()) << id.error().message();
  EXPECT_NE(*id, 0u);
  ASSERT_TRUE(t.put("w/stays", "0").has_value());
  auto from = t.list("")->revision;
  auto other = t.another();
  StoreCase::Changes changes;
  other->watch("w/", from, changes.callback());
  ASSERT_TRUE(t.put("w/a", "1", {.lease = *id}).has_value());
  ASSERT_TRUE(t.put("w/b", "1", {.lease = *id}).has_value());
  std::vector<std::string> erased;
  while (erased.size() < 2) {
    auto next = changes.next();
    ASSERT_TRUE(next.has_value()) << next.error().message();
    for (const StoreChange& change : *next)
      if (change.erased) erased.push_back(change.entry.key);
  }
  std::sort(erased.begin(), erased.end());
  EXPECT_EQ(erased, (std::vector<std::string>{"w/a", "w/b"}));
  EXPECT_EQ(t.valueOf("w/a"), "no: NOT_FOUND");
  EXPECT_EQ(t.keys(""), std::vector<std::string>{"w/stays"});
  EXPECT_EQ(t.keepAlive(*id).status().code(), Errc::NOT_FOUND);
  EXPECT_EQ(t.put("w/c", "1", {.lease = *id}).status().code(), Errc::NOT_FOUND);
  EXPECT_EQ(t.lease(milliseconds(0)).status().code(), Errc::INVALID_PARAM);
}

inline void leasesAreKeptAlive(StoreCase& t) {
  if (!t.store().facts().lease) GTEST_SKIP() << "the store has no leases";
  auto id = t.lease(milliseconds(5000));
  ASSERT_TRUE(t.put("a", "1", {.lease = *id}).has_value());
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(t.keepAlive(*id).has_value());
  EXPECT_EQ(t.valueOf("a"), "1");
  // A put without a lease frees the key from it.
  ASSERT_TRUE(t.put("b", "1", {.lease = *id}).has_value());
  ASSERT_TRUE(t.put("b", "2").has_value());
  EXPECT_TRUE(t.endLease(*id).has_value());
  EXPECT_EQ(t.valueOf("a"), "no: NOT_FOUND");
  EXPECT_EQ(t.valueOf("b"), "2");
  EXPECT_EQ(t.endLease(*id).status().code(), Errc::NOT_FOUND);
}

inline void expiredDeadlinesAreReported(StoreCase& t) {
  StoreCase::Answer<Store::Revision> put;
  t.store().put("a", "1", {}, base::Deadline::after(milliseconds(0)), put.callback());
  EXPECT_EQ(put.next().status().code(), Errc::TIMEOUT);
  EXPECT_EQ(t.valueOf("a"), "no: NOT_FOUND");
}

inline void closingCallsEveryCallbackOnce(StoreCase& t) {
  auto calls = std::make_shared<std::map<int, int>>();  // the store's thread, then this one
  auto watched = std::make_shared<std::vector<Errc>>();
  t.store().watch("", 0, [watched](auto changes) { watched->push_back(changes.status().code()); });
  for (int i = 0; i < 1000; ++i)
    t.store().put("a", "1", {}, StoreCase::soon(), [calls, i](auto result) {
      EXPECT_TRUE(result.has_value() || result.error().code() == Errc::CANCELED);
      ++(*calls)[i];
    });
  t.close();
  EXPECT_EQ(calls->size(), 1000u);
  for (auto [i, n] : *calls) EXPECT_EQ(n, 1) << i;
  ASSERT_FALSE(watched->empty());
  EXPECT_EQ(watched->back(), Errc::CANCELED);
  EXPECT_EQ(calls.use_count(), 1);
}

}  // namespace store_cases

// Call it before main(): const bool registered = registerStoreSuite({...}).
inline bool registerStoreSuite(const StoreUnderTest& under_test) {
  using Body = void (*)(StoreCase&);
  static constexpr std::pair<const char*, Body> kCases[] = {
      {"KeepsWhatWasPut", store_cases::keepsWhatWasPut},
      {"KeepsAnyBytes", store_cases::keepsAnyBytes},
      {"KeepsLargeValues", store_cases::keepsLargeValues},
      {"RefusesBadKeys", store_cases::refusesBadKeys},
      {"Erases", store_cases::erases},
      {"PutsOnlyAtTheExpectedRevision", store_cases::putsOnlyAtTheExpectedRevision},
      {"ListsByPrefix", store_cases::listsByPrefix},
      {"ListsInPages", store_cases::listsInPages},
      {"TransactsAllOrNothing", store_cases::transactsAllOrNothing},
      {"ComparesBetweenStores", store_cases::comparesBetweenStores},
      {"IsSharedByItsAddress", store_cases::isSharedByItsAddress},
      {"CallsHappenInOrder", store_cases::callsHappenInOrder},
      {"WatchTellsChanges", store_cases::watchTellsChanges},
      {"WatchFromZeroBeginsWithAllThereIs", store_cases::watchFromZeroBeginsWithAllThereIs},
      {"WatchFromAnEarlierRevisionMissesNothing",
       store_cases::watchFromAnEarlierRevisionMissesNothing},
      {"UnwatchIsTheEnd", store_cases::unwatchIsTheEnd},
      {"CallbacksMayCallTheStore", store_cases::callbacksMayCallTheStore},
      {"KeysEndWithTheirLease", store_cases::keysEndWithTheirLease},
      {"LeasesAreKeptAlive", store_cases::leasesAreKeptAlive},
      {"ExpiredDeadlinesAreReported", store_cases::expiredDeadlinesAreReported},
      {"ClosingCallsEveryCallbackOnce", store_cases::closingCallsEveryCallbackOnce},
  };
  class Case final : public StoreCase {
   public:
    Case(const StoreUnderTest& store, Body body) : StoreCase(store), body_(body) {}
    void TestBody() override { body_(*this); }

   private:
    Body body_;
  };
  std::string suite = under_test.name + "StoreKeepsToTheRules";
  for (auto [name, body] : kCases)
    testing::RegisterTest(suite.c_str(), name, nullptr, nullptr, __FILE__, __LINE__,
                          [under_test, body = body]() -> StoreCase* {
                            return new Case(under_test, body);
                          });
  return true;
}

}  // namespace nixl::metadata
