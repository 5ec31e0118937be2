// Byte counts as people write them, in variables and on command lines.
#include "base/sizes.h"

#include <string>

#include "common/sizes.h"
#include "fuzz.h"

namespace {

using namespace nixl;
using fuzz::require;
using fuzz::Wide;

// What is printed is read again, and is near.
void tryNumber(uint64_t bytes) {
  for (const std::string& text :
       {base::formatSize(bytes), tools::formatSize(bytes), tools::formatSize(bytes, true)}) {
    const std::optional<uint64_t> again = base::parseSize(text);
    // The greatest numbers are printed as 16 EB, which is one too many.
    const uint64_t half_a_hundredth = (bytes >> 60) ? (uint64_t{1} << 60) / 200 + 1 : 0;
    if (!again && bytes > UINT64_MAX - half_a_hundredth) continue;
    require(again.has_value(), "a size is printed in a way that cannot be read");
    const Wide apart = *again > bytes ? *again - bytes : bytes - *again;
    require(apart * 100 <= Wide{bytes}, "a size is printed as another one");
  }
}

// All digits: what it must be.
void tryDigits(std::string_view text, std::optional<uint64_t> got) {
  if (text.empty() || text.size() > 30) return;
  Wide value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return;
    value = value * 10 + static_cast<unsigned>(c - '0');
  }
  if (value > UINT64_MAX)
    require(!got, "a size beyond 64 bits");
  else
    require(got == static_cast<uint64_t>(value), "digits that mean another number");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::optional<uint64_t> library = base::parseSize(text), tool = tools::parseSize(text);
  tryDigits(text, library);
  tryDigits(text, tool);
  // They differ in fractions, in lines around the text, and in "4Ki", which variables may have.
  if (text.find_first_of(".\t\r\niI") == std::string_view::npos)
    require(tool == library, "variables and command lines mean different sizes");
  if (library) tryNumber(*library);
  if (tool) tryNumber(*tool);
  fuzz::Input in(data, size);
  tryNumber(in.raw());
  return 0;
}
