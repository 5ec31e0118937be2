// conformance/conformance.h - what every backend must do, tested once for all of them.
//
//   // plugins/posix/posix_test.cc - the whole file
//   const bool registered = [] {
//     nixl::conformance::registerBackendConformance({.name = "POSIX", .remote = MemType::FILE,
//     ...}); return true;
//   }();
//
// The cases run over the public API. Facts about the backend decide which of them apply; one that
// does not is skipped and says why. main() comes with the library.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "nixl/agent.h"

namespace nixl::conformance {

struct BackendUnderTest {
  std::string name;        // as for createBackend()
  std::string label = {};  // of its tests, where one backend is tested in several ways; "": name
  Params params = {};

  MemType local = MemType::DRAM;
  MemType remote = MemType::DRAM;
  uint64_t local_device = 0, remote_device = 0;  // of VRAM: which GPU
  bool within_agent = true;    // moves bytes inside one agent
  bool remote_agents = false;  // moves bytes between agents
  bool processes = true;       // remote_agents: also of different processes
  bool notifications = true;
  bool fenced = true;  // once memory is deregistered, peers cannot write it any more

  // Added to `params`, they keep a transfer in flight for a while, so that it can be met there.
  // Empty: the cases that need it are skipped; the others meet what they meet.
  Params slow = {};
  // How long that is: nothing of such a transfer moves before.
  std::chrono::milliseconds slow_for{0};

  uint64_t largest = uint64_t{64} << 20;       // bytes of the largest transfer
  std::chrono::milliseconds patience{20'000};  // until a wait counts as a hang

  // Why it cannot be tested here, as a sentence; "": it can. Not set: what the plugin says.
  std::function<std::string()> unavailable = {};
};

// Registers the cases with GoogleTest, as LABEL_Self (an agent with itself), LABEL_Pair (two agents
// of a process) and LABEL_Process (two processes). To be called before main().
void registerBackendConformance(BackendUnderTest backend);

}  // namespace nixl::conformance
