// core/handles.h - numbers for objects that users and engines hold on to.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace nixl::core {

// Maps numbers to shared objects. A number is never given twice, so a stale one finds nothing
// instead of somebody else's object: 24 bits of slot, 40 bits that change with each use of it.
//
// Threads: any. The lock is a leaf; objects are destroyed outside of it.
template <typename T>
class HandleTable {
 public:
  // 0 when 16 million handles are alive.
  uint64_t add(std::shared_ptr<T> object) {
    base::WriterLock lock(mu_);
    uint32_t slot;
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else {
      if (slots_.size() > kSlotMask) return 0;
      slot = static_cast<uint32_t>(slots_.size());
      slots_.push_back({});
    }
    slots_[slot].object = std::move(object);
    return ++slots_[slot].uses << kSlotBits | slot;
  }

  std::shared_ptr<T> find(uint64_t handle) const {
    base::ReaderLock lock(mu_);
    const Slot* slot = at(handle);
    return slot ? slot->object : nullptr;
  }

  // Removes and returns it; nullptr when there is none (any more).
  std::shared_ptr<T> take(uint64_t handle) {
    base::WriterLock lock(mu_);
    Slot* slot = const_cast<Slot*>(at(handle));
    if (slot == nullptr) return nullptr;
    free_.push_back(static_cast<uint32_t>(handle & kSlotMask));
    return std::exchange(slot->object, nullptr);
  }

  // All objects for which `wanted` says so; for shutting down and the like.
  template <typename Wanted>
  std::vector<std::pair<uint64_t, std::shared_ptr<T>>> select(Wanted wanted) const {
    std::vector<std::pair<uint64_t, std::shared_ptr<T>>> found;
    base::ReaderLock lock(mu_);
    for (size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].object && wanted(*slots_[i].object))
        found.emplace_back(slots_[i].uses << kSlotBits | i, slots_[i].object);
    return found;
  }

 private:
  static constexpr unsigned kSlotBits = 24;
  static constexpr uint64_t kSlotMask = (1u << kSlotBits) - 1;

  struct Slot {
    std::shared_ptr<T> object;
    uint64_t uses = 0;
  };

  const Slot* at(uint64_t handle) const NIXL_REQUIRES_SHARED(mu_) {
    const uint64_t slot = handle & kSlotMask;
    if (slot >= slots_.size() || slots_[slot].uses != handle >> kSlotBits) return nullptr;
    return slots_[slot].object ? &slots_[slot] : nullptr;
  }

  mutable base::SharedMutex mu_;
  std::vector<Slot> slots_ NIXL_GUARDED_BY(mu_);
  std::vector<uint32_t> free_ NIXL_GUARDED_BY(mu_);
};

}  // namespace nixl::core
