// nixlbench/buffer.h - the memory that a run moves: host memory, or a GPU's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "nixl/types.h"

namespace nixl::bench {

struct Place {
  MemType type = MemType::DRAM;
  uint64_t device = 0;
};

std::string describe(const Place& place);  // "DRAM", "VRAM (GPU 0)"

class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void write(uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual void read(uint64_t offset, std::span<std::byte> bytes) const = 0;

  uint64_t address() const { return address_; }
  uint64_t size() const { return size_; }
  const Place& place() const { return place_; }

 protected:
  Buffer(Place place, uint64_t address, uint64_t size)
      : place_(place), address_(address), size_(size) {}

 private:
  Place place_;
  uint64_t address_, size_;
};

// Throws nixl::Error with the system's reason. Every page of host memory is there afterwards.
std::unique_ptr<Buffer> makeBuffer(const Place& place, uint64_t bytes);

// Throws when there is no such GPU (nothing is allocated).
void requirePlace(const Place& place);

}  // namespace nixl::bench
