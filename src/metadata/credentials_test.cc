#include <gtest/gtest.h>

#include <string>

#include "metadata/channel.h"
#include "metadata/tls_files.h"

namespace nixl::metadata {
namespace {

using Files = Credentials::Files;

std::string problemOf(const Files& files) {
  Result<std::shared_ptr<const Credentials>> loaded = Credentials::load(files);
  return loaded.has_value() ? "" : loaded.error().message();
}

void expectAll(const std::string& text, std::initializer_list<std::string> words) {
  for (const std::string& word : words) EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST(Credentials, NoneAreOpen) {
  Result<std::shared_ptr<const Credentials>> none = Credentials::load({});
  ASSERT_TRUE(none.has_value());
  EXPECT_TRUE((*none)->isOpen());
}

TEST(Credentials, KeyIsWhatTheFileHoldsWithoutItsNewline) {
  Folder folder;
  const std::string key(16, 'k');
  Digest binding{};
  auto proof = [&](const std::string& content) {
    Result<std::shared_ptr<const Credentials>> loaded =
        Credentials::load({.key = folder.write("key", content)});
    EXPECT_TRUE(loaded.has_value()) << loaded.status().message();
    EXPECT_TRUE((*loaded)->hasKey());
    EXPECT_EQ((*loaded)->variables(), "NIXL_AUTH_KEY_FILE");
    return (*loaded)->proof(End::CLIENT, binding);
  };
  const Digest plain = proof(key);
  EXPECT_EQ(proof(key + "\n"), plain);
  EXPECT_EQ(proof(key + "\r\n"), plain);
  EXPECT_NE(proof(key + "\n\n"), plain);
  EXPECT_NE(proof(key + " "), plain);
  EXPECT_NE(proof(std::string("\0\n", 2) + key), plain);
}

TEST(Credentials, BadKeyFilesAreSentences) {
  Folder folder;
  expectAll(problemOf({.key = folder.at("none")}), {folder.at("none"), "NIXL_AUTH_KEY_FILE",
                                                    "No such file"});
  expectAll(problemOf({.key = folder.at("")}), {"NIXL_AUTH_KEY_FILE", "it is no file"});
  expectAll(problemOf({.key = folder.write("empty", "")}), {"holds 0 bytes", "at least 16"});
  expectAll(problemOf({.key = folder.write("short", "0123456789abcde\n")}),
            {"holds 15 bytes", "openssl rand -hex 32"});
  expectAll(problemOf({.key = folder.write("long", std::string(100'000, 'k'))}),
            {"NIXL_AUTH_KEY_FILE"});
  // The key itself is in none of them.
  EXPECT_EQ(problemOf({.key = folder.write("short", "confidential")}).find("confidential"),
            std::string::npos);
}

TEST(Credentials, CertificatesNeedAllThree) {
  Folder folder;
  Certificate authority = Certificate::authority("authority");
  Files all = authority.issue("host").in(folder, "host", authority);
  Result<std::shared_ptr<const Credentials>> loaded = Credentials::load(all);
  ASSERT_TRUE(loaded.has_value()) << loaded.status().message();
  EXPECT_TRUE((*loaded)->hasCertificates());
  EXPECT_FALSE((*loaded)->isOpen());
  EXPECT_FALSE((*loaded)->hasKey());
  expectAll(problemOf({.certificate = all.certificate}),
            {"set NIXL_TLS_KEY_FILE and NIXL_TLS_CA_FILE too"});
  expectAll(problemOf({.certificate = all.certificate, .private_key = all.private_key}),
            {"set NIXL_TLS_CA_FILE too"});
  expectAll(problemOf({.private_key = all.private_key, .authorities = all.authorities}),
            {"set NIXL_TLS_CERT_FILE too"});
}

TEST(Credentials, BadCertificateFilesAreSentences) {
  Folder folder;
  Certificate authority = Certificate::authority("authority");
  Certificate host = authority.issue("host"), other = authority.issue("other");
  const Files good = host.in(folder, "host", authority);
  auto with = [&](auto member, const std::string& path) {
    Files files = good;
    files.*member = path;
    return problemOf(files);
  };
  const std::string rubbish = folder.write("rubbish", "-----BEGIN RUBBISH-----\n");
  const std::string none = folder.at("none");
  expectAll(with(&Files::certificate, none), {none, "NIXL_TLS_CERT_FILE", "No such file"});
  expectAll(with(&Files::private_key, none), {none, "NIXL_TLS_KEY_FILE", "No such file"});
  expectAll(with(&Files::authorities, none), {none, "NIXL_TLS_CA_FILE", "No such file"});
  expectAll(with(&Files::certificate, rubbish), {rubbish, "NIXL_TLS_CERT_FILE", "PEM"});
  expectAll(with(&Files::private_key, rubbish), {rubbish, "NIXL_TLS_KEY_FILE", "PEM"});
  expectAll(with(&Files::authorities, rubbish), {rubbish, "NIXL_TLS_CA_FILE", "PEM"});
  expectAll(with(&Files::private_key, folder.write("other.key", other.key())),
            {"is not that of the certificate", "NIXL_TLS_KEY_FILE", "NIXL_TLS_CERT_FILE"});
  expectAll(with(&Files::private_key, folder.write("locked.key", host.key("phrase"))),
            {"without a pass phrase"});
}

}  // namespace
}  // namespace nixl::metadata
