// base/sizes.h - byte counts as people write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nixl::base {

// "4096", "4KB", "256 MiB", "1.5g": bytes. Units are powers of 1024 with or without the "i", up to
// E, in any case. A fraction needs a unit, and what is left of a byte is dropped. Nothing for
// anything else, and for what does not fit.
std::optional<uint64_t> parseSize(std::string_view text);

// "512 B", "4 KB", "1.50 GB": the largest unit that gives at least 1; two decimals unless exact.
std::string formatSize(uint64_t bytes);

}  // namespace nixl::base
