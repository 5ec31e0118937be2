#include "nixlbench/verify.h"

#include <algorithm>
#include <vector>

namespace nixl::bench {

namespace {
constexpr uint64_t kChunk = 1 << 20;  // bytes at a time through host memory
}

void fill(Buffer& buffer, uint64_t bytes, Role role, uint64_t seed) {
  std::vector<std::byte> chunk(std::min(bytes, kChunk));
  for (uint64_t at = 0; at < bytes; at += chunk.size()) {
    const std::span<std::byte> part(chunk.data(), std::min<uint64_t>(chunk.size(), bytes - at));
    fillPattern(role == Role::SOURCE ? seed : ~seed, at, part);
    buffer.write(at, part);
  }
}

Inspection inspect(const Buffer& buffer, uint64_t block, std::span<const uint64_t> own,
                   std::span<const uint64_t> source, uint64_t seed) {
  Checksum checksum;
  Inspection result;
  std::vector<std::byte> chunk(std::min(block, kChunk));
  for (size_t i = 0; i < own.size(); ++i) {
    for (uint64_t at = 0; at < block; at += chunk.size()) {
      const std::span<std::byte> part(chunk.data(), std::min<uint64_t>(chunk.size(), block - at));
      buffer.read(own[i] + at, part);
      checksum.add(part);
      std::optional<Difference> found = findDifference(seed, source[i] + at, part);
      if (!found) continue;
      found->offset = found->offset - source[i] + own[i];
      if (!result.difference || found->offset < result.difference->offset)
        result.difference = found;
    }
  }
  result.checksum = checksum.value();
  return result;
}

}  // namespace nixl::bench
