#include "nixlbench/link.h"

#include <utility>

#include "nixlbench/notification_link.h"
#include "nixlbench/process_link.h"

namespace nixl::bench {

namespace {

// The target is an object of this process, with an agent of its own; where the backend reaches
// nobody else, the initiator's agent is both sides.
class DirectLink final : public Link {
 public:
  DirectLink(const Options& options, Agent& initiator)
      : own_(reachesOthers(initiator) ? makeAgent(kTargetName, options) : nullptr),
        target_(own_ ? *own_ : initiator, chosenBackends(options)) {}

  std::string peer() const override { return name_; }

  Json hello(Agent& agent, Json request, std::chrono::milliseconds patience) override {
    return own_ ? Link::hello(agent, std::move(request), patience) : ask(request, patience);
  }

 private:
  Json exchange(const Json& request, std::chrono::milliseconds) override {
    return target_.answer(request);
  }

  std::unique_ptr<Agent> own_;
  Target target_;
  std::string name_ = target_.agent().name();
};

}  // namespace

Json Link::ask(const Json& request, std::chrono::milliseconds patience) {
  Json answer = exchange(request, patience);
  if (answer.contains("error"))
    throw Error(static_cast<Errc>(answer.value("code", static_cast<int>(Errc::UNKNOWN))),
                "target: " + answer["error"].get<std::string>());
  return answer;
}

Json Link::hello(Agent& agent, Json request, std::chrono::milliseconds patience) {
  const std::string metadata = agent.metadata();
  request["metadata"] = Json::binary({metadata.begin(), metadata.end()});
  Json answer = ask(request, patience);
  const auto& bytes = answer.at("metadata").get_binary();
  agent.loadMetadata({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return answer;
}

std::unique_ptr<Link> makeLink(const Options& options, Agent& agent) {
  switch (options.peers) {
    case Peers::ONE_PROCESS:
      return std::make_unique<DirectLink>(options, agent);
    case Peers::CONNECT:
      return std::make_unique<NotificationLink>(agent, options);
    default:
      return std::make_unique<ProcessLink>(options);
  }
}

}  // namespace nixl::bench
