// nixlbench/frames.h - requests and answers on a stream socket: four bytes of length, then CBOR.
#pragma once

#include <chrono>
#include <optional>

#include "nixlbench/target.h"

namespace nixl::bench {

using Deadline = std::chrono::steady_clock::time_point;

// Both throw TIMEOUT at the deadline and REMOTE_DISCONNECT on an error of the socket.
void sendFrame(int fd, const Json& message, Deadline deadline);
std::optional<Json> receiveFrame(int fd, Deadline deadline);  // nothing: the other side closed it

}  // namespace nixl::bench
