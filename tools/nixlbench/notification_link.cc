#include "nixlbench/notification_link.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <thread>

#include "nixlbench/frames.h"

namespace nixl::bench {

using namespace std::chrono_literals;

namespace {

// A message begins with this, so that other programs' notifications are told apart.
constexpr std::string_view kMark = "nixlbench1";

std::string encode(const Json& message) {
  const std::vector<uint8_t> body = Json::to_cbor(message);
  return std::string(kMark).append(body.begin(), body.end());
}

std::optional<Json> decode(std::string_view message) {
  if (message.substr(0, kMark.size()) != kMark) return std::nullopt;
  message.remove_prefix(kMark.size());
  Json decoded = Json::from_cbor(message.begin(), message.end(), true, false);
  if (!decoded.is_object()) return std::nullopt;
  return decoded;
}

// Sleeps until something may have come, 50 ms at most.
void rest(Agent& agent) {
  pollfd p{agent.completionFd(), POLLIN, 0};
  uint64_t drained;
  if (::poll(&p, 1, 50) > 0 && ::read(p.fd, &drained, sizeof drained) < 0)
    std::this_thread::sleep_for(1ms);
}

// Says so when `peer` has gone away.
void requireAlive(Agent& agent, const std::string& peer) {
  for (const Event& event : agent.events())
    if (event.kind == Event::Kind::PEER_DOWN && event.peer == peer)
      throw Error(Errc::REMOTE_DISCONNECT, "the other side is gone: " + event.text);
}

template <typename Condition>
bool waitUntil(Deadline deadline, Condition condition) {
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

}  // namespace

void NotificationLink::fetch(const Rows& ranges) {
  // Asked for again each second: a target that is still opening its backend has nothing to give yet.
  const Deadline deadline = std::chrono::steady_clock::now() + timeout_;
  do {
    agent_.fetchMetadata(kTargetName, host_, port_);
    if (waitUntil(std::min<Deadline>(deadline, std::chrono::steady_clock::now() + 1s),
                  [&] { return agent_.checkPeer(kTargetName, ranges); }))
      return;
  } while (std::chrono::steady_clock::now() < deadline);
  throw Error(Errc::TIMEOUT, "connect to " + host_ + ":" + std::to_string(port_) +
                                 ": no metadata of a target came; is nixlbench --listen running "
                                 "there, with the same backend?");
}

Json NotificationLink::hello(Agent& agent, Json request, std::chrono::milliseconds patience) {
  fetch({});
  agent.sendMetadata(host_, port_);
  const uint64_t bytes = request.at("bytes"), device = request.at("device");
  const auto type = static_cast<MemType>(request.at("type").get<int>());
  Json answer = ask(request, patience);
  const uint64_t row[3] = {answer.at("address"), bytes, device};
  fetch({type, row, 1, 3});  // again: its memory is registered now
  return answer;
}

void NotificationLink::keepAlive() {
  agent_.sendNotification(kTargetName, encode({{"do", kAlive}, {"id", 0}}));
}

Json NotificationLink::exchange(const Json& request, std::chrono::milliseconds patience) {
  const Deadline deadline = std::chrono::steady_clock::now() + patience;
  Json numbered = request;
  numbered["id"] = ++last_id_;
  agent_.sendNotification(kTargetName, encode(numbered));
  while (std::chrono::steady_clock::now() < deadline) {
    for (const Notification& n : agent_.takeNotifications())
      if (std::optional<Json> answer = decode(n.message);
          answer && answer->value("id", 0ULL) == last_id_)
        return *answer;
    requireAlive(agent_, kTargetName);
    rest(agent_);
  }
  throw Error(Errc::TIMEOUT, "the target at " + host_ + " did not answer \"" +
                                 request.at("do").get<std::string>() + "\" in time");
}

void serveNotifications(Target& target, std::chrono::seconds first_limit,
                        std::chrono::seconds idle_limit) {
  Agent& agent = target.agent();
  std::string initiator;  // the first one that speaks to us; others are not heard
  Deadline deadline = std::chrono::steady_clock::now() + first_limit;
  while (std::chrono::steady_clock::now() < deadline) {
    for (const Notification& n : agent.takeNotifications()) {
      const std::optional<Json> request = decode(n.message);
      if (!request || (!initiator.empty() && n.agent != initiator)) continue;
      initiator = n.agent;
      deadline = std::chrono::steady_clock::now() + idle_limit;
      const std::string what = request->value("do", "");
      if (what == kAlive) continue;
      if (!waitUntil(deadline, [&] { return agent.checkPeer(initiator); }))
        throw Error(Errc::TIMEOUT, "the metadata of \"" + initiator + "\" did not come");
      Json answer = target.answer(*request);
      answer["id"] = request->value("id", 0ULL);
      agent.sendNotification(initiator, encode(answer));
      if (what == kFarewell) return;
    }
    if (!initiator.empty()) requireAlive(agent, initiator);
    rest(agent);
  }
  throw Error(Errc::TIMEOUT, initiator.empty() ? "no initiator came" : "the initiator fell silent");
}

}  // namespace nixl::bench
