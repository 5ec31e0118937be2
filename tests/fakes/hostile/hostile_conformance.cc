// The suite over the hostile engine. Honest by default; HOSTILE_MODE makes it misbehave, to see
// what the suite notices (suite_test.cc runs it so).

#include <cstdlib>

#include "conformance/conformance.h"

namespace {

const bool registered = [] {
  using namespace std::chrono_literals;
  const char* mode = std::getenv("HOSTILE_MODE");
  nixl::conformance::registerBackendConformance({
      .name = "HOSTILE",
      .params = {{"mode", mode != nullptr ? mode : ""}},
      .remote_agents = true,
      .processes = false,
      .slow = {{"delay_us", "200000"}},
      .slow_for = 200ms,
      .patience = mode != nullptr ? 3000ms : 20'000ms,
  });
  return true;
}();

}  // namespace
