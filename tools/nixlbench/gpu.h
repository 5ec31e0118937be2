// nixlbench/gpu.h - memory of one CUDA GPU, through the driver's library, opened when first needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace nixl::bench {

// Threads: one at a time; each call makes the device's primary context current.
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
  int device_ = 0;
  void* context_ = nullptr;
};

}  // namespace nixl::bench
