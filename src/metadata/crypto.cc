#include "metadata/crypto.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <new>

#include "base/random.h"

namespace nixl::metadata {

namespace {

struct Free {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

const unsigned char* bytesOf(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// None of these calls fails for another reason than memory.
void must(bool worked) {
  if (!worked) throw std::bad_alloc();
}

}  // namespace

void initCrypto() {
  OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT | OPENSSL_INIT_NO_LOAD_CONFIG, nullptr);
}

std::string takeCryptoError() {
  const unsigned long error = ERR_peek_error();
  ERR_clear_error();
  if (error == 0) return {};
  const char* reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : "error " + std::to_string(ERR_GET_REASON(error));
}

Digest sha256(std::initializer_list<std::string_view> parts) {
  initCrypto();
  std::unique_ptr<EVP_MD_CTX, Free> context(EVP_MD_CTX_new());
  must(context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  for (std::string_view part : parts)
    must(EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1);
  Digest digest;
  must(EVP_DigestFinal_ex(context.get(), digest.data(), nullptr) == 1);
  return digest;
}

Digest hmacSha256(std::string_view key, std::initializer_list<std::string_view> parts) {
  initCrypto();
  std::string text;
  for (std::string_view part : parts) text += part;
  Digest digest;
  unsigned length = 0;
  must(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), bytesOf(text), text.size(),
            digest.data(), &length) != nullptr);
  return digest;
}

bool isSame(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

void wipe(std::string& secret) {
  OPENSSL_cleanse(secret.data(), secret.size());
  secret.clear();
}

// --- who an agent is ---------------------------------------------------------------------------

struct Identity::Key {
  std::unique_ptr<EVP_PKEY, Free> pair;
};

Identity::Identity() : key_(std::make_unique<Key>()) {
  initCrypto();
  std::array<uint8_t, 32> seed;
  base::randomBytes(seed.data(), seed.size());
  key_->pair.reset(
      EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.data(), seed.size()));
  OPENSSL_cleanse(seed.data(), seed.size());
  size_t length = public_key_.size();
  must(key_->pair != nullptr &&
       EVP_PKEY_get_raw_public_key(key_->pair.get(), public_key_.data(), &length) == 1);
  incarnation_ = fingerprint(public_key_);
}

Identity::~Identity() = default;

std::shared_ptr<const Identity> Identity::create() {
  return std::shared_ptr<const Identity>(new Identity);
}

Signature Identity::sign(std::string_view text) const {
  Signature signature;
  size_t length = signature.size();
  std::unique_ptr<EVP_MD_CTX, Free> context(EVP_MD_CTX_new());
  must(context != nullptr &&
       EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_->pair.get()) == 1 &&
       EVP_DigestSign(context.get(), signature.data(), &length, bytesOf(text), text.size()) == 1);
  return signature;
}

Incarnation fingerprint(const PublicKey& key) {
  const Digest digest = sha256({"nixl incarnation", viewOf(key)});
  Incarnation incarnation;
  std::copy_n(digest.begin(), incarnation.bytes.size(), incarnation.bytes.begin());
  return incarnation;
}

bool isSignedBy(const PublicKey& key, std::string_view text, const Signature& signature) {
  initCrypto();
  std::unique_ptr<EVP_PKEY, Free> pair(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()));
  std::unique_ptr<EVP_MD_CTX, Free> context(EVP_MD_CTX_new());
  const bool good =
      pair != nullptr && context != nullptr &&
      EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, pair.get()) == 1 &&
      EVP_DigestVerify(context.get(), signature.data(), signature.size(), bytesOf(text),
                       text.size()) == 1;
  ERR_clear_error();
  return good;
}

}  // namespace nixl::metadata
