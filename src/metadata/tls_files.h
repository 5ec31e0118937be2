// Certificates for tests: made anew in each, in a folder that goes with it.
#pragma once

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "metadata/channel.h"
#include "metadata/crypto.h"

namespace nixl::metadata {

// A folder for secrets.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "nixl-XXXXXX").string();
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }

  std::string at(const std::string& name) const { return path_ + "/" + name; }
  // Of the file, which has this content.
  std::string write(const std::string& name, std::string_view content, unsigned mode = 0600) const {
    std::FILE* file = std::fopen(at(name).c_str(), "wb");
    EXPECT_NE(file, nullptr);
    EXPECT_EQ(std::fwrite(content.data(), 1, content.size(), file), content.size());
    std::fclose(file);
    EXPECT_EQ(chmod(at(name).c_str(), mode), 0);
    return at(name);
  }

 private:
  std::string path_;
};

// A certificate and its key. An authority signs others.
class Certificate {
 public:
  struct Options {
    const char* names = "IP:127.0.0.1,IP:::1,DNS:localhost";  // "": none
    const char* usage = "";                                   // "serverAuth", say
    long from_s = -3600, to_s = 3600;                         // from now
  };

  // Signed by itself.
  static Certificate authority(const std::string& name) { return {name, nullptr, {}, true}; }
  Certificate issue(const std::string& name, const Options& options) const {
    return {name, this, options, false};
  }
  Certificate issue(const std::string& name) const { return issue(name, Options()); }

  std::string certificate() const {
    return written([this](BIO* to) { PEM_write_bio_X509(to, certificate_.get()); });
  }
  std::string key(const char* pass_phrase = nullptr) const {
    return written([&](BIO* to) {
      PEM_write_bio_PrivateKey(to, key_.get(), pass_phrase != nullptr ? EVP_aes_128_cbc() : nullptr,
                               reinterpret_cast<const unsigned char*>(pass_phrase),
                               pass_phrase != nullptr ? static_cast<int>(strlen(pass_phrase)) : 0,
                               nullptr, nullptr);
    });
  }

  // Writes both, and the authority that peers' are checked against.
  Credentials::Files in(const Folder& folder, const std::string& name,
                        const Certificate& trusted) const {
    return {.key = "",
            .certificate = folder.write(name + ".crt", certificate()),
            .private_key = folder.write(name + ".key", key()),
            .authorities = folder.write(name + ".ca", trusted.certificate())};
  }

 private:
  Certificate(const std::string& name, const Certificate* issuer, const Options& options,
              bool is_authority)
      : key_((initCrypto(), EVP_EC_gen("P-256")), EVP_PKEY_free),
        certificate_(X509_new(), X509_free) {
    X509* made = certificate_.get();
    X509_set_version(made, X509_VERSION_3);
    static long serial = 1;
    ASN1_INTEGER_set(X509_get_serialNumber(made), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made), options.from_s);
    X509_gmtime_adj(X509_getm_notAfter(made), options.to_s);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    const Certificate& signer = issuer == nullptr ? *this : *issuer;
    X509_set_issuer_name(made, X509_get_subject_name(signer.certificate_.get()));
    X509_set_pubkey(made, key_.get());
    X509V3_CTX context;
    X509V3_set_ctx(&context, signer.certificate_.get(), made, nullptr, nullptr, 0);
    auto add = [&](int what, const char* value) {
      X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, what, value);
      ASSERT_NE(extension, nullptr) << value;
      X509_add_ext(made, extension, -1);
      X509_EXTENSION_free(extension);
    };
    if (is_authority) {
      add(NID_basic_constraints, "critical,CA:TRUE");
      add(NID_key_usage, "critical,keyCertSign,cRLSign");
    } else {
      if (*options.names != '\0') add(NID_subject_alt_name, options.names);
      if (*options.usage != '\0') add(NID_ext_key_usage, options.usage);
    }
    EXPECT_NE(X509_sign(made, signer.key_.get(), EVP_sha256()), 0);
  }

  template <typename Write>
  static std::string written(Write write) {
    BIO* memory = BIO_new(BIO_s_mem());
    write(memory);
    char* bytes = nullptr;
    const long length = BIO_get_mem_data(memory, &bytes);
    std::string text(bytes, static_cast<size_t>(length));
    BIO_free(memory);
    return text;
  }

  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> certificate_;
};

}  // namespace nixl::metadata
