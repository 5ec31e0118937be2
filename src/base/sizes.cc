#include "base/sizes.h"

#include <cstddef>
#include <cstdio>

namespace nixl::base {

namespace {

__extension__ using Wide = unsigned __int128;

constexpr char kUnits[] = "bkmgtpe";  // each 1024 times the one before

// Not the ones of <cctype>: those follow the user's locale.
bool isDigit(char c) { return c >= '0' && c <= '9'; }
bool isSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// The power of 1024 that a unit stands for.
std::optional<unsigned> unitPower(std::string_view unit) {
  if (unit.empty()) return 0;
  for (unsigned power = 0; kUnits[power] != '\0'; ++power) {
    if (lower(unit[0]) != kUnits[power]) continue;
    std::string_view rest = unit.substr(1);
    if (rest.empty()) return power;
    if (power == 0) return std::nullopt;  // "bb"
    bool is_b = rest.size() == 1 && lower(rest[0]) == 'b';
    bool is_ib = rest.size() == 2 && lower(rest[0]) == 'i' && lower(rest[1]) == 'b';
    bool is_i = rest.size() == 1 && lower(rest[0]) == 'i';  // as Kubernetes writes it: "4Ki"
    if (is_b || is_ib || is_i) return power;
    return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

std::optional<uint64_t> parseSize(std::string_view text) {
  while (!text.empty() && isSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && isSpace(text.back())) text.remove_suffix(1);
  if (text.empty() || !isDigit(text.front())) return std::nullopt;

  uint64_t whole = 0;
  while (!text.empty() && isDigit(text.front())) {
    if (__builtin_mul_overflow(whole, uint64_t{10}, &whole) ||
        __builtin_add_overflow(whole, static_cast<uint64_t>(text.front() - '0'), &whole))
      return std::nullopt;
    text.remove_prefix(1);
  }

  // Twelve decimals are more than anybody writes, and fit below together with the largest unit.
  uint64_t fraction = 0, fraction_of = 1;
  bool has_fraction = !text.empty() && text.front() == '.';
  if (has_fraction) {
    text.remove_prefix(1);
    size_t decimals = 0;
    for (; !text.empty() && isDigit(text.front()); text.remove_prefix(1)) {
      if (++decimals > 12) return std::nullopt;
      fraction = fraction * 10 + static_cast<uint64_t>(text.front() - '0');
      fraction_of *= 10;
    }
    if (decimals == 0) return std::nullopt;
  }

  while (!text.empty() && isSpace(text.front())) text.remove_prefix(1);
  std::optional<unsigned> power = unitPower(text);
  if (!power || (has_fraction && *power == 0)) return std::nullopt;

  Wide unit = Wide{1} << (10 * *power);
  Wide bytes = whole * unit + fraction * unit / fraction_of;
  if (bytes > UINT64_MAX) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::string formatSize(uint64_t bytes) {
  constexpr const char* kNames[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};
  unsigned power = 0;
  while (power < 6 && bytes >> (10 * (power + 1)) != 0) ++power;

  uint64_t unit = uint64_t{1} << (10 * power);
  if (bytes % unit == 0) return std::to_string(bytes / unit) + " " + kNames[power];

  auto hundredths = static_cast<uint64_t>((Wide{bytes} * 100 + unit / 2) / unit);
  if (hundredths == 102400 && power < 6) return std::string("1.00 ") + kNames[power + 1];
  char text[32];
  std::snprintf(text, sizeof(text), "%llu.%02llu %s",
                static_cast<unsigned long long>(hundredths / 100),
                static_cast<unsigned long long>(hundredths % 100), kNames[power]);
  return text;
}

}  // namespace nixl::base
