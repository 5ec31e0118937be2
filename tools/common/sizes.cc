#include "common/sizes.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>

namespace nixl::tools {

namespace {

constexpr const char* kUnits[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};

std::string lowerWithoutBlanksAround(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  std::string out;
  for (unsigned char c : text) out += static_cast<char>(std::tolower(c));
  return out;
}

// How many times 1024: "" and "b" none, "k", "kb" and "kib" once, and so on.
std::optional<unsigned> powerOf(std::string_view unit) {
  if (unit.empty() || unit == "b") return 0;
  const std::string_view rest = unit.substr(1);
  const size_t power = std::string_view("kmgtpe").find(unit[0]);
  if (power == std::string_view::npos || !(rest.empty() || rest == "b" || rest == "ib"))
    return std::nullopt;
  return static_cast<unsigned>(power + 1);
}

}  // namespace

std::optional<uint64_t> parseSize(std::string_view text) {
  const std::string plain = lowerWithoutBlanksAround(text);
  const size_t digits = std::min(plain.find_first_not_of("0123456789."), plain.size());
  const size_t unit = std::min(plain.find_first_not_of(' ', digits), plain.size());
  const std::optional<unsigned> power = powerOf(std::string_view(plain).substr(unit));
  if (digits == 0 || !power) return std::nullopt;

  const char* const end = plain.data() + digits;
  uint64_t whole = 0;
  if (auto got = std::from_chars(plain.data(), end, whole);
      got.ec == std::errc() && got.ptr == end) {
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(whole, uint64_t{1} << (10 * *power), &bytes)) return std::nullopt;
    return bytes;
  }

  double fraction = 0;  // "1.5GB"; half a byte makes no sense
  auto got = std::from_chars(plain.data(), end, fraction, std::chars_format::fixed);
  fraction *= static_cast<double>(uint64_t{1} << (10 * *power));
  if (got.ec != std::errc() || got.ptr != end || *power == 0 || fraction >= 0x1p64)
    return std::nullopt;
  return static_cast<uint64_t>(fraction);
}

std::string formatSize(uint64_t bytes, bool fixed) {
  size_t power = 0;
  while (power + 1 < std::size(kUnits) && bytes >> (10 * (power + 1)) != 0) ++power;
  const uint64_t unit = uint64_t{1} << (10 * power);

  char text[40];
  if (power == 0 || (!fixed && bytes % unit == 0))
    std::snprintf(text, sizeof text, "%llu %s", static_cast<unsigned long long>(bytes / unit),
                  kUnits[power]);
  else
    std::snprintf(text, sizeof text, "%.2f %s",
                  static_cast<double>(bytes) / static_cast<double>(unit), kUnits[power]);
  return text;
}

}  // namespace nixl::tools
