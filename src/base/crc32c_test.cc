#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace nixl::base {
namespace {

struct CrcCase {
  const char* name;
  std::string data;
  uint32_t crc;
};

class Crc32c : public testing::TestWithParam<CrcCase> {};

TEST_P(Crc32c, IsTheKnownAnswer) {
  const auto& c = GetParam();
  EXPECT_EQ(crc32c(c.data.data(), c.data.size()), c.crc);
  EXPECT_EQ(detail::crc32cTable(c.data.data(), c.data.size()), c.crc);
}

std::string counting(int first, int step) {
  std::string data;
  for (int i = 0; i < 32; ++i) data.push_back(static_cast<char>(first + step * i));
  return data;
}

// RFC 3720, B.4, and the check value of the CRC catalogue.
INSTANTIATE_TEST_SUITE_P(KnownAnswers, Crc32c,
                         testing::Values(CrcCase{"Empty", "", 0},
                                         CrcCase{"Check", "123456789", 0xe3069283},
                                         CrcCase{"Zeros", std::string(32, '\0'), 0x8a9136aa},
                                         CrcCase{"Ones", std::string(32, '\xff'), 0x62a8ab43},
                                         CrcCase{"Up", counting(0, 1), 0x46dd794e},
                                         CrcCase{"Down", counting(31, -1), 0x113fdb5c}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Crc32c, IsTheSameWithAndWithoutTheInstruction) {
  std::string data;
  for (int i = 0; i < 300; ++i) data.push_back(static_cast<char>(i * 167 + 13));
  for (size_t offset = 0; offset < 8; ++offset)
    for (size_t length = 0; offset + length <= data.size(); ++length)
      ASSERT_EQ(crc32c(data.data() + offset, length),
                detail::crc32cTable(data.data() + offset, length))
          << "offset " << offset << ", length " << length;
}

TEST(Crc32c, ContinuesWhereItStopped) {
  std::string data = "123456789";
  for (size_t split = 0; split <= data.size(); ++split) {
    uint32_t first = crc32c(data.data(), split);
    EXPECT_EQ(crc32c(data.data() + split, data.size() - split, first), 0xe3069283);
  }
}

}  // namespace
}  // namespace nixl::base
