// libcuda/faults.h - which call fails, how, and how long copies take.
#pragma once

#include <cstdint>
#include <string>

namespace nixl::fakes::cuda {

struct Fault {
  int code = 0;        // 0: none
  bool lost = false;   // the device is of no use afterwards
  bool stuck = false;  // of "copy": it does not end until everything is reset
};

// Threads: any.
bool configure(const char* faults, const char* delay_us);
void clearFaults();
Fault countCall(const char* name);  // the fault of this call
uint64_t calls(const std::string& name);
void addTo(const char* name, int64_t change);  // a counter that no rule looks at

void pauseBeforeCopy();  // sleeps as long as a copy waits
void waitWhileStuck();   // until clearFaults()

uint64_t numberOf(const char* variable, uint64_t fallback);  // "4", "64M", "2G"

}  // namespace nixl::fakes::cuda
