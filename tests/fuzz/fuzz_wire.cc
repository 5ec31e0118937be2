// Hostile metadata and hostile notifications: decode() and decodeEnvelope() over any bytes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "metadata/wire.h"

namespace {

using namespace nixl;
using namespace nixl::metadata;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_wire: %s\n", what);
  std::abort();
}

void tryBlob(std::string_view bytes) {
  Result<Blob> blob = decode(bytes);
  if (!blob.has_value()) {
    require(blob.error().code() == Errc::MISMATCH, "an error that is not MISMATCH");
    return;
  }
  for (BackendSection& section : blob->sections)
    for (const RegionRow& row : section.rows) {
      require(row.key < section.keys.size(), "a row without its key");
      require(row.count >= 1, "a row of nothing");
      auto end = static_cast<unsigned __int128>(row.count - 1) * row.stride + row.length + row.base;
      require(end <= UINT64_MAX, "a row beyond 2^64");
    }
  std::string again = encode(*blob);
  Result<Blob> second = decode(again);
  require(second.has_value(), "what was decoded cannot be encoded");
  require(encode(*second) == again, "what was encoded decodes to something else");
  for (BackendSection& section : blob->sections) compress(section.rows);
  require(decode(encode(*blob)).has_value(), "what was compressed cannot be decoded");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  tryBlob(bytes);

  // With length and checksum made right, to get behind them.
  if (size >= 28) {
    std::string sealed(bytes);
    base::storeLittle(sealed.data() + 16, uint64_t{size});
    base::storeLittle(sealed.data() + size - 4, base::crc32c(sealed.data(), size - 4));
    tryBlob(sealed);
  }

  Result<EnvelopeView> envelope = decodeEnvelope(bytes);
  if (envelope.has_value()) {
    require(envelope->agent.size() + envelope->payload.size() + 40 == size, "lost bytes");
    Result<EnvelopeView> again = decodeEnvelope(encodeEnvelope(*envelope));
    require(again.has_value() && again->sequence == envelope->sequence, "another envelope");
  }
  return 0;
}
