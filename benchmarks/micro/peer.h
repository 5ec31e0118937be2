// micro/peer.h - the second process: its memory is written to and read, and it answers on sockets.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <vector>

#include "memory.h"

namespace nixl::micro {

enum class Direction : uint8_t { WRITE, READ };  // to the peer, from it

// Reads or writes everything, in as few calls as the kernel allows. Throws on an error, at the end
// of the stream, and after kPatience without a byte.
void sendAll(int socket, std::span<const iovec> pieces);
void receiveAll(int socket, std::span<const iovec> pieces);

// The blocks at `offsets` in a buffer that begins at `buffer`, here or in the other process.
std::vector<iovec> pieces(std::byte* buffer, size_t block, std::span<const size_t> offsets);

class Peer {
 public:
  // Forks: call it before there are threads. The peer has `connections` threads, one for each.
  Peer(const std::vector<Shape>& shapes, size_t buffer_bytes, unsigned connections);
  ~Peer();  // reaped, within a second

  pid_t pid() const { return pid_; }
  std::byte* buffer() const { return buffer_; }  // its own, private; an address of that process

  void fill();
  void wipe();
  bool holds(size_t shape);  // index into `shapes`

  // Moves a part of a shape over connection number `connection` of `of`; `mine` is our side of that
  // part. Returns when the last byte is where it belongs.
  void move(Direction direction, size_t shape, unsigned connection, unsigned of,
            std::span<const iovec> mine);

 private:
  uint64_t command(char what, size_t shape = 0);

  pid_t pid_ = -1;
  int control_ = -1;
  std::vector<int> connections_;
  std::byte* buffer_ = nullptr;
};

// The part of n things that worker `self` of `of` has.
struct Part {
  size_t first, count;
};
Part partOf(size_t n, unsigned self, unsigned of);

}  // namespace nixl::micro
