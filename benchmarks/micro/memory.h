// micro/memory.h - the buffers that every limit is measured with, and their contents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nixl::micro {

inline constexpr size_t kLargePiece = 4 << 20, kSmallPiece = 4096;

using Buffer = std::span<std::byte>;

// Pages of this process, all there, for the program's life. A multiple of kLargePiece.
enum class Kind { PRIVATE, SHARED };
Buffer allocate(Kind kind, size_t bytes);

// What is moved: block i from source[i] to destination[i], offsets in the two buffers.
struct Shape {
  std::string name;
  size_t block;  // bytes
  std::vector<size_t> source, destination;
  size_t bytes() const { return block * source.size(); }
};

// The whole of a buffer in large pieces, in order; a quarter of it in small ones, taken from
// everywhere and shuffled on both sides.
Shape contiguous(size_t buffer_bytes);
Shape scattered(size_t buffer_bytes);

void fill(Buffer buffer);  // every word says where it lies
void wipe(Buffer buffer);
bool holds(Buffer destination, const Shape& shape);  // what `shape` moved from a filled one

// memcpy with stores that do not go through the cache. False where the processor has none.
inline constexpr bool kHasStreaming =
#if defined(__x86_64__)
    true;
#else
    false;
#endif
void streamingCopy(std::byte* to, const std::byte* from, size_t bytes);  // multiples of 64, aligned

}  // namespace nixl::micro
