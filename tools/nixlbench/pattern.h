// nixlbench/pattern.h - bytes that depend on a seed and on where they lie, so that one which came
// from the wrong place, from an earlier transfer or not at all is noticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace nixl::bench {

// The n-th number of the stream `seed`; well mixed, the same on every machine.
uint64_t mix(uint64_t seed, uint64_t n);

// Writes the bytes [offset, offset + out.size()) of the pattern.
void fillPattern(uint64_t seed, uint64_t offset, std::span<std::byte> out);

struct Difference {
  uint64_t offset = 0;  // in the pattern
  unsigned expected = 0, found = 0;
};

// The first byte that is not the pattern's.
std::optional<Difference> findDifference(uint64_t seed, uint64_t offset,
                                         std::span<const std::byte> bytes);

// Depends on the order of the bytes, and not on how they are cut into pieces of whole words.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes);
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0x6e69786c62656e63;
};

}  // namespace nixl::bench
