// Serialised lists of descriptors, which pickles of peers carry.
#include "list_bytes.h"

#include "fuzz.h"

namespace {

using namespace nixl;
using namespace nixl::python;
using fuzz::require;

void tryRows(std::string_view bytes) {
  MemType type = MemType::FILE;
  std::vector<uint64_t> numbers = {7};
  if (!readRows(bytes, type, numbers)) {
    require(numbers.empty(), "rows of bytes that were refused");
    return;
  }
  require(static_cast<unsigned>(type) < kMemTypes, "a memory kind that does not exist");
  require(numbers.size() % 3 == 0 && numbers.size() * 8 <= bytes.size(), "rows of nothing");
  const std::string again = writeRows(type, numbers);
  require(bytes.substr(0, again.size()) == again, "what was read is written in another way");
}

void tryRanges(std::string_view bytes) {
  MemType type = MemType::FILE;
  std::vector<MemDescriptor> ranges(1);
  if (!readRanges(bytes, type, ranges)) {
    require(ranges.empty(), "ranges of bytes that were refused");
    return;
  }
  for (const MemDescriptor& range : ranges) require(range.type == type, "a range of another kind");
  require(ranges.size() * 24 <= bytes.size(), "ranges of nothing");
  const std::string again = writeRanges(type, ranges);
  require(bytes.substr(0, again.size()) == again, "what was read is written in another way");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  tryRows(bytes);
  tryRanges(bytes);
  return 0;
}
