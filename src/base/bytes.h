// base/bytes.h - fixed-width little-endian bytes: written without surprises, read without trust.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace nixl::base {

// Little-endian whatever the machine; compilers make one load or store of it.
template <std::unsigned_integral T>
inline void storeLittle(void* to, T value) {
  auto* bytes = static_cast<unsigned char*>(to);
  for (size_t i = 0; i < sizeof(T); ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
}

template <std::unsigned_integral T>
inline T loadLittle(const void* from) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(value | (static_cast<T>(bytes[i]) << (8 * i)));
  return value;
}

// Appends to a string of bytes.
class ByteWriter {
 public:
  void u8(uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void u16(uint16_t value) { fixed(value); }
  void u32(uint32_t value) { fixed(value); }
  void u64(uint64_t value) { fixed(value); }

  // A u32 length and then the bytes. 4 GiB and more throws std::length_error, as std::string does.
  void bytes(std::string_view data) {
    if (data.size() > UINT32_MAX) throw std::length_error("ByteWriter: 4 GiB or more in one field");
    u32(static_cast<uint32_t>(data.size()));
    raw(data);
  }

  // The bytes alone: the reader must know how many.
  void raw(std::string_view data) { out_.append(data); }
  void raw(const void* data, size_t length) { out_.append(static_cast<const char*>(data), length); }

  // Overwrites what is there, for a length or checksum known only later. Needs at + 4 <= size().
  void putU32(size_t at, uint32_t value) { storeLittle(&out_.at(at + 3) - 3, value); }
  void putU64(size_t at, uint64_t value) { storeLittle(&out_.at(at + 7) - 7, value); }

  void reserve(size_t length) { out_.reserve(length); }
  size_t size() const { return out_.size(); }
  std::string_view view() const { return out_; }
  std::string take() { return std::exchange(out_, {}); }

 private:
  template <typename T>
  void fixed(T value) {
    char bytes[sizeof(T)];
    storeLittle(bytes, value);
    out_.append(bytes, sizeof(T));
  }

  std::string out_;
};

// Reads bytes that somebody else made. After the first read that asks for more than is left, ok()
// is false and that and every later read gives zero or nothing: check ok() once, after a row or a
// record. Copies nothing and allocates nothing, so no length in the input can make it do so.
class ByteReader {
 public:
  explicit ByteReader(std::string_view data) : data_(data) {}  // data outlives this and its views
  template <std::same_as<std::string> Temporary>
  explicit ByteReader(Temporary&&) = delete;  // would be gone before the first read
  ByteReader(const void* data, size_t length) : data_(static_cast<const char*>(data), length) {}

  uint8_t u8() { return fixed<uint8_t>(); }
  uint16_t u16() { return fixed<uint16_t>(); }
  uint32_t u32() { return fixed<uint32_t>(); }
  uint64_t u64() { return fixed<uint64_t>(); }

  // What ByteWriter::bytes() wrote: a u32 length, then that many bytes.
  std::string_view bytes() {
    uint32_t length = u32();
    return view(length);
  }

  // The next n bytes, in place.
  std::string_view view(uint64_t n) {
    if (!take(n)) return {};
    std::string_view found = data_.substr(0, n);
    data_.remove_prefix(n);
    return found;
  }

  // Copies the next n bytes out; zeroes the target when they are not there.
  bool copy(void* to, size_t n) {
    if (n == 0) return ok_;
    std::string_view found = view(n);
    if (found.size() == n)
      std::memcpy(to, found.data(), n);
    else
      std::memset(to, 0, n);
    return ok_;
  }

  void skip(uint64_t n) { view(n); }

  // Marks the input as bad: for a caller that has read a value that cannot be.
  void fail() {
    ok_ = false;
    data_ = {};
  }

  // True if `count` rows of at least `row_length` bytes can still be there: ask before reserving
  // memory for a count that came from outside. Does not change the state.
  bool fits(uint64_t count, uint64_t row_length) const {
    return ok_ && (row_length == 0 || count <= data_.size() / row_length);
  }

  bool ok() const { return ok_; }
  size_t remaining() const { return data_.size(); }

 private:
  bool take(uint64_t n) {
    if (n <= data_.size() && ok_) return true;
    fail();
    return false;
  }

  template <typename T>
  T fixed() {
    if (!take(sizeof(T))) return 0;
    T value = loadLittle<T>(data_.data());
    data_.remove_prefix(sizeof(T));
    return value;
  }

  std::string_view data_;
  bool ok_ = true;
};

}  // namespace nixl::base
