#include "metadata/wire.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <tuple>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc32c.h"

namespace nixl::metadata {
namespace {

using namespace std::string_literals;

template <size_t N>
std::array<uint8_t, N> counting(uint8_t first) {
  std::array<uint8_t, N> bytes;
  for (size_t i = 0; i < N; ++i) bytes[i] = static_cast<uint8_t>(first + i);
  return bytes;
}

// The blobs of testdata/: never change them, add others.
Blob goldenFull() {
  Blob blob;
  blob.agent = "prefill-0";
  blob.incarnation = {counting<16>(0x10)};
  blob.created_unix_ns = 1'760'000'000'123'456'789;
  blob.sequence = 7;
  blob.secret = counting<32>(0x80);
  blob.host_id = "host\0id"s;
  blob.features = 0x8000000000000005;
  blob.sections = {
      {.backend = "ALPHA",
       .has_connection = true,
       .connection = "10.0.0.1:7777\xff\0"s,
       .keys = {"key-a", ""},
       .rows =
           {
               {MemType::DRAM, 0, 0x7f0000000000, 4096, 0, 1, 0, 11},
               {MemType::DRAM, 0, 0x7f0000100000, 8192, 0, 1, 0, 12},
               {MemType::DRAM, 0, 0x7f1000000000, 4096, 65536, 1000, 1, 13},
               {MemType::VRAM, 3, 0x200000000, uint64_t{1} << 33, 0, 1, 1, 1 << 20},
               {MemType::OBJ, 77, 0, 0, 0, 1, 0, 1},
           }},
      {.backend = "BETA", .has_connection = true, .connection = "", .keys = {}, .rows = {}},
  };
  return blob;
}

Blob goldenPartial() {
  Blob blob;
  blob.agent = "d\xc3\xa9"s + "code/\n" + "3";
  blob.incarnation = {counting<16>(0xf0)};
  blob.sequence = UINT64_MAX;
  blob.partial = true;
  blob.sections = {{.backend = "ALPHA",
                    .keys = {"k"},
                    .rows = {{MemType::FILE, 9, UINT64_MAX - 10, 10, 0, 1, 0, UINT64_MAX}}}};
  return blob;
}

std::string hexOf(std::string_view bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[static_cast<uint8_t>(bytes[i]) >> 4];
    text += kDigits[bytes[i] & 15];
    text += i % 32 == 31 || i + 1 == bytes.size() ? "\n" : "";
  }
  return text;
}

std::string fromHex(std::string_view text) {
  std::string digits, bytes;
  for (char c : text)
    if (std::isxdigit(static_cast<unsigned char>(c))) digits += c;
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

// NIXL_WRITE_GOLDEN=1 writes new files instead, for a new version of the format.
void checkGolden(const std::string& name, const Blob& blob) {
  std::string path = __FILE__;
  path = path.substr(0, path.rfind('/') + 1) + "testdata/" + name;
  if (std::getenv("NIXL_WRITE_GOLDEN") != nullptr) std::ofstream(path) << hexOf(encode(blob));
  std::ifstream file(path);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  ASSERT_FALSE(text.empty()) << "no " << path;
  EXPECT_EQ(hexOf(encode(blob)), text);
  Result<Blob> decoded = decode(fromHex(text));
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message();
  EXPECT_EQ(*decoded, blob);
}

TEST(Wire, GoldenFullBlobStaysReadableAndIsStillWritten) {
  checkGolden("blob_v1_full.hex", goldenFull());
}

TEST(Wire, GoldenPartialBlobStaysReadableAndIsStillWritten) {
  checkGolden("blob_v1_partial.hex", goldenPartial());
}

// Gives blobs a checksum and length that fit, so that what lies behind them is reached.
std::string sealed(std::string bytes) {
  bytes.resize(bytes.size() - 4);
  base::storeLittle(bytes.data() + 16, uint64_t{bytes.size() + 4});
  char crc[4];
  base::storeLittle(crc, base::crc32c(bytes.data(), bytes.size()));
  return bytes + std::string(crc, 4);
}

class RandomBlobs {
 public:
  explicit RandomBlobs(uint64_t seed) : engine_(seed) {}

  uint64_t upTo(uint64_t most) { return std::uniform_int_distribution<uint64_t>(0, most)(engine_); }

  // Of any size class, so that every width of column comes up.
  uint64_t number() {
    constexpr uint64_t kMost[] = {0, 3, UINT8_MAX, UINT16_MAX, UINT32_MAX, UINT64_MAX};
    return upTo(kMost[upTo(5)]);
  }

  std::string text() {
    std::string bytes(upTo(3) == 0 ? upTo(300) : upTo(12), '\0');
    for (char& c : bytes) c = static_cast<char>(upTo(255));
    return bytes;
  }

  RegionRow row(size_t keys) {
    RegionRow row;
    row.kind = static_cast<MemType>(upTo(kMemTypes - 1));
    row.device = number();
    row.key = static_cast<uint32_t>(upTo(keys - 1));
    row.length = number() >> 2;
    row.count = upTo(2) == 0 && row.length > 0 ? 1 + upTo(1 << 20) : 1;
    row.stride = row.count > 1 ? row.length + number() / 4 : 0;
    auto span = static_cast<unsigned __int128>(row.count - 1) * row.stride + row.length;
    if (span > UINT64_MAX) row.count = 1, row.stride = 0, span = row.length;
    row.base = std::min(number(), UINT64_MAX - static_cast<uint64_t>(span));
    row.generation = std::min(number(), UINT64_MAX - row.count);
    return row;
  }

  Blob blob() {
    Blob blob;
    blob.agent = text();
    for (uint8_t& byte : blob.incarnation.bytes) byte = static_cast<uint8_t>(upTo(255));
    for (uint8_t& byte : blob.secret) byte = static_cast<uint8_t>(upTo(255));
    blob.created_unix_ns = number();
    blob.sequence = number();
    blob.host_id = text();
    blob.features = number();
    blob.partial = upTo(1) == 1;
    for (uint64_t n = upTo(3); n > 0; --n) {
      BackendSection section;
      section.backend = text();
      section.has_connection = upTo(1) == 1;
      section.connection = text();
      for (uint64_t k = upTo(5); k > 0; --k) section.keys.push_back(text());
      if (!section.keys.empty())
        for (uint64_t r = upTo(2) == 0 ? upTo(2000) : upTo(5); r > 0; --r)
          section.rows.push_back(row(section.keys.size()));
      blob.sections.push_back(std::move(section));
    }
    return blob;
  }

 private:
  std::mt19937_64 engine_;
};

// The order that the format keeps.
void order(Blob& blob) {
  for (BackendSection& section : blob.sections)
    std::stable_sort(section.rows.begin(), section.rows.end(), [](const auto& a, const auto& b) {
      return std::pair(a.kind, a.count > 1) < std::pair(b.kind, b.count > 1);
    });
}

TEST(Wire, RandomBlobsComeBackAsTheyWere) {
  RandomBlobs random(1);
  for (int i = 0; i < 300; ++i) {
    Blob blob = random.blob();
    std::string bytes = encode(blob);
    Result<Blob> decoded = decode(bytes);
    ASSERT_TRUE(decoded.has_value()) << i << ": " << decoded.error().message();
    order(blob);
    ASSERT_EQ(*decoded, blob) << i;
    ASSERT_EQ(encode(*decoded), bytes) << i;
  }
}

TEST(Wire, BlobCutAtAnyByteIsRefused) {
  for (const Blob& blob : {goldenFull(), goldenPartial()}) {
    std::string bytes = encode(blob);
    for (size_t length = 0; length < bytes.size(); ++length) {
      Result<Blob> decoded = decode(std::string_view(bytes).substr(0, length));
      ASSERT_FALSE(decoded.has_value()) << length;
      EXPECT_EQ(decoded.error().code(), Errc::MISMATCH);
      EXPECT_NE(decoded.error().message().find("cut at byte " + std::to_string(length)),
                std::string::npos)
          << decoded.error().message();
    }
  }
}

TEST(Wire, BlobCutAtAnyByteAndSealedAgainIsNeverTheWholeOne) {
  Blob blob = goldenFull();
  std::string bytes = encode(blob);
  for (size_t length = 100; length < bytes.size(); ++length) {
    Result<Blob> decoded = decode(sealed(bytes.substr(0, length)));
    if (decoded.has_value()) {
      EXPECT_LT(decoded->sections.size(), blob.sections.size()) << length;
    }
  }
}

TEST(Wire, BlobWithAnyBitFlippedIsRefused) {
  std::string bytes = encode(goldenPartial());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    Result<Blob> decoded = decode(flipped);
    ASSERT_FALSE(decoded.has_value()) << bit;
    EXPECT_EQ(decoded.error().code(), Errc::MISMATCH);
  }
}

TEST(Wire, ForgedBytesWithAValidChecksumGiveOnlyValidRows) {
  RandomBlobs random(2);
  std::string bytes = encode(goldenFull());
  for (int i = 0; i < 20000; ++i) {
    std::string forged = bytes;
    for (uint64_t n = 1 + random.upTo(3); n > 0; --n)
      forged[random.upTo(forged.size() - 5)] = static_cast<char>(random.upTo(255));
    Result<Blob> decoded = decode(sealed(forged));
    if (!decoded.has_value()) continue;
    for (const BackendSection& section : decoded->sections)
      for (const RegionRow& row : section.rows) {
        ASSERT_LT(row.key, section.keys.size());
        ASSERT_GE(row.count, 1u);
        auto end = static_cast<unsigned __int128>(row.count - 1) * row.stride + row.length;
        ASSERT_LE(end + row.base, UINT64_MAX);
      }
  }
}

struct Refusal {
  const char* name;
  std::string bytes;
  const char* says;
};

std::string withByte(std::string bytes, size_t at, char value) {
  bytes[at] = value;
  return bytes;
}

class WireRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(WireRefuses, AndSaysWhy) {
  Result<Blob> decoded = decode(GetParam().bytes);
  ASSERT_FALSE(decoded.has_value());
  EXPECT_EQ(decoded.error().code(), Errc::MISMATCH);
  EXPECT_NE(decoded.error().message().find(GetParam().says), std::string::npos)
      << decoded.error().message();
}

INSTANTIATE_TEST_SUITE_P(
    Blobs, WireRefuses,
    testing::Values(
        Refusal{"Text", "hello, is this an agent?", "something else"},
        Refusal{"ForeignLibrary", "nixlSerDes|Agent", "another NIXL library"},
        Refusal{"NewerVersion", withByte(encode(goldenFull()), 8, 2), "version 2, newer"},
        Refusal{"OlderVersion", withByte(encode(goldenFull()), 8, 0), "version 0, older"},
        Refusal{"Oversize", encode(goldenFull()) + "x", "followed by 1 others"},
        Refusal{"Twice", encode(goldenPartial()) + encode(goldenPartial()), "followed by"},
        Refusal{"Damaged", withByte(encode(goldenFull()), 110, 'x'), "checksum"},
        Refusal{"MacBeyondTheEnd", sealed(withByte(encode(goldenFull()), 14, 1)), "MAC"},
        Refusal{"NameBeyondTheEnd", sealed(withByte(encode(goldenFull()), 98, 1)), "name"},
        Refusal{"RecordBeyondTheEnd", sealed(withByte(encode(goldenPartial()), 121, 1)), "record"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Wire, HugeCountsTakeNoMemory) {
  // Every byte of the records in turn made huge: this must neither throw bad_alloc nor take long.
  std::string bytes = encode(goldenPartial());
  for (size_t at = 96; at < bytes.size() - 4; ++at)
    for (size_t n : {1, 3, 4, 7})
      if (at + n < bytes.size() - 4) {
        std::string forged = bytes;
        std::fill_n(forged.begin() + static_cast<ptrdiff_t>(at), n, '\xff');
        (void)decode(sealed(forged));
      }
}

TEST(Wire, LaterVersionsMayAppendRecordsFieldsAndAMac) {
  Blob blob = goldenPartial();
  std::string bytes = encode(blob);
  bytes.resize(bytes.size() - 4);
  // A field behind those of the section: its record is the last thing in the blob.
  size_t record_at = 96 + 4 + blob.agent.size() + 4 + blob.host_id.size();
  uint64_t length = base::loadLittle<uint64_t>(bytes.data() + record_at + 4);
  ASSERT_EQ(record_at + 12 + length, bytes.size());
  base::storeLittle(bytes.data() + record_at + 4, length + 5);
  bytes += "field";
  // A record with a tag nobody knows yet.
  base::ByteWriter record;
  record.u32(0xabcd);
  record.u64(6);
  record.raw("future");
  bytes += record.take();
  // A MAC.
  base::storeLittle(bytes.data() + 12, uint32_t{32});
  bytes += std::string(32, 'm');

  Result<Blob> decoded = decode(sealed(bytes + "crc."));
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message();
  EXPECT_EQ(*decoded, blob);
}

TEST(Wire, RegionsOfAnUnknownKindAreLeftOut) {
  Blob blob = goldenFull();
  blob.sections[0].rows.push_back({static_cast<MemType>(200), 1, 2, 3, 0, 1, 0, 4});
  Result<Blob> decoded = decode(encode(blob));
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message();
  EXPECT_EQ(*decoded, goldenFull());
}

// 10,000 regions that no rule describes.
std::vector<RegionRow> irregular(bool equal_lengths) {
  RandomBlobs random(3);
  std::vector<RegionRow> rows;
  uint64_t base = 0x7f0000000000;
  for (uint64_t i = 0; i < 10000; ++i) {
    uint64_t length = equal_lengths ? 4096 : 1 + random.upTo(1 << 20);
    base += (1 << 20) + 4096 * random.upTo(100000);
    rows.push_back({MemType::DRAM, 0, base, length, 0, 1, 0, 5 + random.upTo(1 << 30)});
  }
  return rows;
}

TEST(Wire, IrregularRegionsWithOneKeyTakeAtMost16Bytes) {
  Blob blob = goldenFull();
  blob.sections.resize(1);
  blob.sections[0].rows.clear();
  size_t without = encode(blob).size();
  for (bool equal_lengths : {true, false}) {
    std::vector<RegionRow> rows = irregular(equal_lengths);
    compress(rows);
    EXPECT_GT(rows.size(), 9990u);
    blob.sections[0].rows = rows;
    double each = static_cast<double>(encode(blob).size() - without) / 10000;
    EXPECT_LE(each, equal_lengths ? 12.1 : 16.1);
  }
}

TEST(Wire, StridedListsTakeARowEach) {
  Blob blob;
  blob.sections = {{.backend = "ALPHA", .keys = {"k"}}};
  for (uint64_t i = 0; i < 64; ++i)
    blob.sections[0].rows.push_back(
        {MemType::VRAM, i / 8, i << 36, 4096, 8192, 16384, 0, i * 16384});
  EXPECT_LT(encode(blob).size(), 64 * 24 + 300u);
}

TEST(Wire, TenThousandRegionsDecodeQuickly) {
  Blob blob = goldenFull();
  blob.sections[0].rows = irregular(false);
  std::string bytes = encode(blob);
  uint64_t best = UINT64_MAX;
  for (int i = 0; i < 20; ++i) {
    uint64_t start = base::nowNs();
    Result<Blob> decoded = decode(bytes);
    best = std::min(best, base::nowNs() - start);
    ASSERT_TRUE(decoded.has_value());
  }
  RecordProperty("best_us", static_cast<int>(best / 1000));
  std::printf("decode of 10,000 regions: %.0f us\n", static_cast<double>(best) / 1000);
}

TEST(Compress, MakesOneRowOfRegularRegions) {
  std::vector<RegionRow> rows;
  for (uint64_t i = 0; i < 100; ++i)
    rows.push_back({MemType::DRAM, 0, 4096 + 512 * i, 256, 0, 1, 2, 40 + i});
  std::shuffle(rows.begin(), rows.end(), std::mt19937(1));
  compress(rows);
  EXPECT_EQ(rows, (std::vector<RegionRow>{{MemType::DRAM, 0, 4096, 256, 512, 100, 2, 40}}));
}

struct CompressCase {
  const char* name;
  std::vector<RegionRow> rows;
  size_t left;
};

class CompressKeeps : public testing::TestWithParam<CompressCase> {};

TEST_P(CompressKeeps, WhatIsNoRun) {
  std::vector<RegionRow> rows = GetParam().rows;
  compress(rows);
  EXPECT_EQ(rows.size(), GetParam().left);
  EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return std::tie(a.kind, a.device, a.length, a.key, a.base) <
           std::tie(b.kind, b.device, b.length, b.key, b.base);
  }));
}

constexpr auto kDram = MemType::DRAM;

INSTANTIATE_TEST_SUITE_P(
    Rows, CompressKeeps,
    testing::Values(
        CompressCase{"Nothing", {}, 0},
        CompressCase{"One", {{kDram, 0, 0, 8, 0, 1, 0, 1}}, 1},
        CompressCase{"Two", {{kDram, 0, 0, 8, 0, 1, 0, 1}, {kDram, 0, 8, 8, 0, 1, 0, 2}}, 2},
        CompressCase{"Touching",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 0, 8, 8, 0, 1, 0, 2},
                      {kDram, 0, 16, 8, 0, 1, 0, 3}},
                     1},
        CompressCase{"OtherDevice",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 1, 8, 8, 0, 1, 0, 2},
                      {kDram, 0, 16, 8, 0, 1, 0, 3}},
                     3},
        CompressCase{"OtherKey",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 0, 8, 8, 0, 1, 1, 2},
                      {kDram, 0, 16, 8, 0, 1, 0, 3}},
                     3},
        CompressCase{"GenerationGap",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 0, 8, 8, 0, 1, 0, 2},
                      {kDram, 0, 16, 8, 0, 1, 0, 4}},
                     3},
        CompressCase{"UnequalDistances",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 0, 8, 8, 0, 1, 0, 2},
                      {kDram, 0, 24, 8, 0, 1, 0, 3}},
                     3},
        CompressCase{"Overlapping",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 0, 4, 8, 0, 1, 0, 2},
                      {kDram, 0, 8, 8, 0, 1, 0, 3}},
                     3},
        CompressCase{"Empty",
                     {{kDram, 0, 0, 0, 0, 1, 0, 1},
                      {kDram, 0, 8, 0, 0, 1, 0, 2},
                      {kDram, 0, 16, 0, 0, 1, 0, 3}},
                     3},
        CompressCase{"TwoRuns",
                     {{kDram, 0, 0, 8, 0, 1, 0, 1},
                      {kDram, 0, 8, 8, 0, 1, 0, 2},
                      {kDram, 0, 16, 8, 0, 1, 0, 3},
                      {kDram, 0, 32, 8, 0, 1, 0, 4},
                      {kDram, 0, 48, 8, 0, 1, 0, 5},
                      {kDram, 0, 64, 8, 0, 1, 0, 6}},
                     2},
        CompressCase{"RowsAlready",
                     {{kDram, 0, 0, 8, 8, 4, 0, 1}, {kDram, 0, 32, 8, 8, 4, 0, 5}},
                     2}),
    [](const auto& info) { return std::string(info.param.name); });

// All single regions that the rows stand for.
std::vector<RegionRow> expanded(const std::vector<RegionRow>& rows) {
  std::vector<RegionRow> singles;
  for (const RegionRow& row : rows)
    for (uint64_t i = 0; i < row.count; ++i)
      singles.push_back({row.kind, row.device, row.base + i * row.stride, row.length, 0, 1, row.key,
                         row.generation + i});
  std::sort(singles.begin(), singles.end());
  return singles;
}

TEST(Compress, LosesAndInventsNothing) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 300; ++round) {
    std::vector<RegionRow> rows;
    uint64_t generation = 1;
    for (int i = 0; i < 200; ++i) {
      uint64_t length = 8 << (i / 20) % 2;
      uint64_t base = random() % 4 == 0 ? 8 * (random() % 4000) : 16 * generation;
      rows.push_back({random() % 8 == 0 ? MemType::VRAM : MemType::DRAM, random() % 8 == 0, base,
                      length, 0, 1, static_cast<uint32_t>(random() % 16 == 0), generation});
      generation += 1 + (random() % 16 == 0);
    }
    std::vector<RegionRow> before = expanded(rows);
    compress(rows);
    EXPECT_LT(rows.size(), before.size());
    EXPECT_EQ(expanded(rows), before);
  }
}

TEST(Incarnation, IsShownInHex) {
  EXPECT_EQ(Incarnation{counting<16>(0x7a)}.hex(), "7a7b7c7d7e7f80818283848586878889");
}

TEST(Envelope, ComesBackAsItWas) {
  for (std::string name : {""s, "a"s, "b\0c"s, std::string(100000, 'n')})
    for (std::string payload : {""s, "done"s, std::string(1 << 20, '\xfe')}) {
      Envelope sent{kEnvelopeFailure, name, {counting<16>(1)}, 0x123456789abcdef0, payload};
      std::string bytes = encodeEnvelope(sent);
      EXPECT_EQ(bytes.size(), 40 + name.size() + payload.size());
      Result<EnvelopeView> got = decodeEnvelope(bytes);
      ASSERT_TRUE(got.has_value()) << got.error().message();
      EXPECT_EQ(got->kind, sent.kind);
      EXPECT_EQ(got->agent, sent.agent);
      EXPECT_EQ(got->sender, sent.sender);
      EXPECT_EQ(got->sequence, sent.sequence);
      EXPECT_EQ(got->payload, sent.payload);
    }
}

TEST(Envelope, GoldenBytesStayReadableAndAreStillWritten) {
  Envelope sent{kEnvelopeNotification, "ab", {counting<16>(0xa0)}, 258, "hi"};
  constexpr char kGolden[] =
      "4e01010002000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf0201000000000000\n020000000000000061626869\n";
  EXPECT_EQ(hexOf(encodeEnvelope(sent)), kGolden);
  EXPECT_EQ(decodeEnvelope(fromHex(kGolden))->payload, "hi");
}

TEST(Envelope, CutShortIsRefused) {
  std::string bytes = encodeEnvelope({kEnvelopeNotification, "agent", {}, 1, "text"});
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(decodeEnvelope(std::string_view(bytes).substr(0, length)).has_value()) << length;
}

TEST(Control, ComesBackAsItWasAndItsGoldenBytesStay) {
  const Control sent{Control::kRival, {counting<16>(0x10)}, 258};
  EXPECT_EQ(hexOf(encodeControl(sent)), "03101112131415161718191a1b1c1d1e1f0201000000000000\n");
  EXPECT_EQ(*decodeControl(encodeControl(sent)), sent);
  EXPECT_EQ(*decodeControl(encodeControl(sent) + "of a later version"), sent);
}

TEST(Control, AboutMemoryItHasMore) {
  const Control sent{Control::kQuiesce, {}, 0, 0x0102, std::string("a\0b", 3)};
  EXPECT_EQ(hexOf(encodeControl(sent)),
            "0500000000000000000000000000000000000000000000000002010000000000\n"
            "000300000000000000610062\n");
  EXPECT_EQ(*decodeControl(encodeControl(sent)), sent);
  EXPECT_EQ(*decodeControl(encodeControl(sent) + "of a later version"), sent);
  const std::string bytes = encodeControl(sent);
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(decodeControl(std::string_view(bytes).substr(0, length)).has_value()) << length;
}

TEST(Control, CutShortIsRefused) {
  const std::string bytes = encodeControl({Control::kReplaced, {}, 1});
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(decodeControl(std::string_view(bytes).substr(0, length)).has_value()) << length;
}

TEST(Envelope, OfAnotherKindOfMessageIsRefused) {
  std::string bytes = encodeEnvelope({kEnvelopeNotification, "agent", {}, 1, "text"});
  EXPECT_EQ(decodeEnvelope(withByte(bytes, 0, 'x')).error().code(), Errc::MISMATCH);
  Result<EnvelopeView> newer = decodeEnvelope(withByte(bytes, 1, 2));
  ASSERT_FALSE(newer.has_value());
  EXPECT_NE(newer.error().message().find("version 2"), std::string::npos);
  EXPECT_FALSE(decodeEnvelope(withByte(bytes, 7, '\x7f')).has_value());  // name of 2 GiB
}

}  // namespace
}  // namespace nixl::metadata
