// nixlbench/notification_link.h - the link between two hosts: metadata through the target's
// listener, requests and answers as notifications between the two agents.
#pragma once

#include "nixlbench/link.h"

namespace nixl::bench {

class NotificationLink final : public Link {
 public:
  NotificationLink(Agent& agent, const Options& options)
      : agent_(agent), host_(options.host), port_(options.port), timeout_(options.timeout) {}

  Json hello(Agent& agent, Json request, std::chrono::milliseconds patience) override;
  void keepAlive() override;

 private:
  Json exchange(const Json& request, std::chrono::milliseconds patience) override;
  void fetch(const Rows& ranges);  // until the target's metadata covers them

  Agent& agent_;
  std::string host_;
  uint16_t port_;
  std::chrono::seconds timeout_;
  uint64_t last_id_ = 0;  // of a request; its answer has the same
};

}  // namespace nixl::bench
