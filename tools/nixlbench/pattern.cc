#include "nixlbench/pattern.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace nixl::bench {

uint64_t mix(uint64_t seed, uint64_t n) {
  uint64_t x = seed + (n + 1) * 0x9e3779b97f4a7c15;  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

void fillPattern(uint64_t seed, uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const uint64_t w = mix(seed, offset / 8);
    const size_t skip = offset % 8;
    const size_t n = std::min(out.size(), 8 - skip);
    if (n == 8)
      std::memcpy(out.data(), &w, 8);
    else
      std::memcpy(out.data(), reinterpret_cast<const std::byte*>(&w) + skip, n);
    out = out.subspan(n);
    offset += n;
  }
}

std::optional<Difference> findDifference(uint64_t seed, uint64_t offset,
                                         std::span<const std::byte> bytes) {
  std::byte expected[4096];
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), sizeof expected);
    fillPattern(seed, offset, {expected, n});
    if (std::memcmp(expected, bytes.data(), n) != 0) {
      const size_t at =
          static_cast<size_t>(std::mismatch(expected, expected + n, bytes.data()).first - expected);
      return Difference{offset + at, static_cast<unsigned>(expected[at]),
                        static_cast<unsigned>(bytes[at])};
    }
    bytes = bytes.subspan(n);
    offset += n;
  }
  return std::nullopt;
}

void Checksum::add(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    uint64_t w = 0;
    const size_t n = std::min<size_t>(bytes.size(), 8);
    std::memcpy(&w, bytes.data(), n);
    value_ = std::rotl(value_ ^ w, 23) * 0x9fb21c651e98df25;
    bytes = bytes.subspan(n);
  }
}

}  // namespace nixl::bench
