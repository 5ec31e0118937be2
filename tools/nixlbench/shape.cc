#include "nixlbench/shape.h"

#include <utility>

#include "nixlbench/pattern.h"

namespace nixl::bench {

std::vector<uint64_t> blockOffsets(const Shape& shape, Side side, uint64_t seed) {
  std::vector<uint64_t> offsets(shape.count);
  for (uint64_t i = 0; i < shape.count; ++i) offsets[i] = i * shape.block;
  if (!shape.scattered) return offsets;
  const uint64_t stream = mix(seed, static_cast<uint64_t>(side));
  for (uint64_t i = shape.count; i > 1; --i) std::swap(offsets[i - 1], offsets[mix(stream, i) % i]);
  return offsets;
}

}  // namespace nixl::bench
