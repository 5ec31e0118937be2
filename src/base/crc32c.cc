#include "base/crc32c.h"

#include <array>

#include "base/bytes.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace nixl::base {

namespace {

// tables[k][b] is the checksum of byte b followed by k zero bytes: eight bytes at once.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables makeTables() {
  constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli's, bits reversed
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (size_t byte = 0; byte < 256; ++byte)
      tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xff];
  return tables;
}

constexpr Tables kTables = makeTables();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc32cInstruction(const void* data, size_t length,
                                                             uint32_t before) {
  const auto* next = static_cast<const unsigned char*>(data);
  uint64_t crc = ~before;
  for (; length >= 8; next += 8, length -= 8) crc = _mm_crc32_u64(crc, loadLittle<uint64_t>(next));
  uint32_t rest = static_cast<uint32_t>(crc);
  for (; length > 0; ++next, --length) rest = _mm_crc32_u8(rest, *next);
  return ~rest;
}
#elif defined(__ARM_FEATURE_CRC32)
uint32_t crc32cInstruction(const void* data, size_t length, uint32_t before) {
  const auto* next = static_cast<const unsigned char*>(data);
  uint32_t crc = ~before;
  for (; length >= 8; next += 8, length -= 8) crc = __crc32cd(crc, loadLittle<uint64_t>(next));
  for (; length > 0; ++next, --length) crc = __crc32cb(crc, *next);
  return ~crc;
}
#endif

}  // namespace

uint32_t detail::crc32cTable(const void* data, size_t length, uint32_t before) {
  const auto* next = static_cast<const unsigned char*>(data);
  uint32_t crc = ~before;
  for (; length >= 8; next += 8, length -= 8) {
    uint64_t word = loadLittle<uint64_t>(next) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; length > 0; ++next, --length) crc = (crc >> 8) ^ kTables[0][(crc ^ *next) & 0xff];
  return ~crc;
}

uint32_t crc32c(const void* data, size_t length, uint32_t before) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  return has_instruction ? crc32cInstruction(data, length, before)
                         : detail::crc32cTable(data, length, before);
#elif defined(__ARM_FEATURE_CRC32)
  return crc32cInstruction(data, length, before);
#else
  return detail::crc32cTable(data, length, before);
#endif
}

}  // namespace nixl::base
