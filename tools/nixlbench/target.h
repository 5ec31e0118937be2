// nixlbench/target.h - the target's side: it owns memory, and answers the initiator's requests.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "nixl/agent.h"
#include "nixlbench/buffer.h"
#include "nixlbench/options.h"

namespace nixl::bench {

using Json = nlohmann::json;  // travels as CBOR, so that it can hold bytes

inline constexpr const char* kTargetName = "nixlbench-target";
inline constexpr const char* kFarewell = "bye";  // the last request
inline constexpr const char* kAlive = "alive";   // has no answer; keeps the target waiting for more

// An agent with the backend that the options name, or else the library's default ones; throws when
// one cannot be had. It listens for metadata when the options say that we are the listening target.
std::unique_ptr<Agent> makeAgent(const std::string& name, const Options& options);
// Empty when the user left the choice to the library.
std::vector<std::string> chosenBackends(const Options& options);
bool reachesOthers(const Agent& agent);  // has it a backend for more than itself?

// Requests have a "do":
//   hello   {type, device, bytes, metadata?} -> {address, metadata}   allocates and registers
//   fill    {bytes, role, seed}              -> {}
//   begin   {}                               -> {cpu_seconds}         of this process so far
//   end     {}                               -> {cpu_seconds}
//   inspect {block, count, scattered, role, seed} -> {checksum, offset?, expected?, found?}
//   bye     {}                               -> {}
// A request that fails is answered by {error, code}.
class Target {
 public:
  // `agent` outlives this.
  Target(Agent& agent, std::vector<std::string> backends);
  ~Target();

  Agent& agent() { return agent_; }
  Json answer(const Json& request);

 private:
  Json handle(const Json& request);
  Json hello(const Json& request);

  Agent& agent_;
  std::vector<std::string> backends_;
  std::unique_ptr<Buffer> buffer_;
  Memory memory_;  // buffer_, registered
};

double cpuSeconds();  // of this process, user and system

// The target as a process of its own: answers the requests that come through the stream socket
// `fd`, or as notifications, until the initiator says goodbye. When it goes away before that, the
// one returns false and the other throws.
bool serveSocket(Target& target, int fd, std::chrono::seconds idle_limit);
void serveNotifications(Target& target, std::chrono::seconds first_limit,
                        std::chrono::seconds idle_limit);

}  // namespace nixl::bench
