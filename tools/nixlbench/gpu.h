// nixlbench/gpu.h - memory of one GPU, through the driver's library, opened when first needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace nixl::gpu {
class Driver;
}  // namespace nixl::gpu

namespace nixl::bench {

// Threads: any; each call leaves the thread with the device that it came with.
// Errors:  nixl::Error with the driver's own words.
class Gpu {
 public:
  explicit Gpu(uint64_t device);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  uint64_t allocate(uint64_t bytes);
  void free(uint64_t address) noexcept;
  void copyIn(uint64_t address, std::span<const std::byte> bytes);
  void copyOut(uint64_t address, std::span<std::byte> bytes);

 private:
  void check(int code, const std::string& action) const;

  gpu::Driver* driver_ = nullptr;  // as long as the process
  unsigned device_ = 0;
};

}  // namespace nixl::bench
