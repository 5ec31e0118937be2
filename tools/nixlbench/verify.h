// nixlbench/verify.h - the bytes before a run, and what has become of them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "nixlbench/buffer.h"
#include "nixlbench/pattern.h"
#include "nixlbench/shape.h"

namespace nixl::bench {

// Fills the first `bytes`: the source with the pattern of `seed`, the destination with another one,
// so that a byte that never came is noticed.
enum class Role { SOURCE, DESTINATION };
void fill(Buffer& buffer, uint64_t bytes, Role role, uint64_t seed);

struct Inspection {
  uint64_t checksum = 0;                 // of the blocks in the order of the transfer
  std::optional<Difference> difference;  // the first one, by offset in this buffer
};

// Reads the blocks at `own` offsets; block i has to be what the source held at `source[i]`.
Inspection inspect(const Buffer& buffer, uint64_t block, std::span<const uint64_t> own,
                   std::span<const uint64_t> source, uint64_t seed);

}  // namespace nixl::bench
