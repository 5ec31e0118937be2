// core/work_queue.h - which of the transfers that have pieces left goes on next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

namespace nixl::core {

// The one with the least left goes first: what is small does not wait for what is large, and of
// many alike the first is done before the last is begun, which halves the mean time that they take.
// So that a stream of small ones keeps nothing waiting for ever, every fourth turn is the oldest's.
//
// Not thread-safe: the owner locks.
template <typename T>
class WorkQueue {
 public:
  struct Item {
    std::shared_ptr<T> work;
    uint64_t left = 0;  // bytes
    uint64_t age = 0;   // of its first push; smaller is older
  };

  bool empty() const { return by_age_.empty(); }
  size_t size() const { return by_age_.size(); }

  void push(std::shared_ptr<T> work, uint64_t left) { put({std::move(work), left, ++last_age_}); }
  // One that was taken and has some left: it keeps its age.
  void putBack(Item item, uint64_t left) {
    item.left = left;
    put(std::move(item));
  }

  // Not when it is empty.
  Item take() {
    const bool oldest = ++turn_ % 4 == 0;
    auto by_age = oldest ? by_age_.begin() : by_age_.find(by_left_.begin()->second);
    Item item = std::move(by_age->second);
    by_left_.erase({item.left, item.age});
    by_age_.erase(by_age);
    return item;
  }

  std::vector<std::shared_ptr<T>> takeAll() {
    std::vector<std::shared_ptr<T>> all;
    for (auto& [age, item] : by_age_) all.push_back(std::move(item.work));
    by_age_.clear();
    by_left_.clear();
    return all;
  }

 private:
  void put(Item item) {
    by_left_.emplace(item.left, item.age);
    by_age_.emplace(item.age, std::move(item));
  }

  std::set<std::pair<uint64_t, uint64_t>> by_left_;  // (left, age)
  std::map<uint64_t, Item> by_age_;
  uint64_t last_age_ = 0, turn_ = 0;
};

}  // namespace nixl::core
