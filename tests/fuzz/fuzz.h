// fuzz.h - what the fuzz targets have in common.
//
// A target is a function, LLVMFuzzerTestOneInput(), that is given any bytes. It ends the process
// when something is wrong: a promise that does not hold, or what a sanitizer sees.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace nixl::fuzz {

__extension__ using Wide = unsigned __int128;

// `what`: what is wrong when it does not hold.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Makes values of bytes; zeroes once there are none left.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }

  uint8_t byte() {
    if (rest_.empty()) return 0;
    const auto value = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return value;
  }

  uint64_t below(uint64_t limit) { return byte() % limit; }  // limit <= 256

  uint64_t raw() {
    uint64_t value = 0;
    const size_t n = rest_.size() < sizeof value ? rest_.size() : sizeof value;
    std::memcpy(&value, rest_.data(), n);
    rest_.remove_prefix(n);
    return value;
  }

  // Small, a power of two, shortly before 2^64, or anything: one byte chooses.
  uint64_t number() {
    const uint8_t kind = byte();
    if (kind < 128) return kind;
    if (kind < 192) return uint64_t{1} << (kind - 128);
    if (kind < 224) return UINT64_MAX - (kind - 192u);
    return raw();
  }

  // Up to the next zero byte, which is taken too.
  std::string_view text() {
    const size_t end = rest_.find('\0');
    const std::string_view found = rest_.substr(0, end);
    rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 1);
    return found;
  }

 private:
  std::string_view rest_;
};

}  // namespace nixl::fuzz
