// metadata/frame.h - the frames of the direct exchange: told apart, not understood. No I/O.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nixl::metadata {

// What a frame says. The first three are the field's protocol; a peer that does not know the others
// ignores them.
enum class Word {
  LOAD,  // metadata of the sender
  SEND,  // asks for the receiver's: answered by LOAD on the same connection
  INVL,  // name of an agent to forget
  SYNC,  // u64 number: answer DONE when all that came before is done
  DONE,  // u64 number, i32 code and text: what became of the messages before SYNC
  HELO,  // asks for, and gives, a number for proofs: handshake.h, as for the others
  AUTH,  // proves the key that both ends have
  SIGN,  // proves whose the LOAD or INVL after it is
  DENY,  // i32 code and text: why the sender ends the connection
};

struct Command {
  Word word;
  std::string_view payload;
};

// A frame's body by its first 13 bytes: what follows may be anything, that text included. Nothing
// for bodies that are no command.
std::optional<Command> parseCommand(std::string_view body);

// Appends a whole frame: u64 length, "NIXLCOMM:", the word's four letters, payload.
void appendFrame(std::string& to, Word word, std::string_view payload);

// Collects one frame after the other from a stream. Takes memory as bytes arrive, at most twice
// their number: an announced length alone takes none.
class FrameReader {
 public:
  // `limit`: of a body, in bytes.
  explicit FrameReader(uint64_t limit) : limit_(limit) {}

  // Where the next bytes go: never beyond this frame, and never empty unless complete(). Valid
  // until the next call of any other method.
  std::span<char> space();

  // The first n bytes of space() were filled. LIMIT when the frame announces too long a body: the
  // stream cannot be read on from there.
  Status filled(size_t n);

  bool complete() const { return head_bytes_ == head_.size() && received_ == length_; }
  std::string_view body() const { return std::string_view(buffer_).substr(0, received_); }
  void next();  // forgets the complete frame

  // For frames whose head has not come yet.
  void setLimit(uint64_t limit) { limit_ = limit; }

  bool started() const { return head_bytes_ > 0; }
  uint64_t received() const { return received_; }  // bytes of the body
  uint64_t length() const { return length_; }      // of the body, once the head is there

 private:
  uint64_t limit_;
  std::array<char, 8> head_;
  size_t head_bytes_ = 0;
  uint64_t length_ = 0;
  std::string buffer_;
  size_t received_ = 0;
};

}  // namespace nixl::metadata
