// libcuda/control.h - what a test in the same process may ask of the software driver. The functions
// are found with dlsym() in the library that NIXL_CUDA_PATH names; a real driver has none of them.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>

namespace nixl::fakes {

struct CudaControl {
  // Rules as in NIXL_FAKE_CUDA_FAULTS and a delay as in NIXL_FAKE_CUDA_DELAY_US, from now on: calls
  // are counted anew. False: a rule cannot be read.
  bool (*configure)(const char* faults, const char* delay_us) = nullptr;
  // No rules, no delay; what is stuck goes on, and lost devices are found again.
  void (*reset)() = nullptr;
  // Calls of a function since the last configure() or reset(). Also "copy", copies that a stream
  // carried out; "pageable", asynchronous copies with host memory that was not pinned, which block
  // as the real driver's do; "live", what was made and not ended: allocations, pins, streams,
  // events.
  uint64_t (*count)(const char* what) = nullptr;

  // Null functions where the driver is not the software one.
  static CudaControl find() {
    CudaControl control;
    const char* path = std::getenv("NIXL_CUDA_PATH");
    void* library =
        path != nullptr ? ::dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) : nullptr;
    if (library == nullptr) return control;
    control.configure =
        reinterpret_cast<decltype(configure)>(::dlsym(library, "nixlFakeCudaConfigure"));
    control.reset = reinterpret_cast<decltype(reset)>(::dlsym(library, "nixlFakeCudaReset"));
    control.count = reinterpret_cast<decltype(count)>(::dlsym(library, "nixlFakeCudaCount"));
    return control;
  }
  explicit operator bool() const { return configure != nullptr; }
};

}  // namespace nixl::fakes
