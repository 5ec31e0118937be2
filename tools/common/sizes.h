// common/sizes.h - byte counts on the command line and in results. Units are powers of 1024.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nixl::tools {

// "4096", "4KB", "64k", "256 MiB", "1.5GB", in any case; nothing for anything else, and for what
// needs more than 64 bits.
std::optional<uint64_t> parseSize(std::string_view text);

// The largest unit that gives at least 1: "512 B", "4 KB", "1.50 GB". `fixed`: always with two
// decimals (not for bytes), so "4.00 KB".
std::string formatSize(uint64_t bytes, bool fixed = false);

}  // namespace nixl::tools
