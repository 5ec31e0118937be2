#include "base/bytes.h"

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

using namespace std::string_literals;

TEST(ByteWriter, IsLittleEndian) {
  ByteWriter writer;
  writer.u8(0x01);
  writer.u16(0x0203);
  writer.u32(0x04050607);
  writer.u64(0x08090a0b0c0d0e0f);
  writer.bytes("ab");
  writer.raw("c");
  EXPECT_EQ(writer.take(),
            "\x01\x03\x02\x07\x06\x05\x04\x0f\x0e\x0d\x0c\x0b\x0a\x09\x08\x02\0\0\0abc"s);
  EXPECT_EQ(writer.size(), 0u);
}

TEST(ByteWriter, FillsInWhatItLearnsLater) {
  ByteWriter writer;
  writer.u32(0);
  writer.u64(0);
  writer.putU32(0, 7);
  writer.putU64(4, 8);
  ByteReader reader(writer.view());
  EXPECT_EQ(reader.u32(), 7u);
  EXPECT_EQ(reader.u64(), 8u);
  EXPECT_THROW(writer.putU32(9, 1), std::out_of_range);
}

TEST(ByteReader, GivesBackWhatWasWritten) {
  ByteWriter writer;
  writer.u8(200);
  writer.u16(65535);
  writer.u32(4000000000);
  writer.u64(UINT64_MAX);
  writer.bytes("");
  writer.bytes("a\0b"s);
  std::string written = writer.take();

  ByteReader reader(written);
  EXPECT_EQ(reader.u8(), 200);
  EXPECT_EQ(reader.u16(), 65535);
  EXPECT_EQ(reader.u32(), 4000000000u);
  EXPECT_EQ(reader.u64(), UINT64_MAX);
  EXPECT_EQ(reader.bytes(), "");
  EXPECT_EQ(reader.bytes(), "a\0b"s);
  EXPECT_TRUE(reader.ok());
  EXPECT_EQ(reader.remaining(), 0u);
}

TEST(ByteReader, GivesNothingAfterAShortRead) {
  ByteReader reader("abc");
  EXPECT_EQ(reader.u32(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.u8(), 0);  // though there had been bytes for it
  EXPECT_EQ(reader.view(1), "");
  EXPECT_EQ(reader.bytes(), "");
  EXPECT_EQ(reader.remaining(), 0u);
}

TEST(ByteReader, TakesNoLengthOnTrust) {
  std::string data = "\xff\xff\xff\xff"s + "abc";
  ByteReader reader(data);
  EXPECT_FALSE(reader.fits(UINT64_MAX, 8));
  EXPECT_TRUE(reader.fits(3, 2));
  EXPECT_EQ(reader.bytes(), "");
  EXPECT_FALSE(reader.ok());
  EXPECT_FALSE(reader.fits(0, 1));

  ByteReader another("abc");
  EXPECT_EQ(another.view(UINT64_MAX), "");
  EXPECT_FALSE(another.ok());
}

TEST(ByteReader, CopiesOrZeroes) {
  char target[2] = {'x', 'x'};
  ByteReader reader("abc");
  EXPECT_TRUE(reader.copy(target, 2));
  EXPECT_EQ(std::string_view(target, 2), "ab");
  EXPECT_FALSE(reader.copy(target, 2));
  EXPECT_EQ(std::string_view(target, 2), "\0\0"s);
}

TEST(ByteReader, SkipsAndFails) {
  ByteReader reader("abc");
  reader.skip(2);
  EXPECT_EQ(reader.u8(), 'c');
  EXPECT_TRUE(reader.ok());
  reader.fail();
  EXPECT_FALSE(reader.ok());
  EXPECT_FALSE(reader.copy(nullptr, 0));
}

}  // namespace
}  // namespace nixl::base
