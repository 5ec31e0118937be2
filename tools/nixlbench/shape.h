// nixlbench/shape.h - what one transfer moves: equal blocks, in order or shuffled.
#pragma once

#include <cstdint>
#include <vector>

namespace nixl::bench {

struct Shape {
  uint64_t block = 0;  // bytes
  uint64_t count = 0;
  bool scattered = false;
  uint64_t bytes() const { return block * count; }
  bool operator==(const Shape&) const = default;
};

enum class Side : uint8_t { INITIATOR = 1, TARGET = 2 };

// Where the blocks begin in that side's memory, in the order of the transfer. Scattered blocks are
// shuffled on each side in its own way; both processes work out the same from the same seed.
std::vector<uint64_t> blockOffsets(const Shape& shape, Side side, uint64_t seed);

}  // namespace nixl::bench
