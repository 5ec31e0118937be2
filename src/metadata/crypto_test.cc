#include "metadata/crypto.h"

#include <gtest/gtest.h>

#include <set>

namespace nixl::metadata {
namespace {

std::string hexOf(std::string_view bytes) {
  std::string hex;
  for (char c : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += kDigits[static_cast<unsigned char>(c) >> 4];
    hex += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return hex;
}

TEST(Crypto, DigestsAreThoseOfTheStandards) {
  // FIPS 180-4, and RFC 4231 case 2.
  EXPECT_EQ(hexOf(viewOf(sha256({"a", "", "bc"}))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hexOf(viewOf(hmacSha256("Jefe", {"what do ya want ", "for nothing?"}))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(Crypto, ComparesAllOfIt) {
  EXPECT_TRUE(isSame("", ""));
  EXPECT_TRUE(isSame("abc", "abc"));
  EXPECT_FALSE(isSame("abc", "abd"));
  EXPECT_FALSE(isSame("abc", "ab"));
}

TEST(Crypto, WipesInPlace) {
  std::string secret(100, 's');
  const char* where = secret.data();
  wipe(secret);
  EXPECT_TRUE(secret.empty());
  EXPECT_EQ(secret.data(), where);
  for (size_t i = 1; i < 100; ++i) EXPECT_EQ(where[i], 0) << i;
}

TEST(Identity, SignsWhatOthersCanCheckAndNobodyElseCanSign) {
  auto one = Identity::create(), two = Identity::create();
  EXPECT_NE(one->incarnation(), two->incarnation());
  EXPECT_EQ(fingerprint(one->publicKey()), one->incarnation());
  const Signature signature = one->sign("text");
  EXPECT_TRUE(isSignedBy(one->publicKey(), "text", signature));
  EXPECT_FALSE(isSignedBy(one->publicKey(), "texts", signature));
  EXPECT_FALSE(isSignedBy(two->publicKey(), "text", signature));
  for (size_t i = 0; i < signature.size(); ++i) {
    Signature changed = signature;
    changed[i] ^= 1;
    EXPECT_FALSE(isSignedBy(one->publicKey(), "text", changed)) << i;
  }
  PublicKey none;  // is no point of the curve
  none.fill(0xff);
  EXPECT_FALSE(isSignedBy(none, "text", signature));
}

TEST(Identity, IsNeverTheSameTwice) {
  std::set<Incarnation> seen;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(seen.insert(Identity::create()->incarnation()).second);
}

}  // namespace
}  // namespace nixl::metadata
