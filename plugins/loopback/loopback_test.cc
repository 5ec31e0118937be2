// LOOPBACK through the cases that every backend has to pass.

#include "conformance/conformance.h"

namespace {

const bool registered = [] {
  using namespace std::chrono_literals;
  nixl::conformance::registerBackendConformance({
      .name = "LOOPBACK",
      .slow = {{"delay_us", "200000"}},
      .slow_for = 200ms,
  });
  return true;
}();

}  // namespace
