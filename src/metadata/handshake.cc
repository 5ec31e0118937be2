#include "metadata/handshake.h"

#include <algorithm>

#include "base/bytes.h"

namespace nixl::metadata {

namespace {

constexpr size_t kLongestText = 512;

std::string signedText(const Digest& binding, uint64_t number, Word word,
                       std::string_view payload) {
  base::ByteWriter text;
  text.raw("nixl metadata message 1");
  text.raw(viewOf(binding));
  text.u64(number);
  text.u8(static_cast<uint8_t>(word));
  text.raw(viewOf(sha256({payload})));
  return text.take();
}

template <size_t N>
void copy(base::ByteReader& in, std::array<uint8_t, N>& to) {
  in.copy(to.data(), to.size());
}

}  // namespace

Digest bindingOf(const Digest& client_nonce, const Digest& listener_nonce,
                 const Incarnation& listener) {
  return sha256({"nixl metadata binding 1", viewOf(client_nonce), viewOf(listener_nonce),
                 viewOf(listener.bytes)});
}

std::string encodeHello(const Hello& hello) {
  base::ByteWriter out;
  out.u8(hello.version);
  out.raw(viewOf(hello.nonce));
  out.raw(viewOf(hello.incarnation.bytes));
  return out.take();
}

// What stands behind the known fields is of later versions.
std::optional<Hello> decodeHello(std::string_view payload) {
  base::ByteReader in(payload);
  Hello hello;
  hello.version = in.u8();
  copy(in, hello.nonce);
  copy(in, hello.incarnation.bytes);
  if (!in.ok() || hello.version == 0) return std::nullopt;
  return hello;
}

Digest keyProof(std::string_view key, End end, const Digest& binding) {
  return hmacSha256(key, {end == End::CLIENT ? "nixl metadata client 1"
                                             : "nixl metadata listener 1",
                          viewOf(binding)});
}

Proof prove(const Identity& identity, const Digest& binding, uint64_t number, Word word,
            std::string_view payload) {
  return {identity.publicKey(), identity.sign(signedText(binding, number, word, payload))};
}

bool isProof(const Proof& proof, const Digest& binding, uint64_t number, Word word,
             std::string_view payload) {
  return isSignedBy(proof.key, signedText(binding, number, word, payload), proof.signature);
}

std::string encodeProof(const Proof& proof) {
  return std::string(viewOf(proof.key)).append(viewOf(proof.signature));
}

std::optional<Proof> decodeProof(std::string_view payload) {
  base::ByteReader in(payload);
  Proof proof;
  copy(in, proof.key);
  copy(in, proof.signature);
  if (!in.ok()) return std::nullopt;
  return proof;
}

std::string encodeDenial(Errc code, std::string_view sentence) {
  base::ByteWriter out;
  out.u32(static_cast<uint32_t>(code));
  out.raw(sentence.substr(0, kLongestText));
  return out.take();
}

Status decodeDenial(std::string_view payload) {
  base::ByteReader in(payload);
  auto code = static_cast<Errc>(static_cast<int>(in.u32()));
  std::string sentence = printable(in.view(in.remaining()));
  if (!in.ok() || code != Errc::LIMIT) code = Errc::NOT_ALLOWED;
  return {code, "the peer refuses: " + sentence};
}

std::string printable(std::string_view text) {
  std::string shown(text.substr(0, kLongestText));
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = '?';
  return shown;
}

}  // namespace nixl::metadata
