// metadata/channel.h - bytes over a socket, in clear or inside of TLS, and what TLS goes by.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/status.h"
#include "metadata/crypto.h"
#include "metadata/handshake.h"

namespace nixl::metadata {

// What both ends of every connection must show, of files that the user names. With a key or
// certificates connections are inside of TLS 1.3. A key alone makes TLS without certificates that
// mean anything: then it is the key which both ends prove inside, bound to that very channel, so
// that nobody can stand between them.
//
// Threads: any; constant once made.
class Credentials {
 public:
  struct Files {
    std::string key = {};                                    // a key that both ends have
    std::string certificate = {}, private_key = {}, authorities = {};  // PEM; all three or none
    bool check_name = true;  // whether a listener's certificate must be of the host asked for
  };

  // Reads them. Errors name the file, and the variable that names it.
  static Result<std::shared_ptr<const Credentials>> load(const Files& files);
  static Result<Files> configured();  // as the environment has them

  ~Credentials();
  Credentials(const Credentials&) = delete;
  Credentials& operator=(const Credentials&) = delete;

  bool isOpen() const { return !has_key_ && !has_certificates_; }  // neither: anybody may connect
  bool hasKey() const { return has_key_; }
  bool hasCertificates() const { return has_certificates_; }
  Digest proof(End end, const Digest& binding) const;  // of the key

  // "NIXL_AUTH_KEY_FILE", "NIXL_TLS_CERT_FILE, ..." or both: for sentences.
  std::string variables() const;

 private:
  friend class Channel;
  struct Tls;
  Credentials();
  Status loadKey(const std::string& path);
  Status loadCertificates(const Files& files);
  Status makeCertificate();

  bool has_key_ = false, has_certificates_ = false, check_name_ = true;
  std::string key_;
  std::unique_ptr<Tls> tls_;
};

// One connection. Never blocks, never raises SIGPIPE.
//
// Errors: REMOTE_DISCONNECT with no message is the orderly end of what the peer sends. NOT_ALLOWED:
//         TLS refused, for a reason that will be there the next time too. MISMATCH: what came is
//         not what was sent.
// Threads: one at a time. `credentials` are kept as long as needed.
class Channel {
 public:
  explicit Channel(base::Fd fd);
  ~Channel();
  Channel(Channel&&) = delete;

  int fd() const { return fd_.get(); }

  // From now on inside of TLS. `host`: whom the user asked for (CLIENT). `received`: what was read
  // before it was known to be TLS (LISTENER).
  Status startTls(std::shared_ptr<const Credentials> credentials, End end, const std::string& host,
                  std::string_view received);
  // Goes on with the handshake; OK also where it has to wait for the peer.
  Status handshake();
  bool isEstablished() const { return established_; }
  // What no other channel has, once established.
  Digest binding() const;

  Result<size_t> read(std::span<char> to);        // 0: nothing is there now
  Result<size_t> write(std::string_view bytes);   // how many left
  bool hasDecrypted() const;                      // bytes that no poll() will announce
  bool wantsToWrite() const { return wants_to_write_; }  // to go on with reading

  // Nothing more will be written; the peer is told.
  void finishWriting();
  // Throws away what comes. False at its end.
  bool discard();

 private:
  struct Tls;
  friend struct Tls;
  Status failure(int result, std::string_view doing);

  base::Fd fd_;
  std::unique_ptr<Tls> tls_;
  bool established_ = false;
  bool wants_to_write_ = false;
};

}  // namespace nixl::metadata
