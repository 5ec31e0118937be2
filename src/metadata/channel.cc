#include "metadata/channel.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "base/bytes.h"
#include "base/config.h"
#include "base/log.h"

namespace nixl::metadata {

namespace {

constexpr size_t kShortestKey = 16, kLongestKey = 64 << 10;
constexpr std::string_view kExporterLabel = "EXPORTER-nixl-metadata-1";
constexpr int kAlerts = 1000;  // where OpenSSL's numbers of alerts that came begin

struct Free {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(BIO_METHOD* method) const { BIO_meth_free(method); }
};

Status endOfStream() { return {Errc::REMOTE_DISCONNECT, ""}; }

bool isNumeric(const std::string& host) {
  in6_addr any;
  return inet_pton(AF_INET, host.c_str(), &any) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &any) == 1;
}

}  // namespace

// --- credentials -------------------------------------------------------------------------------

struct Credentials::Tls {
  std::unique_ptr<SSL_CTX, Free> context;
};

Credentials::Credentials() = default;
Credentials::~Credentials() { wipe(key_); }

Result<Credentials::Files> Credentials::configured() {
  Files files;
  NIXL_ASSIGN_OR_RETURN(files.key, base::configPath("NIXL_AUTH_KEY_FILE"));
  NIXL_ASSIGN_OR_RETURN(files.certificate, base::configPath("NIXL_TLS_CERT_FILE"));
  NIXL_ASSIGN_OR_RETURN(files.private_key, base::configPath("NIXL_TLS_KEY_FILE"));
  NIXL_ASSIGN_OR_RETURN(files.authorities, base::configPath("NIXL_TLS_CA_FILE"));
  NIXL_ASSIGN_OR_RETURN(files.check_name, base::configBool("NIXL_TLS_CHECK_NAME"));
  return files;
}

Result<std::shared_ptr<const Credentials>> Credentials::load(const Files& files) {
  std::shared_ptr<Credentials> credentials(new Credentials);
  credentials->check_name_ = files.check_name;
  if (!files.key.empty())
    NIXL_TRY(credentials->loadKey(files.key)
                 .within("read the key \"" + files.key + "\" (NIXL_AUTH_KEY_FILE)"));
  const int named =
      !files.certificate.empty() + !files.private_key.empty() + !files.authorities.empty();
  if (named != 0 && named != 3) {
    std::string missing;
    for (auto& [variable, file] : {std::pair{"NIXL_TLS_CERT_FILE", &files.certificate},
                                   std::pair{"NIXL_TLS_KEY_FILE", &files.private_key},
                                   std::pair{"NIXL_TLS_CA_FILE", &files.authorities}})
      if (file->empty()) missing += (missing.empty() ? "" : " and ") + std::string(variable);
    return Status(Errc::INVALID_PARAM,
                  fmt::format("TLS needs a certificate, its private key, and the authorities that "
                              "peers' certificates are checked against: set {} too",
                              missing));
  }
  if (named == 3) {
    NIXL_TRY(credentials->loadCertificates(files));
  } else if (credentials->has_key_) {
    NIXL_TRY(credentials->makeCertificate());
  }
  return std::shared_ptr<const Credentials>(std::move(credentials));
}

Status Credentials::loadKey(const std::string& path) {
  struct stat about{};
  if (stat(path.c_str(), &about) != 0) return base::errnoStatus("look at it", errno);
  if (!S_ISREG(about.st_mode)) return {Errc::INVALID_PARAM, "it is no file"};
  // No error: secrets that container platforms mount are often readable by all of their container.
  if ((about.st_mode & S_IROTH) != 0)
    NIXL_LOG_WARN_EVERY(1e9,
                        "every user of this host may read the key \"{}\" (NIXL_AUTH_KEY_FILE); "
                        "whoever has it can connect to agents: chmod 600 it",
                        path);
  Result<std::string> text = base::readFile(path, kLongestKey);
  if (!text.has_value()) return std::move(text).error();
  std::string key = *std::move(text);
  // Keys are written by editors and by `openssl rand -hex 32 > file`, which end in a newline.
  std::string_view bytes = key;
  if (bytes.ends_with('\n')) bytes.remove_suffix(1);
  if (bytes.ends_with('\r')) bytes.remove_suffix(1);
  Status status;
  if (bytes.size() < kShortestKey) {
    status = Status(Errc::INVALID_PARAM,
                    fmt::format("it holds {} bytes, and at least {} are needed; `openssl rand -hex "
                                "32` makes a good one",
                                bytes.size(), kShortestKey));
  } else {
    // What is kept is no use elsewhere, should the user have one password for many things.
    Digest derived = hmacSha256("nixl metadata key 1", {bytes});
    key_.assign(viewOf(derived));
    has_key_ = true;
  }
  wipe(key);
  return status;
}

namespace {

Result<std::unique_ptr<SSL_CTX, Free>> newContext() {
  initCrypto();
  std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_method()));
  if (!context || SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION) != 1)
    return {Errc::NOT_SUPPORTED, "TLS 1.3 cannot be set up: " + takeCryptoError()};
  SSL_CTX_set_options(context.get(), SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
  return context;
}

// A key with a pass phrase cannot be read: nobody is there to type it.
int noPassPhrase(char*, int, int, void*) { return -1; }

Status fileStatus(const char* variable, const std::string& path, std::string_view what) {
  std::string reason = takeCryptoError();
  Result<base::Fd> opened = base::Fd::open(path, O_RDONLY);
  if (!opened.has_value())
    return std::move(opened).error().within(fmt::format("read {} ({})", what, variable));
  return {Errc::INVALID_PARAM,
          fmt::format("read {} \"{}\" ({}): {}", what, path, variable, reason)};
}

}  // namespace

Status Credentials::loadCertificates(const Files& files) {
  NIXL_ASSIGN_OR_RETURN(auto made, newContext());
  SSL_CTX* context = made.get();
  SSL_CTX_set_default_passwd_cb(context, noPassPhrase);
  if (SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1)
    return fileStatus("NIXL_TLS_CERT_FILE", files.certificate, "the certificate, as PEM,");
  if (SSL_CTX_use_PrivateKey_file(context, files.private_key.c_str(), SSL_FILETYPE_PEM) != 1) {
    const bool mismatch = ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH;
    if (mismatch) {
      ERR_clear_error();
      return {Errc::INVALID_PARAM,
              fmt::format("the private key \"{}\" (NIXL_TLS_KEY_FILE) is not that of the "
                          "certificate \"{}\" (NIXL_TLS_CERT_FILE)",
                          files.private_key, files.certificate)};
    }
    return fileStatus("NIXL_TLS_KEY_FILE", files.private_key,
                      "the private key, as PEM and without a pass phrase,");
  }
  if (SSL_CTX_check_private_key(context) != 1) {
    ERR_clear_error();
    return {Errc::INVALID_PARAM,
            fmt::format("the private key \"{}\" (NIXL_TLS_KEY_FILE) is not that of the certificate "
                        "\"{}\" (NIXL_TLS_CERT_FILE)",
                        files.private_key, files.certificate)};
  }
  if (SSL_CTX_load_verify_file(context, files.authorities.c_str()) != 1)
    return fileStatus("NIXL_TLS_CA_FILE", files.authorities, "the authorities, as PEM,");
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  ERR_clear_error();
  tls_ = std::make_unique<Tls>(Tls{std::move(made)});
  has_certificates_ = true;
  return {};
}

// TLS wants the listener to have a certificate, also where the key alone decides. This one says
// nothing, and nobody looks at it.
Status Credentials::makeCertificate() {
  NIXL_ASSIGN_OR_RETURN(auto made, newContext());
  std::unique_ptr<EVP_PKEY, Free> pair(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  std::unique_ptr<X509, Free> certificate(X509_new());
  if (!pair || !certificate) throw std::bad_alloc();
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
  X509_set_version(certificate.get(), X509_VERSION_3);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), 0);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 10L * 365 * 24 * 3600);
  X509_set_pubkey(certificate.get(), pair.get());
  if (X509_sign(certificate.get(), pair.get(), nullptr) == 0 ||
      SSL_CTX_use_certificate(made.get(), certificate.get()) != 1 ||
      SSL_CTX_use_PrivateKey(made.get(), pair.get()) != 1)
    return {Errc::NOT_SUPPORTED, "TLS cannot be set up: " + takeCryptoError()};
  SSL_CTX_set_verify(made.get(), SSL_VERIFY_NONE, nullptr);
  tls_ = std::make_unique<Tls>(Tls{std::move(made)});
  return {};
}

Digest Credentials::proof(End end, const Digest& binding) const {
  return keyProof(key_, end, binding);
}

std::string Credentials::variables() const {
  std::string names = has_key_ ? "NIXL_AUTH_KEY_FILE" : "";
  if (has_certificates_) {
    names += names.empty() ? "" : " and ";
    names += "NIXL_TLS_CERT_FILE, NIXL_TLS_KEY_FILE and NIXL_TLS_CA_FILE";
  }
  return names;
}

// --- the channel -------------------------------------------------------------------------------

// OpenSSL's own socket I/O raises SIGPIPE, and cannot be given bytes that were read before.
struct Channel::Tls {
  std::shared_ptr<const Credentials> credentials;
  std::unique_ptr<SSL, Free> ssl;
  End end = End::CLIENT;
  std::string host;
  int fd = -1;
  std::string before;  // read before TLS, and not taken yet
  std::string first;   // what came first, to recognise a peer that does not speak TLS
  bool ended = false;
  int error = 0;  // of the socket, an errno value

  // The rest of a denial in clear, of which OpenSSL takes only the head.
  void takeFirst() {
    std::array<char, 768> more;
    ssize_t n = recv(fd, more.data(), more.size(), MSG_DONTWAIT);
    if (n > 0) first.append(more.data(), static_cast<size_t>(n));
  }

  static int readBio(BIO* bio, char* to, int length);
  static int writeBio(BIO* bio, const char* from, int length);
  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }
  static BIO_METHOD* method();
};

int Channel::Tls::readBio(BIO* bio, char* to, int length) {
  auto& tls = *static_cast<Tls*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (length <= 0) return 0;
  if (!tls.before.empty()) {
    size_t n = std::min(tls.before.size(), static_cast<size_t>(length));
    std::memcpy(to, tls.before.data(), n);
    tls.before.erase(0, n);
    return static_cast<int>(n);
  }
  ssize_t n;
  do {
    n = recv(tls.fd, to, static_cast<size_t>(length), 0);
  } while (n < 0 && errno == EINTR);
  if (n > 0) {
    constexpr size_t kKept = 768;  // a denial in clear
    if (tls.first.size() < kKept)
      tls.first.append(to, std::min(static_cast<size_t>(n), kKept - tls.first.size()));
    return static_cast<int>(n);
  }
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    BIO_set_retry_read(bio);
    return -1;
  }
  tls.ended = true;
  tls.error = n < 0 ? errno : 0;
  return n < 0 ? -1 : 0;
}

int Channel::Tls::writeBio(BIO* bio, const char* from, int length) {
  auto& tls = *static_cast<Tls*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  ssize_t n;
  do {
    n = ::send(tls.fd, from, static_cast<size_t>(length), MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
    BIO_set_retry_write(bio);
  else if (n < 0)
    tls.error = errno;
  return static_cast<int>(n);
}

BIO_METHOD* Channel::Tls::method() {
  static BIO_METHOD* const made = [] {
    BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "nixl socket");
    if (method == nullptr) throw std::bad_alloc();
    BIO_meth_set_read(method, readBio);
    BIO_meth_set_write(method, writeBio);
    BIO_meth_set_ctrl(method, control);
    BIO_meth_set_create(method, [](BIO* bio) {
      BIO_set_init(bio, 1);
      return 1;
    });
    return method;
  }();
  return made;
}

Channel::Channel(base::Fd fd) : fd_(std::move(fd)) {}
Channel::~Channel() = default;

Status Channel::startTls(std::shared_ptr<const Credentials> credentials, End end,
                         const std::string& host, std::string_view received) {
  auto tls = std::make_unique<Tls>();
  tls->ssl.reset(SSL_new(credentials->tls_->context.get()));
  BIO* bio = BIO_new(Tls::method());
  if (!tls->ssl || bio == nullptr) throw std::bad_alloc();
  tls->end = end;
  tls->host = host;
  tls->fd = fd_.get();
  tls->before = received;
  BIO_set_data(bio, tls.get());
  SSL* ssl = tls->ssl.get();
  SSL_set_bio(ssl, bio, bio);
  if (end == End::LISTENER) {
    SSL_set_accept_state(ssl);
  } else {
    SSL_set_connect_state(ssl);
    if (credentials->hasCertificates() && credentials->check_name_) {
      const std::string bare = host.substr(0, host.find('%'));  // of fe80::1%eth0
      bool set;
      if (isNumeric(bare)) {
        set = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), bare.c_str()) == 1;
      } else {
        SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
        set = SSL_set1_host(ssl, bare.c_str()) == 1;
        (void)SSL_set_tlsext_host_name(ssl, bare.c_str());
      }
      if (!set)
        return {Errc::NOT_ALLOWED, "no certificate can be of such a host: " + takeCryptoError()};
    }
  }
  tls->credentials = std::move(credentials);
  tls_ = std::move(tls);
  return {};
}

Status Channel::handshake() {
  ERR_clear_error();
  int result = SSL_do_handshake(tls_->ssl.get());
  if (result == 1) {
    established_ = true;
    wants_to_write_ = false;
    return {};
  }
  return failure(result, "the TLS handshake");
}

Digest Channel::binding() const {
  Digest binding;
  if (SSL_export_keying_material(tls_->ssl.get(), binding.data(), binding.size(),
                                 kExporterLabel.data(), kExporterLabel.size(), nullptr, 0, 0) != 1)
    throw std::bad_alloc();
  return binding;
}

Result<size_t> Channel::read(std::span<char> to) {
  if (tls_) {
    ERR_clear_error();
    size_t n = 0;
    int result = SSL_read_ex(tls_->ssl.get(), to.data(), to.size(), &n);
    if (result == 1) {
      wants_to_write_ = false;
      return n;
    }
    NIXL_TRY(failure(result, "TLS"));
    return size_t{0};
  }
  for (;;) {
    ssize_t n = recv(fd_.get(), to.data(), to.size(), 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0) return endOfStream();
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return size_t{0};
    return base::errnoStatus("read", errno);
  }
}

Result<size_t> Channel::write(std::string_view bytes) {
  if (tls_) {
    ERR_clear_error();
    size_t n = 0;
    int result = SSL_write_ex(tls_->ssl.get(), bytes.data(), bytes.size(), &n);
    if (result == 1) return n;
    NIXL_TRY(failure(result, "TLS"));
    return size_t{0};
  }
  for (;;) {
    ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return size_t{0};
    return base::errnoStatus("write", errno);
  }
}

bool Channel::hasDecrypted() const {
  // Not SSL_has_pending(): half a record is no reason to look again.
  return tls_ && established_ && SSL_pending(tls_->ssl.get()) > 0;
}

void Channel::finishWriting() {
  if (tls_ && established_) {
    ERR_clear_error();
    (void)SSL_shutdown(tls_->ssl.get());
    ERR_clear_error();
  }
  (void)shutdown(fd_.get(), SHUT_WR);
}

bool Channel::discard() {
  std::array<char, 4096> rubbish;
  for (int i = 0; i < 64; ++i) {
    ssize_t n = recv(fd_.get(), rubbish.data(), rubbish.size(), 0);
    if (n == 0) return false;
    if (n < 0) return errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK;
  }
  return true;
}

// --- what goes wrong ---------------------------------------------------------------------------

namespace {

// What to do about a certificate of the peer's that was not accepted.
std::string adviceFor(long verdict, const std::string& host) {
  switch (verdict) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return "give the peer a new one";
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return "compare the clocks of the two hosts";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return fmt::format("it is not made out to \"{}\": connect by a name that it holds, or set "
                         "NIXL_TLS_CHECK_NAME=no",
                         printable(host));
    case X509_V_ERR_INVALID_PURPOSE:
      return "agents both connect and are connected to: leave its extended usage out, or let it "
             "allow clients and servers";
    default:
      return "NIXL_TLS_CA_FILE must hold the authority that signed it, and the peer must have "
             "NIXL_TLS_CERT_FILE set";
  }
}

bool isAboutCertificates(int alert) {
  return (alert >= SSL_AD_BAD_CERTIFICATE && alert <= SSL_AD_CERTIFICATE_UNKNOWN) ||
         alert == SSL_AD_UNKNOWN_CA || alert == SSL_AD_CERTIFICATE_REQUIRED ||
         alert == SSL_AD_ACCESS_DENIED;
}

// What a listener in clear answers to the start of TLS; nothing if these bytes are no such thing.
std::optional<Status> denialInClear(std::string_view bytes) {
  if (bytes.size() < 8) return std::nullopt;
  const auto length = base::loadLittle<uint64_t>(bytes.data());
  std::optional<Command> command = parseCommand(bytes.substr(8, length));
  if (!command || command->word != Word::DENY) return std::nullopt;
  return decodeDenial(command->payload);
}

}  // namespace

// OK when it only has to wait.
Status Channel::failure(int result, std::string_view doing) {
  const int kind = SSL_get_error(tls_->ssl.get(), result);
  if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) {
    wants_to_write_ = kind == SSL_ERROR_WANT_WRITE;
    return {};
  }
  if (kind == SSL_ERROR_ZERO_RETURN) return endOfStream();
  const unsigned long error = ERR_peek_error();
  const int reason = error == 0 ? 0 : ERR_GET_REASON(error);
  const std::string text = takeCryptoError();
  const bool had_key = tls_->credentials->hasKey();
  if (tls_->error != 0 && tls_->error != ECONNRESET && tls_->error != EPIPE)
    return base::errnoStatus(doing, tls_->error);
  if (reason > kAlerts && reason < kAlerts + 256) {
    if (isAboutCertificates(reason - kAlerts))
      return {Errc::NOT_ALLOWED,
              fmt::format("the peer does not accept this agent's certificate ({}); compare "
                          "NIXL_TLS_CERT_FILE here with NIXL_TLS_CA_FILE there",
                          text)};
    return {established_ ? Errc::MISMATCH : Errc::NOT_ALLOWED,
            fmt::format("the peer ended {}: {}", doing, text)};
  }
  if (reason == 0 || tls_->ended) {
    if (established_) return endOfStream();
    return {Errc::REMOTE_DISCONNECT,
            fmt::format("the peer closed the connection during {}; if it always does, it lacks "
                        "what is set here: {}",
                        doing, tls_->credentials->variables())};
  }
  switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED: {
      const long verdict = SSL_get_verify_result(tls_->ssl.get());
      return {Errc::NOT_ALLOWED, fmt::format("the peer's certificate is not accepted, {}; {}",
                                             X509_verify_cert_error_string(verdict),
                                             adviceFor(verdict, tls_->host))};
    }
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      return {Errc::NOT_ALLOWED,
              "the peer showed no certificate; set NIXL_TLS_CERT_FILE, NIXL_TLS_KEY_FILE and "
              "NIXL_TLS_CA_FILE there too"};
    default:
      break;
  }
  if (established_)
    return {Errc::MISMATCH,
            fmt::format("what came was altered on its way ({}: {})", doing, text)};
  if (tls_->end == End::CLIENT) {
    tls_->takeFirst();
    if (auto denial = denialInClear(tls_->first)) return *denial;
    if (reason == SSL_R_WRONG_VERSION_NUMBER)
      return {Errc::NOT_ALLOWED,
              fmt::format("the peer does not speak TLS; set {} there as here",
                          tls_->credentials->variables())};
  }
  return {Errc::NOT_ALLOWED,
          fmt::format("{} failed: {}{}", doing, text,
                      had_key ? "; both ends need the same NIXL_AUTH_KEY_FILE" : "")};
}

}  // namespace nixl::metadata
