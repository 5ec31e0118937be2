// metadata/crypto.h - digests, proofs and key pairs. OpenSSL does the work; its headers stay out.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "metadata/wire.h"

namespace nixl::metadata {

using Digest = std::array<uint8_t, 32>;
using PublicKey = std::array<uint8_t, 32>;
using Signature = std::array<uint8_t, 64>;

// Before the first call of OpenSSL, any number of times. The copy inside of this library is alone:
// it reads no configuration file, registers nothing to run at exit, and knows nothing of another
// OpenSSL that the process may hold.
void initCrypto();

// What OpenSSL says of its last failure on this thread; forgets it. "" when there was none.
std::string takeCryptoError();

// Of the parts, one after the other.
Digest sha256(std::initializer_list<std::string_view> parts);
Digest hmacSha256(std::string_view key, std::initializer_list<std::string_view> parts);

// Takes the same time whether they differ early, late, or not at all.
bool isSame(std::string_view a, std::string_view b);

// Overwrites what the text held, and empties it.
void wipe(std::string& secret);

template <size_t N>
std::string_view viewOf(const std::array<uint8_t, N>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), N};
}

// One life of an agent: an Ed25519 key pair, made with it and never stored. The incarnation is the
// fingerprint of the public key. So whoever knows an agent's incarnation can check what it signed,
// without having been told anything else; and nobody signs for it, not even who holds its metadata.
//
// Threads: any.
class Identity {
 public:
  static std::shared_ptr<const Identity> create();
  ~Identity();
  Identity(const Identity&) = delete;
  Identity& operator=(const Identity&) = delete;

  const Incarnation& incarnation() const { return incarnation_; }
  const PublicKey& publicKey() const { return public_key_; }
  Signature sign(std::string_view text) const;

 private:
  struct Key;
  Identity();
  std::unique_ptr<Key> key_;
  PublicKey public_key_{};
  Incarnation incarnation_;
};

Incarnation fingerprint(const PublicKey& key);
bool isSignedBy(const PublicKey& key, std::string_view text, const Signature& signature);

}  // namespace nixl::metadata
