// metadata/wire.h - what agents tell each other, as bytes: the metadata blob and the envelope of a
// notification. The only place that knows either format.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "nixl/types.h"

namespace nixl::metadata {

// Which life of an agent: the fingerprint of a key pair that is made when the agent is (crypto.h). A
// restarted agent has the same name and another incarnation.
struct Incarnation {
  std::array<uint8_t, 16> bytes{};

  auto operator<=>(const Incarnation&) const = default;
  std::string hex() const;
};

// `count` regions of `length` bytes, `stride` bytes apart, the first at `base`. Region i of the row
// has generation `generation + i`.
//
// Valid rows have count >= 1, end before 2^64, and where count > 1 neither are empty nor overlap
// (0 < length <= stride). encode() needs valid rows; decode() gives no others.
struct RegionRow {
  MemType kind = MemType::DRAM;
  uint64_t device = 0, base = 0, length = 0, stride = 0, count = 1;
  uint32_t key = 0;  // index into BackendSection::keys
  uint64_t generation = 0;

  auto operator<=>(const RegionRow&) const = default;
};

// What one backend of the agent needs to be reached, and its regions.
struct BackendSection {
  std::string backend = {};
  bool has_connection = false;
  std::string connection = {};
  std::vector<std::string> keys = {};  // each distinct value once
  std::vector<RegionRow> rows = {};

  bool operator==(const BackendSection&) const = default;
};

// An agent's metadata. Names and keys may hold any bytes. Secret: whoever has it may connect.
struct Blob {
  std::string agent;
  Incarnation incarnation;
  uint64_t created_unix_ns = 0;  // of the incarnation; for people to read, no order follows from it
  uint64_t sequence = 0;         // a later blob of an incarnation has a greater one
  std::array<uint8_t, 32> secret{};
  std::string host_id;
  uint64_t features = 0;
  bool partial = false;  // some of the agent's regions, or only connections
  std::vector<BackendSection> sections;

  bool operator==(const Blob&) const = default;
};

// decode(encode(b)) is b, except that within a section the rows come back ordered by kind, and
// within a kind rows of one region before rows of several.
//
// Size: per region of count 1 at most 8 bytes of base and as many bytes as it takes to tell apart
// the lengths, generations, devices and keys of a section. 16 for one key, device and lengths and
// generations that lie within 4 GiB and 2^32 of each other; 12 when the lengths are equal too.
std::string encode(const Blob& blob);

// Reads what somebody else made: every count is compared with the bytes that are there before
// memory is taken for it. MISMATCH says what is wrong, without quoting the bytes. Regions of a
// memory kind that this version does not know are left out.
Result<Blob> decode(std::string_view bytes);

// Sorts rows by (kind, device, length, key, base, generation) and makes one row of three and more
// that lie at equal distances and have consecutive generations. Rows of several regions stay what
// they are.
void compress(std::vector<RegionRow>& rows);

// --- notifications --------------------------------------------------------------------------

inline constexpr uint8_t kEnvelopeNotification = 1;
inline constexpr uint8_t kEnvelopeFailure = 2;  // a transfer that carried this notification failed
inline constexpr uint8_t kEnvelopeControl = 3;  // between libraries, not for users

// What surrounds a message on its way. Views: the bytes stay the caller's, those of a decoded
// envelope are in what was decoded.
struct Envelope {
  uint8_t kind = kEnvelopeNotification;
  std::string_view agent;  // of the sender
  Incarnation sender;
  uint64_t sequence = 0;
  std::string_view payload;
};
using EnvelopeView = Envelope;

// One allocation. The name may have up to 4 GiB.
std::string encodeEnvelope(const Envelope& envelope);

// Copies and allocates nothing unless it fails (MISMATCH). Kinds that it does not know are the
// caller's to drop.
Result<EnvelopeView> decodeEnvelope(std::string_view bytes);

// Features of a library, bits of Blob::features.
inline constexpr uint64_t kFeatureFence = 1;  // answers Control::kQuiesce

// What one library tells another, the payload of kEnvelopeControl. Later versions may append to it.
//
// About two agents of one name (kReplaced to kRival), and about memory whose transports cannot
// refuse a peer (kUser to kLeft; docs/guide/failures.md).
struct Control {
  static constexpr uint8_t kReplaced = 1;   // the sender took `other` for the holder of your name
  static constexpr uint8_t kStillHere = 2;  // the answer: the sender is alive all the same
  static constexpr uint8_t kRival = 3;      // `other` holds your name too

  static constexpr uint8_t kUser = 4;      // the sender will use your memory; `bytes`: its blob
  static constexpr uint8_t kQuiesce = 5;   // let go of the memory that the blob `bytes` lists
  static constexpr uint8_t kQuiesced = 6;  // the answer to `token`: nothing of it lands any more
  static constexpr uint8_t kLeft = 7;      // the sender uses your memory no longer

  uint8_t word = 0;
  Incarnation other;
  uint64_t created_unix_ns = 0;  // of `other`
  uint64_t token = 0;            // kUser: 1 when a thread makes progress there
  std::string bytes = {};

  bool aboutMemory() const { return word >= kUser && word <= kLeft; }

  bool operator==(const Control&) const = default;
};

std::string encodeControl(const Control& control);
Result<Control> decodeControl(std::string_view bytes);  // MISMATCH: it is cut

}  // namespace nixl::metadata
