#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <system_error>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace nixl::micro {

namespace {

[[noreturn]] void fail(const char* action) {
  throw std::system_error(errno, std::generic_category(), action);
}

// Any bijection of words will do: a word from elsewhere is never equal.
uint64_t word(size_t offset) { return (offset + 1) * 0x9e3779b97f4a7c15; }

}  // namespace

Buffer allocate(Kind kind, size_t bytes) {
  int fd = -1;
  if (kind == Kind::SHARED) {
    fd = ::memfd_create("machine_limits", MFD_CLOEXEC);
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) fail("create a shared buffer");
  }
  const int flags = kind == Kind::SHARED ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_POPULATE, fd, 0);
  if (memory == MAP_FAILED) fail("map a buffer");
  if (fd >= 0) ::close(fd);
  return {static_cast<std::byte*>(memory), bytes};
}

Shape contiguous(size_t buffer_bytes) {
  Shape shape{std::to_string(buffer_bytes >> 20) + " MiB", kLargePiece, {}, {}};
  for (size_t at = 0; at < buffer_bytes; at += kLargePiece) shape.source.push_back(at);
  shape.destination = shape.source;
  return shape;
}

Shape scattered(size_t buffer_bytes) {
  const size_t count = buffer_bytes / kSmallPiece / 4;
  Shape shape{"4 KiB x " + std::to_string(count), kSmallPiece, {}, {}};
  for (size_t i = 0; i < count; ++i) shape.source.push_back(i * 4 * kSmallPiece);
  shape.destination = shape.source;
  std::mt19937_64 random(1);
  std::shuffle(shape.source.begin(), shape.source.end(), random);
  std::shuffle(shape.destination.begin(), shape.destination.end(), random);
  return shape;
}

void fill(Buffer buffer) {
  for (size_t at = 0; at < buffer.size(); at += sizeof(uint64_t)) {
    const uint64_t w = word(at);
    std::memcpy(&buffer[at], &w, sizeof w);
  }
}

void wipe(Buffer buffer) { std::memset(buffer.data(), 0, buffer.size()); }

bool holds(Buffer destination, const Shape& shape) {
  for (size_t i = 0; i < shape.source.size(); ++i) {
    for (size_t at = 0; at < shape.block; at += sizeof(uint64_t)) {
      uint64_t w;
      std::memcpy(&w, &destination[shape.destination[i] + at], sizeof w);
      if (w != word(shape.source[i] + at)) return false;
    }
  }
  return true;
}

void streamingCopy([[maybe_unused]] std::byte* to, [[maybe_unused]] const std::byte* from,
                   [[maybe_unused]] size_t bytes) {
#if defined(__x86_64__)
  auto* out = reinterpret_cast<__m128i*>(to);
  const auto* in = reinterpret_cast<const __m128i*>(from);
  for (size_t i = 0; i < bytes / sizeof(__m128i); i += 4) {
    const __m128i a = _mm_load_si128(in + i), b = _mm_load_si128(in + i + 1),
                  c = _mm_load_si128(in + i + 2), d = _mm_load_si128(in + i + 3);
    _mm_stream_si128(out + i, a);
    _mm_stream_si128(out + i + 1, b);
    _mm_stream_si128(out + i + 2, c);
    _mm_stream_si128(out + i + 3, d);
  }
  _mm_sfence();
#endif
}

}  // namespace nixl::micro
