#include "metadata/handshake.h"

#include <gtest/gtest.h>

namespace nixl::metadata {
namespace {

Digest filled(uint8_t with) {
  Digest digest;
  digest.fill(with);
  return digest;
}

TEST(Handshake, BindingDependsOnAllOfIt) {
  Incarnation listener, other;
  other.bytes[15] = 1;
  const Digest binding = bindingOf(filled(1), filled(2), listener);
  EXPECT_EQ(binding, bindingOf(filled(1), filled(2), listener));
  EXPECT_NE(binding, bindingOf(filled(2), filled(1), listener));
  EXPECT_NE(binding, bindingOf(filled(1), filled(3), listener));
  EXPECT_NE(binding, bindingOf(filled(1), filled(2), other));
}

TEST(Handshake, HelloSurvivesItsWayAndLaterVersionsMayAdd) {
  Hello hello{.version = 1, .nonce = filled(9)};
  hello.incarnation.bytes.fill(3);
  const std::string bytes = encodeHello(hello);
  for (const std::string& sent : {bytes, bytes + "more"}) {
    std::optional<Hello> back = decodeHello(sent);
    ASSERT_TRUE(back.has_value());
    EXPECT_EQ(back->nonce, hello.nonce);
    EXPECT_EQ(back->incarnation, hello.incarnation);
  }
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_FALSE(decodeHello(std::string_view(bytes).substr(0, n)).has_value()) << n;
}

TEST(Handshake, KeyProofIsOfOneKeyOneEndAndOneConnection) {
  const Digest proof = keyProof("key", End::CLIENT, filled(1));
  EXPECT_EQ(proof, keyProof("key", End::CLIENT, filled(1)));
  EXPECT_NE(proof, keyProof("kez", End::CLIENT, filled(1)));
  EXPECT_NE(proof, keyProof("key", End::LISTENER, filled(1)));
  EXPECT_NE(proof, keyProof("key", End::CLIENT, filled(2)));
}

TEST(Handshake, ProofIsOfOneMessageInItsPlace) {
  auto identity = Identity::create();
  const Proof proof = prove(*identity, filled(1), 4, Word::LOAD, "payload");
  EXPECT_TRUE(isProof(proof, filled(1), 4, Word::LOAD, "payload"));
  EXPECT_FALSE(isProof(proof, filled(2), 4, Word::LOAD, "payload"));
  EXPECT_FALSE(isProof(proof, filled(1), 5, Word::LOAD, "payload"));
  EXPECT_FALSE(isProof(proof, filled(1), 4, Word::INVL, "payload"));
  EXPECT_FALSE(isProof(proof, filled(1), 4, Word::LOAD, "payloaD"));
  Proof other = proof;
  other.key = Identity::create()->publicKey();
  EXPECT_FALSE(isProof(other, filled(1), 4, Word::LOAD, "payload"));

  const std::string bytes = encodeProof(proof);
  ASSERT_TRUE(decodeProof(bytes).has_value());
  EXPECT_TRUE(isProof(*decodeProof(bytes), filled(1), 4, Word::LOAD, "payload"));
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_FALSE(decodeProof(std::string_view(bytes).substr(0, n)).has_value()) << n;
}

TEST(Handshake, DenialIsNeverOkAndFitForALog) {
  Status status = decodeDenial(encodeDenial(Errc::NOT_ALLOWED, "not\nyou"));
  EXPECT_EQ(status.code(), Errc::NOT_ALLOWED);
  EXPECT_EQ(status.message(), "the peer refuses: not?you");
  EXPECT_EQ(decodeDenial(encodeDenial(Errc::LIMIT, "x")).code(), Errc::LIMIT);
  for (const std::string& bytes : {std::string(), std::string("ab"), encodeDenial(Errc::OK, ""),
                                   encodeDenial(Errc::OK, std::string(10'000, '\x1b'))}) {
    status = decodeDenial(bytes);
    EXPECT_FALSE(status.ok());
    EXPECT_LT(status.message().size(), 600u);
    EXPECT_EQ(status.message().find('\x1b'), std::string::npos);
  }
}

}  // namespace
}  // namespace nixl::metadata
