// nixlbench/link.h - how the initiator talks to its target about the run; the bytes that are
// measured travel between the agents.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "nixl/agent.h"
#include "nixlbench/options.h"
#include "nixlbench/target.h"

namespace nixl::bench {

class Link {
 public:
  virtual ~Link() = default;

  // Sends a request and waits for its answer. Throws what the target answers with, TIMEOUT, or
  // REMOTE_DISCONNECT when it is gone.
  Json ask(const Json& request, std::chrono::milliseconds patience);

  // The target's agent, by name.
  virtual std::string peer() const { return kTargetName; }

  // The first request: makes the two agents know each other, and the target's memory reachable.
  virtual Json hello(Agent& agent, Json request, std::chrono::milliseconds patience);

  // Tells the target that we are still busy. Call it between transfers, every few seconds.
  virtual void keepAlive() {}

 private:
  virtual Json exchange(const Json& request, std::chrono::milliseconds patience) = 0;
};

// `agent` is the initiator's, and outlives the link.
std::unique_ptr<Link> makeLink(const Options& options, Agent& agent);

}  // namespace nixl::bench
