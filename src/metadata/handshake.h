// metadata/handshake.h - how the two ends of a connection prove who they are: texts, no I/O.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "metadata/crypto.h"
#include "metadata/frame.h"

namespace nixl::metadata {

// The end that connected, and the one that listened. What one proves is never a proof of the other,
// so that nothing can be sent back to where it came from.
enum class End { CLIENT, LISTENER };

// Over a connection in clear, both ends contribute a number that was never used before; inside of
// TLS the channel itself has one. Every proof covers it, so one that was recorded proves nothing.
// `listener` is the incarnation that answered.
Digest bindingOf(const Digest& client_nonce, const Digest& listener_nonce,
                 const Incarnation& listener);

// HELO. The client's names its nonce, the listener's also who it is.
struct Hello {
  static constexpr uint8_t kVersion = 1;

  uint8_t version = kVersion;
  Digest nonce{};
  Incarnation incarnation = {};  // zeroes in the client's
};
std::string encodeHello(const Hello& hello);
std::optional<Hello> decodeHello(std::string_view payload);

// AUTH: `key` is the one that both ends have.
Digest keyProof(std::string_view key, End end, const Digest& binding);

// SIGN: that the message after it, the `number`th of its connection, is of the agent with this key.
struct Proof {
  PublicKey key{};
  Signature signature{};
};
Proof prove(const Identity& identity, const Digest& binding, uint64_t number, Word word,
            std::string_view payload);
bool isProof(const Proof& proof, const Digest& binding, uint64_t number, Word word,
             std::string_view payload);
std::string encodeProof(const Proof& proof);
std::optional<Proof> decodeProof(std::string_view payload);

// DENY: why the sender ends the connection, for the other end's user to read.
std::string encodeDenial(Errc code, std::string_view sentence);
Status decodeDenial(std::string_view payload);  // LIMIT or NOT_ALLOWED; fit for a log

// What others wrote, fit for a log line: no control characters, at most 512 bytes.
std::string printable(std::string_view text);

}  // namespace nixl::metadata
