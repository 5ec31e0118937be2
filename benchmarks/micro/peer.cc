#include "peer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace nixl::micro {

namespace {

constexpr timeval kPatience{10, 0};
constexpr size_t kMostPieces = 1024;  // of a call: IOV_MAX

struct Request {  // goes over a connection, ahead of the bytes
  Direction direction;
  uint32_t shape, self, of;
};

struct Command {
  char what;  // 'a' address, 'f' fill, 'w' wipe, 'h' holds
  uint32_t shape;
};

void require(bool good, const char* action) {
  if (!good) throw std::system_error(errno, std::generic_category(), action);
}

void setPatience(int socket) {
  require(::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience) == 0 &&
              ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience) == 0,
          "set a deadline");
}

template <typename Call>
void moveAll(std::span<const iovec> pieces, Call call) {
  std::vector<iovec> left(pieces.begin(), pieces.end());
  size_t at = 0;
  while (at < left.size()) {
    const ssize_t n = call(left.data() + at, std::min(left.size() - at, kMostPieces));
    if (n < 0 && errno == EINTR) continue;
    require(n >= 0, "move bytes over TCP");
    if (n == 0) throw std::runtime_error("move bytes over TCP: the other process has closed it");
    size_t moved = static_cast<size_t>(n);
    while (at < left.size() && moved >= left[at].iov_len) moved -= left[at++].iov_len;
    if (moved != 0)
      left[at] = {static_cast<char*>(left[at].iov_base) + moved, left[at].iov_len - moved};
  }
}

iovec whole(auto& value) { return {&value, sizeof value}; }

// --- the peer's side -----------------------------------------------------------------------------

void serveConnection(int socket, Buffer buffer, const std::vector<Shape>& shapes) {
  // Between rounds it waits as long as the other process lives.
  for (;;) {
    Request request;
    ssize_t n;
    while ((n = ::recv(socket, &request, sizeof request, MSG_WAITALL)) < 0 &&
           (errno == EAGAIN || errno == EINTR)) {
    }
    if (n != sizeof request) return;
    const Shape& shape = shapes.at(request.shape);
    const auto& offsets = request.direction == Direction::WRITE ? shape.destination : shape.source;
    const Part part = partOf(offsets.size(), request.self, request.of);
    const auto mine =
        pieces(buffer.data(), shape.block, std::span(offsets).subspan(part.first, part.count));
    if (request.direction == Direction::READ) {
      sendAll(socket, mine);
    } else {
      receiveAll(socket, mine);
      char landed = 1;
      const iovec answer = whole(landed);
      sendAll(socket, {&answer, 1});
    }
  }
}

uint64_t obey(const Command& command, Buffer buffer, const std::vector<Shape>& shapes) {
  switch (command.what) {
    case 'f':
      fill(buffer);
      return 1;
    case 'w':
      wipe(buffer);
      return 1;
    case 'h':
      return holds(buffer, shapes.at(command.shape)) ? 1 : 0;
    default:
      return reinterpret_cast<uintptr_t>(buffer.data());
  }
}

void serve(int control, const std::vector<int>& sockets, const std::vector<Shape>& shapes,
           size_t buffer_bytes) {
  const Buffer buffer = allocate(Kind::PRIVATE, buffer_bytes);
  for (int socket : sockets) {
    std::thread([=, &shapes] {
      try {
        serveConnection(socket, buffer, shapes);
      } catch (const std::exception&) {  // the other end sees the connection close
        ::close(socket);
      }
    }).detach();
  }
  Command command;
  while (::recv(control, &command, sizeof command, MSG_WAITALL) == sizeof command) {
    const uint64_t answer = obey(command, buffer, shapes);
    if (::send(control, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) break;
  }
}

// Connected sockets over the loopback interface: the first ends are ours.
std::pair<std::vector<int>, std::vector<int>> connectOverTcp(unsigned count) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  require(listener >= 0 && ::bind(listener, generic, length) == 0 && ::listen(listener, 8) == 0 &&
              ::getsockname(listener, generic, &length) == 0,
          "listen on the loopback interface");
  std::vector<int> ours, theirs;
  for (unsigned i = 0; i < count; ++i) {
    ours.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    require(ours.back() >= 0 && ::connect(ours.back(), generic, length) == 0,
            "connect to ourselves");
    theirs.push_back(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    require(theirs.back() >= 0, "accept a connection");
    for (int socket : {ours.back(), theirs.back()}) {
      const int on = 1;
      ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      setPatience(socket);
    }
  }
  ::close(listener);
  return {ours, theirs};
}

}  // namespace

void sendAll(int socket, std::span<const iovec> pieces) {
  moveAll(pieces, [socket](iovec* p, size_t n) {
    msghdr message{};
    message.msg_iov = p;
    message.msg_iovlen = n;
    return ::sendmsg(socket, &message, MSG_NOSIGNAL);  // writev, without the signal
  });
}

void receiveAll(int socket, std::span<const iovec> pieces) {
  moveAll(pieces, [socket](iovec* p, size_t n) { return ::readv(socket, p, static_cast<int>(n)); });
}

std::vector<iovec> pieces(std::byte* buffer, size_t block, std::span<const size_t> offsets) {
  std::vector<iovec> list;
  list.reserve(offsets.size());
  for (size_t offset : offsets) list.push_back({buffer + offset, block});
  return list;
}

Part partOf(size_t n, unsigned self, unsigned of) {
  const size_t first = n * self / of;
  return {first, n * (self + 1) / of - first};
}

Peer::Peer(const std::vector<Shape>& shapes, size_t buffer_bytes, unsigned connections) {
  auto [ours, theirs] = connectOverTcp(connections);
  int control[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control) == 0, "make a socket pair");
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  require(pid_ >= 0, "start the second process");
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(control[0]);
    for (int socket : ours) ::close(socket);
    try {
      if (::getppid() == parent) serve(control[1], theirs, shapes, buffer_bytes);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "machine_limits (second process): %s\n", e.what());
    }
    ::_exit(0);
  }
  ::close(control[1]);
  for (int socket : theirs) ::close(socket);
  control_ = control[0];
  connections_ = ours;
  setPatience(control_);
  buffer_ = reinterpret_cast<std::byte*>(command('a'));
}

Peer::~Peer() {
  ::close(control_);
  for (int socket : connections_) ::close(socket);
  for (int waited = 0; ::waitpid(pid_, nullptr, WNOHANG) == 0; ++waited) {
    if (waited == 1000) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

uint64_t Peer::command(char what, size_t shape) {
  const Command command{what, static_cast<uint32_t>(shape)};
  uint64_t answer = 0;
  require(::send(control_, &command, sizeof command, MSG_NOSIGNAL) == sizeof command &&
              ::recv(control_, &answer, sizeof answer, MSG_WAITALL) == sizeof answer,
          "ask the second process");
  return answer;
}

void Peer::fill() { command('f'); }
void Peer::wipe() { command('w'); }
bool Peer::holds(size_t shape) { return command('h', shape) == 1; }

void Peer::move(Direction direction, size_t shape, unsigned connection, unsigned of,
                std::span<const iovec> mine) {
  const int socket = connections_.at(connection);
  Request request{direction, static_cast<uint32_t>(shape), connection, of};
  const iovec header = whole(request);
  sendAll(socket, {&header, 1});
  if (direction == Direction::READ) return receiveAll(socket, mine);
  sendAll(socket, mine);
  char landed = 0;
  const iovec answer = whole(landed);
  receiveAll(socket, {&answer, 1});
}

}  // namespace nixl::micro
