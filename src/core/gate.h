// core/gate.h - "nobody is inside any more": closes something that calls may be using.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

namespace nixl::core {

// Calls enter and leave; close() turns later ones away and waits for those inside. What is done
// inside never blocks, so the wait is short: it yields instead of sleeping.
class Gate {
 public:
  bool enter() {
    if (state_.fetch_add(1, std::memory_order_acquire) & kClosed) {
      leave();
      return false;
    }
    return true;
  }
  void leave() { state_.fetch_sub(1, std::memory_order_release); }

  bool open() const { return !(state_.load(std::memory_order_acquire) & kClosed); }

  // True for the one caller that closed it.
  bool close() {
    const bool first = !(state_.fetch_or(kClosed, std::memory_order_acq_rel) & kClosed);
    while ((state_.load(std::memory_order_acquire) & ~kClosed) != 0) sched_yield();
    return first;
  }

 private:
  static constexpr uint64_t kClosed = 1ull << 63;
  std::atomic<uint64_t> state_{0};
};

// Enters for a scope.
class GatePass {
 public:
  explicit GatePass(Gate* gate) : gate_(gate), inside_(gate == nullptr || gate->enter()) {}
  ~GatePass() {
    if (inside_ && gate_ != nullptr) gate_->leave();
  }
  GatePass(const GatePass&) = delete;
  GatePass& operator=(const GatePass&) = delete;
  explicit operator bool() const { return inside_; }

 private:
  Gate* gate_;
  bool inside_;
};

}  // namespace nixl::core
