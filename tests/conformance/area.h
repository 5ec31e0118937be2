// conformance/area.h - memory of any kind that a case fills, moves and looks at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nixl/types.h"

namespace nixl::conformance {

using Bytes = std::vector<std::byte>;

// `size` bytes that look random, and are the same for the same seed.
Bytes pattern(uint64_t seed, uint64_t size);

// The first difference, as a sentence; "" when they are the same.
std::string difference(const Bytes& wanted, const Bytes& found);

// Memory, a file, ... that transfers can be made with. Addresses [base, base + size).
class Area {
 public:
  // Null: this kind cannot be made here. `device` is a GPU's number.
  static std::unique_ptr<Area> make(MemType type, uint64_t size, uint64_t device = 0);
  virtual ~Area() = default;

  virtual void write(uint64_t offset, const Bytes& bytes) = 0;
  virtual Bytes read(uint64_t offset, uint64_t size) const = 0;

  MemDescriptor part(uint64_t offset, uint64_t size) const {
    return MemDescriptor(base_ + offset, size, device_, type_, info_);
  }
  MemDescriptor whole() const { return part(0, size_); }
  uint64_t size() const { return size_; }

 protected:
  Area(MemType type, uint64_t size) : type_(type), size_(size) {}

  const MemType type_;
  const uint64_t size_;
  uint64_t base_ = 0;
  uint64_t device_ = 0;
  std::string info_;
};

}  // namespace nixl::conformance
