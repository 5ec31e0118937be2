#include "metadata/wire.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>
#include <tuple>
#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"

namespace nixl::metadata {

// The blob, all numbers little-endian:
//
//    0  magic, 8 bytes        24  incarnation, 16 bytes    64  secret, 32 bytes
//    8  u16 version           40  u64 created_unix_ns      96  u32 length, agent
//   10  u16 flags             48  u64 sequence                 u32 length, host_id
//   12  u32 bytes of MAC      56  u64 features                 records
//   16  u64 bytes of it all                                    MAC, then u32 CRC32C of all before
//
// A record is u32 tag, u64 length, and that many bytes. Unknown tags are skipped, and so is what
// stands behind the known fields of a record: so that later versions of this library may add to
// both without a new version of the format. A MAC is skipped here: who has the key checks it first.
//
// A section record: backend, u8 has_connection, connection, u32 number of keys, keys, u32 number of
// groups, groups. Texts are a u32 length and bytes.
//
// A group is a table of rows of one kind, by columns: u8 kind, u8 bytes per value for each of the
// seven columns, u64 number of rows, u64 smallest value for each column, then the columns, each
// value as its distance from the smallest. A column with 0 bytes per value holds one value
// throughout; base always has 4 or 8, so that the number of rows is bounded by the bytes there are.
namespace {

using base::ByteReader;
using base::ByteWriter;

constexpr std::string_view kMagic("\x93NIXLMD\n", 8);
constexpr std::string_view kForeignMagic = "nixlSerDes|";  // of the library that others use
constexpr uint16_t kVersion = 1;
constexpr uint16_t kFlagPartial = 1;
constexpr size_t kTotalAt = 16;
constexpr size_t kHeadBytes = 96;
constexpr size_t kCrcBytes = 4;
constexpr uint32_t kTagSection = 1;
constexpr size_t kRecordHeadBytes = 12;

constexpr size_t kColumns = 7;
constexpr size_t kBase = 0;
constexpr size_t kKey = 5;
constexpr size_t kGroupHeadBytes = 1 + kColumns + 8 + 8 * kColumns;

using Columns = std::array<uint64_t, kColumns>;
using Widths = std::array<uint8_t, kColumns>;

Columns columnsOf(const RegionRow& row) {
  return {row.base, row.length, row.stride, row.count, row.device, row.key, row.generation};
}

uint8_t widthOf(size_t column, uint64_t span) {
  if (span > UINT32_MAX) return 8;
  if (span > UINT16_MAX || column == kBase) return 4;
  if (span > UINT8_MAX) return 2;
  return span > 0 ? 1 : 0;
}

template <typename T>
void writeColumn(std::span<const RegionRow* const> rows, size_t column, uint64_t smallest,
                 char* to) {
  for (const RegionRow* row : rows) {
    base::storeLittle(to, static_cast<T>(columnsOf(*row)[column] - smallest));
    to += sizeof(T);
  }
}

void writeGroup(ByteWriter& out, std::span<const RegionRow* const> rows) {
  Columns least = columnsOf(*rows.front()), most = least;
  for (const RegionRow* row : rows) {
    Columns values = columnsOf(*row);
    for (size_t c = 0; c < kColumns; ++c) {
      least[c] = std::min(least[c], values[c]);
      most[c] = std::max(most[c], values[c]);
    }
  }
  Widths widths;
  size_t row_bytes = 0;
  for (size_t c = 0; c < kColumns; ++c) {
    widths[c] = widthOf(c, most[c] - least[c]);
    row_bytes += widths[c];
  }

  out.u8(static_cast<uint8_t>(rows.front()->kind));
  for (uint8_t width : widths) out.u8(width);
  out.u64(rows.size());
  for (uint64_t value : least) out.u64(value);

  std::string table(row_bytes * rows.size(), '\0');
  char* to = table.data();
  for (size_t c = 0; c < kColumns; ++c) {
    switch (widths[c]) {
      case 1: writeColumn<uint8_t>(rows, c, least[c], to); break;
      case 2: writeColumn<uint16_t>(rows, c, least[c], to); break;
      case 4: writeColumn<uint32_t>(rows, c, least[c], to); break;
      case 8: writeColumn<uint64_t>(rows, c, least[c], to); break;
      default: break;
    }
    to += widths[c] * rows.size();
  }
  out.raw(table);
}

// Which group a row goes to. Rows of one region have neither stride nor count to tell; a single
// strided row among them would give those columns to all.
std::pair<MemType, bool> groupOf(const RegionRow& row) { return {row.kind, row.count > 1}; }

void writeSection(ByteWriter& out, const BackendSection& section) {
  std::map<std::pair<MemType, bool>, std::vector<const RegionRow*>> groups;
  for (const RegionRow& row : section.rows) groups[groupOf(row)].push_back(&row);

  out.u32(kTagSection);
  size_t length_at = out.size();
  out.u64(0);
  out.bytes(section.backend);
  out.u8(section.has_connection ? 1 : 0);
  out.bytes(section.connection);
  out.u32(static_cast<uint32_t>(section.keys.size()));
  for (const std::string& key : section.keys) out.bytes(key);
  out.u32(static_cast<uint32_t>(groups.size()));
  for (const auto& [group, rows] : groups) writeGroup(out, rows);
  out.putU64(length_at, out.size() - length_at - 8);
}

template <typename... Args>
Status mismatch(fmt::format_string<Args...> format, Args&&... args) {
  return {Errc::MISMATCH, "metadata " + fmt::format(format, std::forward<Args>(args)...)};
}

bool isValid(const RegionRow& row, size_t keys) {
  if (row.count == 0 || row.key >= keys || row.count - 1 > UINT64_MAX - row.generation)
    return false;
  if (row.count > 1 && (row.length == 0 || row.stride < row.length)) return false;
  auto span = static_cast<unsigned __int128>(row.count - 1) * row.stride + row.length;
  return span <= UINT64_MAX - row.base;
}

template <typename T>
void readColumn(std::span<Columns> rows, size_t column, const char* from) {
  for (Columns& row : rows) {
    row[column] += base::loadLittle<T>(from);
    from += sizeof(T);
  }
}

// A table in bounded steps, so that it is not in memory twice.
constexpr size_t kStepRows = 256;

Status readGroup(ByteReader& in, size_t keys, std::vector<RegionRow>& rows) {
  uint8_t kind = in.u8();
  Widths widths;
  for (uint8_t& width : widths) width = in.u8();
  uint64_t count = in.u64();
  Columns least;
  for (uint64_t& value : least) value = in.u64();
  if (!in.ok()) return mismatch("is damaged: a group of regions is cut");

  size_t row_bytes = 0;
  for (uint8_t width : widths) {
    if (width > 8 || (width & (width - 1)) != 0)
      return mismatch("is damaged: a column of regions has {} bytes per value", width);
    row_bytes += width;
  }
  if (widths[kBase] < 4)
    return mismatch("is damaged: a column of addresses has {} bytes per value", widths[kBase]);
  if (!in.fits(count, row_bytes))
    return mismatch("is damaged: {} regions of {} bytes are announced, {} bytes are there", count,
                    row_bytes, in.remaining());
  std::array<const char*, kColumns> from;
  for (size_t c = 0; c < kColumns; ++c) from[c] = in.view(widths[c] * count).data();
  if (kind >= kMemTypes) return {};

  rows.reserve(rows.size() + count);
  std::array<Columns, kStepRows> step;
  for (uint64_t done = 0; done < count;) {
    size_t n = std::min<uint64_t>(kStepRows, count - done);
    std::span<Columns> part(step.data(), n);
    std::fill(part.begin(), part.end(), least);
    for (size_t c = 0; c < kColumns; ++c) {
      switch (widths[c]) {
        case 1: readColumn<uint8_t>(part, c, from[c]); break;
        case 2: readColumn<uint16_t>(part, c, from[c]); break;
        case 4: readColumn<uint32_t>(part, c, from[c]); break;
        case 8: readColumn<uint64_t>(part, c, from[c]); break;
        default: break;
      }
      from[c] += widths[c] * n;
    }
    for (const Columns& v : part) {
      RegionRow row{static_cast<MemType>(kind), v[4], v[0], v[1], v[2], v[3],
                    static_cast<uint32_t>(v[kKey]), v[6]};
      if (v[kKey] > UINT32_MAX || !isValid(row, keys))
        return mismatch("is damaged: a region row is impossible (base {:#x}, {} bytes, {} times, "
                        "{} apart, key {} of {})",
                        row.base, row.length, row.count, row.stride, v[kKey], keys);
      rows.push_back(row);
    }
    done += n;
  }
  return {};
}

Result<BackendSection> readSection(ByteReader in) {
  BackendSection section;
  section.backend = in.bytes();
  section.has_connection = in.u8() != 0;
  section.connection = in.bytes();
  uint32_t keys = in.u32();
  if (!in.ok()) return mismatch("is damaged: a backend's record is cut");
  if (!in.fits(keys, 4))
    return mismatch("is damaged: {} keys are announced, {} bytes are there", keys, in.remaining());
  section.keys.reserve(keys);
  for (uint32_t i = 0; i < keys && in.ok(); ++i) section.keys.emplace_back(in.bytes());
  uint32_t groups = in.u32();
  if (!in.ok()) return mismatch("is damaged: the keys of a backend are cut");
  if (!in.fits(groups, kGroupHeadBytes))
    return mismatch("is damaged: {} groups of regions are announced, {} bytes are there", groups,
                    in.remaining());
  for (uint32_t i = 0; i < groups; ++i)
    NIXL_TRY(readGroup(in, section.keys.size(), section.rows));
  return section;
}

// What can be told without trusting a byte: that it is ours, of our version, whole and undamaged.
Status checkFrame(std::string_view bytes) {
  if (bytes.substr(0, kMagic.size()) != kMagic.substr(0, bytes.size())) {
    if (bytes.starts_with(kForeignMagic))
      return mismatch("was made by another NIXL library (it begins with \"{}\"); use one library "
                      "on both sides",
                      kForeignMagic);
    return mismatch("expected, but these {} bytes are something else", bytes.size());
  }
  if (bytes.size() < kTotalAt + 8) return mismatch("is cut at byte {}", bytes.size());
  auto version = base::loadLittle<uint16_t>(bytes.data() + kMagic.size());
  if (version != kVersion)
    return mismatch("has version {}, {} than version {}, which this library reads; use one library "
                    "version on both sides",
                    version, version > kVersion ? "newer" : "older", kVersion);
  auto total = base::loadLittle<uint64_t>(bytes.data() + kTotalAt);
  if (total > bytes.size()) return mismatch("is cut at byte {} of {}", bytes.size(), total);
  if (total < bytes.size())
    return mismatch("of {} bytes is followed by {} others", total, bytes.size() - total);
  if (total < kHeadBytes + kCrcBytes)
    return mismatch("is damaged: its length is given as {} bytes", total);
  size_t crc_at = bytes.size() - kCrcBytes;
  if (base::loadLittle<uint32_t>(bytes.data() + crc_at) != base::crc32c(bytes.data(), crc_at))
    return mismatch("of {} bytes is damaged: its checksum differs", bytes.size());
  return {};
}

}  // namespace

std::string Incarnation::hex() const {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string encode(const Blob& blob) {
  ByteWriter out;
  size_t bytes = kHeadBytes + blob.agent.size() + blob.host_id.size() + 64;
  for (const BackendSection& section : blob.sections) {
    bytes += section.backend.size() + section.connection.size() + 16 * section.rows.size() + 256;
    for (const std::string& key : section.keys) bytes += 4 + key.size();
  }
  out.reserve(bytes);

  out.raw(kMagic);
  out.u16(kVersion);
  out.u16(blob.partial ? kFlagPartial : 0);
  out.u32(0);  // no MAC
  out.u64(0);
  out.raw(blob.incarnation.bytes.data(), blob.incarnation.bytes.size());
  out.u64(blob.created_unix_ns);
  out.u64(blob.sequence);
  out.u64(blob.features);
  out.raw(blob.secret.data(), blob.secret.size());
  out.bytes(blob.agent);
  out.bytes(blob.host_id);
  for (const BackendSection& section : blob.sections) writeSection(out, section);
  out.putU64(kTotalAt, out.size() + kCrcBytes);
  out.u32(base::crc32c(out.view().data(), out.size()));
  return out.take();
}

Result<Blob> decode(std::string_view bytes) {
  NIXL_TRY(checkFrame(bytes));
  Blob blob;
  ByteReader head(bytes.substr(kMagic.size() + 2));
  blob.partial = (head.u16() & kFlagPartial) != 0;
  uint32_t mac_bytes = head.u32();
  if (mac_bytes > bytes.size() - kHeadBytes - kCrcBytes)
    return mismatch("is damaged: {} bytes of MAC are announced", mac_bytes);

  ByteReader in(bytes.substr(kTotalAt + 8, bytes.size() - kTotalAt - 8 - kCrcBytes - mac_bytes));
  in.copy(blob.incarnation.bytes.data(), blob.incarnation.bytes.size());
  blob.created_unix_ns = in.u64();
  blob.sequence = in.u64();
  blob.features = in.u64();
  in.copy(blob.secret.data(), blob.secret.size());
  blob.agent = in.bytes();
  blob.host_id = in.bytes();
  if (!in.ok()) return mismatch("is damaged: a name is longer than the bytes that are there");
  while (in.remaining() >= kRecordHeadBytes) {
    uint32_t tag = in.u32();
    std::string_view record = in.view(in.u64());
    if (!in.ok()) return mismatch("is damaged: a record is longer than the bytes that are there");
    if (tag != kTagSection) continue;
    NIXL_ASSIGN_OR_RETURN(BackendSection section, readSection(ByteReader(record)));
    blob.sections.push_back(std::move(section));
  }
  if (in.remaining() != 0)
    return mismatch("is damaged: {} bytes at its end are no record", in.remaining());
  return blob;
}

void compress(std::vector<RegionRow>& rows) {
  for (RegionRow& row : rows)
    if (row.count == 1) row.stride = 0;
  auto order = [](const RegionRow& a, const RegionRow& b) {
    auto tie = [](const RegionRow& r) {
      return std::tie(r.kind, r.device, r.length, r.key, r.base, r.generation, r.count, r.stride);
    };
    return tie(a) < tie(b);
  };
  if (!std::is_sorted(rows.begin(), rows.end(), order)) std::sort(rows.begin(), rows.end(), order);

  // True if `next` may follow `row` as the next region of a row.
  auto follows = [](const RegionRow& row, const RegionRow& next) {
    return row.count == 1 && next.count == 1 && next.kind == row.kind &&
           next.device == row.device && next.length == row.length && next.key == row.key &&
           next.length > 0 && next.base - row.base >= row.length &&
           next.generation == row.generation + 1 && next.generation != 0;
  };
  size_t kept = 0;
  for (size_t first = 0; first < rows.size();) {
    size_t end = first + 1;
    if (end < rows.size() && follows(rows[first], rows[end])) {
      uint64_t stride = rows[end].base - rows[first].base;
      ++end;
      while (end < rows.size() && follows(rows[end - 1], rows[end]) &&
             rows[end].base - rows[end - 1].base == stride)
        ++end;
      // Any two regions lie at equal distances: that says nothing, and saves nothing.
      if (end - first < 3) {
        end = first + 1;
      } else {
        rows[first].stride = stride;
        rows[first].count = end - first;
      }
    }
    rows[kept++] = rows[first];
    first = end;
  }
  rows.resize(kept);
}

// An envelope: u8 'N', u8 version, u8 kind, u8 zero, u32 length of the name, 16 bytes of sender,
// u64 sequence, name; the rest is the payload. Its length and integrity are the carrier's business.
namespace {
constexpr uint8_t kEnvelopeMark = 'N';
constexpr uint8_t kEnvelopeVersion = 1;
constexpr size_t kEnvelopeHeadBytes = 40;
}  // namespace

std::string encodeEnvelope(const Envelope& envelope) {
  ByteWriter out;
  out.reserve(kEnvelopeHeadBytes + envelope.agent.size() + envelope.payload.size());
  char head[kEnvelopeHeadBytes] = {static_cast<char>(kEnvelopeMark),
                                   static_cast<char>(kEnvelopeVersion),
                                   static_cast<char>(envelope.kind)};
  base::storeLittle(head + 4, static_cast<uint32_t>(envelope.agent.size()));
  std::copy(envelope.sender.bytes.begin(), envelope.sender.bytes.end(), head + 8);
  base::storeLittle(head + 24, envelope.sequence);
  base::storeLittle(head + 32, uint64_t{envelope.payload.size()});
  out.raw(head, sizeof(head));
  out.raw(envelope.agent);
  out.raw(envelope.payload);
  return out.take();
}

Result<EnvelopeView> decodeEnvelope(std::string_view bytes) {
  ByteReader in(bytes);
  EnvelopeView envelope;
  uint8_t mark = in.u8();
  uint8_t version = in.u8();
  envelope.kind = in.u8();
  in.u8();
  uint32_t name_bytes = in.u32();
  in.copy(envelope.sender.bytes.data(), envelope.sender.bytes.size());
  envelope.sequence = in.u64();
  const uint64_t payload_bytes = in.u64();
  if (!in.ok() || mark != kEnvelopeMark)
    return {Errc::MISMATCH, fmt::format("message of {} bytes is no envelope", bytes.size())};
  if (version != kEnvelopeVersion)
    return {Errc::MISMATCH, fmt::format("message has version {}; this library reads version {}",
                                        version, kEnvelopeVersion)};
  envelope.agent = in.view(name_bytes);
  if (!in.ok())
    return {Errc::MISMATCH, fmt::format("message of {} bytes is cut: its sender's name has {}",
                                        bytes.size(), name_bytes)};
  if (payload_bytes != in.remaining())
    return {Errc::MISMATCH, fmt::format("message of {} bytes is not whole: it announces {} and {} "
                                        "came",
                                        bytes.size(), payload_bytes, in.remaining())};
  envelope.payload = in.view(in.remaining());
  return envelope;
}

// A control message: u8 word, 16 bytes of incarnation, u64 when it was made; about memory also
// u64 token, u64 length of its bytes, and these.
std::string encodeControl(const Control& control) {
  ByteWriter out;
  out.u8(control.word);
  out.raw(control.other.bytes.data(), control.other.bytes.size());
  out.u64(control.created_unix_ns);
  if (control.aboutMemory()) {
    out.u64(control.token);
    out.u64(control.bytes.size());
    out.raw(control.bytes);
  }
  return out.take();
}

Result<Control> decodeControl(std::string_view bytes) {
  ByteReader in(bytes);
  Control control;
  control.word = in.u8();
  in.copy(control.other.bytes.data(), control.other.bytes.size());
  control.created_unix_ns = in.u64();
  if (control.aboutMemory()) {
    control.token = in.u64();
    control.bytes = in.view(in.u64());
  }
  if (!in.ok())
    return {Errc::MISMATCH, fmt::format("control message of {} bytes is cut", bytes.size())};
  return control;
}

}  // namespace nixl::metadata
