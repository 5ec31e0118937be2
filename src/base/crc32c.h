// base/crc32c.h - CRC32C (Castagnoli): finds damaged bytes. It does not find forged ones.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nixl::base {

// Of `length` bytes. To continue over a second range, pass the result for the first as `before`.
// Uses the processor's instruction where there is one.
uint32_t crc32c(const void* data, size_t length, uint32_t before = 0);

namespace detail {
// Without the instruction; for machines that lack it, and to test one against the other.
uint32_t crc32cTable(const void* data, size_t length, uint32_t before = 0);
}  // namespace detail

}  // namespace nixl::base
