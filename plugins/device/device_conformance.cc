// DEVICE through the cases that every backend has to pass: between host and GPU, inside of a GPU,
// and between two. NIXL_TEST_REAL_GPU=1 runs them on the machine's own GPUs.

#include <cstdlib>

#include "conformance/conformance.h"

namespace {

const bool registered = [] {
  using namespace std::chrono_literals;
  using nixl::MemType;
  if (std::getenv("NIXL_TEST_REAL_GPU") != nullptr) ::unsetenv("NIXL_CUDA_PATH");

  constexpr uint64_t kSome = (9 << 20) + 1;  // ... and than the engine's buffers hold
  struct Pair {
    const char* label;
    MemType local, remote;
    uint64_t remote_device;
    nixl::Params params;
    uint64_t largest;  // bytes
  };
  for (const Pair& pair : {
           // More than the library hands over in one piece, ...
           Pair{"DEVICE_HostToGpu", MemType::DRAM, MemType::VRAM, 0, {}, (65 << 20) + 7},
           Pair{"DEVICE_GpuToHost", MemType::VRAM, MemType::DRAM, 0, {}, kSome},
           Pair{"DEVICE_Unpinned", MemType::DRAM, MemType::VRAM, 0, {{"pin", "never"}}, kSome},
           Pair{"DEVICE_WithinAGpu", MemType::VRAM, MemType::VRAM, 0, {}, kSome},
           Pair{"DEVICE_TwoGpus", MemType::VRAM, MemType::VRAM, 1, {}, kSome},
       })
    nixl::conformance::registerBackendConformance({
        .name = "DEVICE",
        .label = pair.label,
        .params = pair.params,
        .local = pair.local,
        .remote = pair.remote,
        .remote_device = pair.remote_device,
        .slow = {{"delay_us", "100000"}},
        .slow_for = 100ms,
        .largest = pair.largest,
    });
  return true;
}();

}  // namespace
