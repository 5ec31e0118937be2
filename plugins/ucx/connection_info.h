// plugins/ucx/connection_info.h - what a peer's UCX engine must know to reach this one.
#pragma once

#include <string>
#include <string_view>

#include "ucx_library.h"

namespace nixl::ucx {

struct ConnectionInfo {
  Version version;       // of the peer's UCX
  bool peer_errors = true;  // its error handling mode
  std::string host;      // boot id: equal on one host
  uint32_t pid = 0;
  std::string address;   // of worker 0, UCX's own bytes
};

inline constexpr size_t kMaxAddress = 64 * 1024;  // bytes

std::string encode(const ConnectionInfo& info);

// Throws nixl::BackendFailure (BACKEND) for bytes that are not a whole, unchanged record. UCX reads
// an address without bounds: the checksum keeps out what was cut or altered by accident; that
// nobody forges one is for the metadata's own protection.
ConnectionInfo decode(std::string_view bytes);

std::string bootId();

}  // namespace nixl::ucx
