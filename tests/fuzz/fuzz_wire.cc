// Hostile metadata, notifications and control messages: decode(), decodeEnvelope() and
// decodeControl() over any bytes.
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "fuzz.h"
#include "metadata/wire.h"

namespace {

using namespace nixl;
using namespace nixl::metadata;
using fuzz::require;

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
      fuzz::Wide end = static_cast<fuzz::Wide>(row.count - 1) * row.stride + row.length + row.base;
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
    const std::string encoded = encodeEnvelope(*envelope);
    Result<EnvelopeView> again = decodeEnvelope(encoded);
    require(again.has_value() && again->kind == envelope->kind &&
                again->agent == envelope->agent && again->sender == envelope->sender &&
                again->sequence == envelope->sequence && again->payload == envelope->payload,
            "another envelope");
    bytes = envelope->payload;
  }

  Result<Control> control = decodeControl(bytes);
  if (control.has_value())
    require(bytes.starts_with(encodeControl(*control)), "another control message");
  return 0;
}
