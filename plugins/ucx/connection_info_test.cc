#include "connection_info.h"

#include <gtest/gtest.h>

#include <random>

#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

ConnectionInfo example() {
  ConnectionInfo info;
  info.version = {1, 22, 3};
  info.peer_errors = false;
  info.host = "0f0e-0d0c";
  info.pid = 4711;
  info.address = std::string("\x01\x00\xff address", 11);
  return info;
}

TEST(ConnectionInfo, SurvivesTheWire) {
  const ConnectionInfo out = decode(encode(example()));
  EXPECT_EQ(out.version, (Version{1, 22, 3}));
  EXPECT_FALSE(out.peer_errors);
  EXPECT_EQ(out.host, example().host);
  EXPECT_EQ(out.pid, 4711u);
  EXPECT_EQ(out.address, example().address);
}

TEST(ConnectionInfo, IsRefusedWhenCutOrLengthened) {
  const std::string bytes = encode(example());
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_THROW(decode(std::string_view(bytes).substr(0, size)), BackendFailure) << size;
  EXPECT_THROW(decode(bytes + '\0'), BackendFailure);
}

TEST(ConnectionInfo, IsRefusedWithAnyBitAltered) {
  const std::string bytes = encode(example());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string altered = bytes;
    altered[bit / 8] = static_cast<char>(altered[bit / 8] ^ (1 << bit % 8));
    EXPECT_THROW(decode(altered), BackendFailure) << "bit " << bit;
  }
}

TEST(ConnectionInfo, SaysWhyItIsRefused) {
  try {
    decode(std::string(200, 'x'));
    FAIL();
  } catch (const BackendFailure& failure) {
    EXPECT_EQ(failure.code(), Errc::BACKEND);
    EXPECT_NE(std::string(failure.what()).find("connection bytes"), std::string::npos);
  }
}

TEST(ConnectionInfo, OfNoiseIsRefusedWithinBounds) {
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string noise = encode(example()).substr(0, random() % 9);
    const size_t size = random() % 300;
    while (noise.size() < size) noise += static_cast<char>(random());
    EXPECT_THROW(decode(noise), BackendFailure);
  }
}

}  // namespace
}  // namespace nixl::ucx
