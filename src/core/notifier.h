// core/notifier.h - messages and events that wait to be fetched.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "metadata/wire.h"
#include "nixl/agent.h"

namespace nixl::core {

// Frames what this agent sends, and keeps what it received. Within one sender's incarnation a
// message is accepted at most once and never after a later one.
//
// Threads: any; one lock, a leaf.
class Notifier {
 public:
  Notifier(std::string agent, metadata::Incarnation incarnation, uint64_t limit_bytes)
      : agent_(std::move(agent)), incarnation_(incarnation), limit_(limit_bytes) {}

  // The bytes to be handed to an engine, with the next number of the sequence to `peer`.
  std::string frame(uint8_t kind, const std::string& peer, std::string_view payload);

  // Takes what an engine received.
  enum class Received { NOTHING, NEWS, CONTROL };  // NEWS: for the user; CONTROL: for the agent
  Received receive(const metadata::EnvelopeView& envelope);
  void add(Event event);

  bool empty() const { return waiting_.load(std::memory_order_acquire) == 0; }
  std::vector<Notification> take();
  std::vector<Event> takeEvents();

 private:
  static constexpr size_t kMaxEvents = 1024;
  static constexpr size_t kMaxSenders = 65536;

  void push(Event event) NIXL_REQUIRES(mu_);

  const std::string agent_;
  const metadata::Incarnation incarnation_;
  const uint64_t limit_;  // bytes of unread messages

  std::atomic<uint64_t> waiting_{0};
  base::Mutex mu_;
  std::map<std::string, uint64_t> sent_ NIXL_GUARDED_BY(mu_);                // by peer
  std::map<metadata::Incarnation, uint64_t> received_ NIXL_GUARDED_BY(mu_);  // last number
  std::vector<Notification> messages_ NIXL_GUARDED_BY(mu_);
  uint64_t bytes_ NIXL_GUARDED_BY(mu_) = 0;
  uint64_t lost_ NIXL_GUARDED_BY(mu_) = 0;
  std::deque<Event> events_ NIXL_GUARDED_BY(mu_);
};

}  // namespace nixl::core
