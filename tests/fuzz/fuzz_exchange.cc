// A hostile peer of the direct exchange: the frame reader, the commands and what proves who sent
// them over any stream, cut into any pieces. The first byte says how long these are.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "metadata/frame.h"
#include "metadata/handshake.h"

namespace {

using namespace nixl;
using namespace nixl::metadata;

constexpr uint64_t kLimit = 1 << 20;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_exchange: %s\n", what);
  std::abort();
}

// The bodies, and whether the stream ends in one that is too long.
struct Parsed {
  std::vector<std::string> bodies;
  bool too_long = false;

  bool operator==(const Parsed&) const = default;
};

Parsed inOneGo(std::string_view stream) {
  Parsed parsed;
  base::ByteReader in(stream);
  while (in.remaining() >= 8) {
    uint64_t length = in.u64();
    if (length > kLimit) {
      parsed.too_long = true;
      break;
    }
    std::string_view body = in.view(length);
    if (!in.ok()) break;
    parsed.bodies.emplace_back(body);
  }
  return parsed;
}

Parsed inPieces(std::string_view stream, size_t piece) {
  Parsed parsed;
  FrameReader reader(kLimit);
  while (!stream.empty()) {
    std::span<char> space = reader.space();
    require(!space.empty(), "no space for what comes");
    require(space.size() <= std::max<uint64_t>(64 << 10, reader.received()), "too much memory");
    size_t n = std::min({space.size(), stream.size(), piece});
    std::memcpy(space.data(), stream.data(), n);
    stream.remove_prefix(n);
    if (!reader.filled(n).ok()) {
      parsed.too_long = true;
      break;
    }
    if (!reader.complete()) continue;
    parsed.bodies.emplace_back(reader.body());
    reader.next();
  }
  return parsed;
}

// What is said before metadata is.
void tryGreeting(const Command& command) {
  const std::string_view payload = command.payload;
  if (command.word == Word::HELO) {
    std::optional<Hello> hello = decodeHello(payload);
    require(!hello || payload.starts_with(encodeHello(*hello)), "another greeting");
  }
  if (command.word == Word::SIGN) {
    std::optional<Proof> proof = decodeProof(payload);
    require(!proof || payload.starts_with(encodeProof(*proof)), "another proof");
    require(!proof || !isProof(*proof, {}, 0, Word::LOAD, payload), "a proof of itself");
  }
  if (command.word == Word::DENY) {
    Status status = decodeDenial(payload);
    require(!status.ok() && status.message().size() < 600, "a denial that is none");
    for (char c : status.message()) require(static_cast<unsigned char>(c) >= ' ', "a control code");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view stream(reinterpret_cast<const char*>(data) + 1, size - 1);
  Parsed parsed = inPieces(stream, 1 + data[0]);
  require(parsed == inOneGo(stream), "the pieces made a difference");
  for (const std::string& body : parsed.bodies) {
    std::optional<Command> command = parseCommand(body);
    if (!command) continue;
    require(body.size() == 13 + command->payload.size() && body.ends_with(command->payload),
            "a payload that is not the rest of the body");
    std::string frame;
    appendFrame(frame, command->word, command->payload);
    require(frame.substr(8) == body, "a command that is written in another way");
    tryGreeting(*command);
  }
  return 0;
}
