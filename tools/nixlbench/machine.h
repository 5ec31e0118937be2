// nixlbench/machine.h - what a figure is worth nothing without.
#pragma once

#include <cstdint>
#include <string>

namespace nixl::bench {

struct Machine {
  std::string cpu;      // the model's name
  unsigned cores = 0;   // that this process may use
  uint64_t memory = 0;  // bytes
  std::string kernel;   // "Linux 6.1.0 x86_64"
  double load = 0;      // of the last minute, when the run began
};

Machine describeMachine();

}  // namespace nixl::bench
