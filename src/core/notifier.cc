#include "core/notifier.h"

#include <fmt/format.h>

#include "base/log.h"

namespace nixl::core {

std::string Notifier::frame(uint8_t kind, const std::string& peer, std::string_view payload) {
  uint64_t sequence;
  {
    base::MutexLock lock(mu_);
    sequence = ++sent_[peer];
  }
  metadata::Envelope envelope;
  envelope.kind = kind;
  envelope.agent = agent_;
  envelope.sender = incarnation_;
  envelope.sequence = sequence;
  envelope.payload = payload;
  return metadata::encodeEnvelope(envelope);
}

Notifier::Received Notifier::receive(const metadata::EnvelopeView& envelope) {
  // Libraries talk beside their users' messages, and repeat nothing that may not come twice.
  if (envelope.kind == metadata::kEnvelopeControl) return Received::CONTROL;
  base::MutexLock lock(mu_);
  if (received_.size() >= kMaxSenders && !received_.contains(envelope.sender)) received_.clear();
  uint64_t& last = received_[envelope.sender];
  if (envelope.sequence <= last) {
    NIXL_LOG_DEBUG("agent \"{}\": message {} of \"{}\" came twice", agent_, envelope.sequence,
                   envelope.agent);
    return Received::NOTHING;
  }
  last = envelope.sequence;
  if (envelope.kind == metadata::kEnvelopeFailure) {
    Event event{};
    event.kind = Event::Kind::REMOTE_FAILURE;
    event.peer = envelope.agent;
    event.incarnation = envelope.sender.hex();
    event.code = Errc::CANCELED;
    event.text = fmt::format("a transfer of \"{}\" failed or was cancelled", envelope.agent);
    event.message = envelope.payload;
    push(std::move(event));
    return Received::NEWS;
  }
  if (envelope.kind != metadata::kEnvelopeNotification) return Received::NOTHING;  // a later version's word
  if (bytes_ + envelope.payload.size() > limit_ && bytes_ > 0) {
    if (lost_++ == 0) {
      Event event{};
      event.kind = Event::Kind::NOTIFICATIONS_LOST;
      event.peer = envelope.agent;
      event.code = Errc::LIMIT;
      event.text = fmt::format("{} bytes of notifications wait to be fetched, the limit "
                               "(NIXL_NOTIF_LIMIT); new ones are dropped until some are taken",
                               bytes_);
      NIXL_LOG_ERROR("agent \"{}\": {}", agent_, event.text);
      push(std::move(event));
    }
    return Received::NEWS;
  }
  bytes_ += envelope.payload.size();
  messages_.push_back({std::string(envelope.agent), std::string(envelope.payload)});
  waiting_.store(messages_.size(), std::memory_order_release);
  return Received::NEWS;
}

void Notifier::push(Event event) {
  if (events_.size() >= kMaxEvents) events_.pop_front();
  events_.push_back(std::move(event));
}

void Notifier::add(Event event) {
  base::MutexLock lock(mu_);
  push(std::move(event));
}

std::vector<Notification> Notifier::take() {
  std::vector<Notification> taken;
  base::MutexLock lock(mu_);
  taken.swap(messages_);
  bytes_ = 0;
  lost_ = 0;
  waiting_.store(0, std::memory_order_release);
  return taken;
}

std::vector<Event> Notifier::takeEvents() {
  base::MutexLock lock(mu_);
  std::vector<Event> taken(std::make_move_iterator(events_.begin()),
                           std::make_move_iterator(events_.end()));
  events_.clear();
  return taken;
}

}  // namespace nixl::core
