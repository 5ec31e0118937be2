#include "connection_info.h"

#include <cstring>
#include <fstream>

#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

// Little-endian throughout. magic, format, flags, version (3 x 16 bits), zero (16), pid, host
// length (16), zero (16), address length (32), checksum (32), host, address.
constexpr char kMagic[4] = {'N', 'U', 'C', 'X'};
constexpr uint16_t kFormat = 1;
constexpr uint16_t kFlagPeerErrors = 1;
constexpr size_t kHead = 4 + 2 + 2 + 8 + 4 + 4 + 4 + 4;
constexpr size_t kMaxHost = 64;

void put(std::string& out, uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

uint64_t take(std::string_view& in, unsigned bytes) {
  uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i)
    value |= static_cast<uint64_t>(static_cast<uint8_t>(in[i])) << (8 * i);
  in.remove_prefix(bytes);
  return value;
}

uint32_t checksum(std::string_view bytes) {  // FNV-1a
  uint32_t sum = 2166136261u;
  for (const char c : bytes) sum = (sum ^ static_cast<uint8_t>(c)) * 16777619u;
  return sum;
}

[[noreturn]] void refuse(const std::string& why) {
  throw BackendFailure(Errc::BACKEND, "the peer's connection bytes cannot be used: " + why);
}

}  // namespace

std::string encode(const ConnectionInfo& info) {
  std::string head(kMagic, sizeof kMagic);
  put(head, kFormat, 2);
  put(head, info.peer_errors ? kFlagPeerErrors : 0, 2);
  put(head, info.version.major, 2);
  put(head, info.version.minor, 2);
  put(head, info.version.release, 2);
  put(head, 0, 2);
  put(head, info.pid, 4);
  put(head, info.host.size(), 2);
  put(head, 0, 2);
  put(head, info.address.size(), 4);
  const std::string body = info.host + info.address;
  std::string bytes = head;
  put(bytes, checksum(head + body), 4);
  return bytes + body;
}

ConnectionInfo decode(std::string_view bytes) {
  if (bytes.size() < kHead)
    refuse(std::to_string(bytes.size()) + " bytes, and the head alone is " + std::to_string(kHead));
  if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
    refuse("they are not from a UCX engine of this library");
  const std::string_view all = bytes;
  bytes.remove_prefix(sizeof kMagic);
  if (const uint64_t format = take(bytes, 2); format != kFormat)
    refuse("format " + std::to_string(format) + ", and this engine knows " +
           std::to_string(kFormat));
  ConnectionInfo info;
  info.peer_errors = take(bytes, 2) & kFlagPeerErrors;
  info.version.major = static_cast<unsigned>(take(bytes, 2));
  info.version.minor = static_cast<unsigned>(take(bytes, 2));
  info.version.release = static_cast<unsigned>(take(bytes, 2));
  take(bytes, 2);
  info.pid = static_cast<uint32_t>(take(bytes, 4));
  const uint64_t host = take(bytes, 2);
  take(bytes, 2);
  const uint64_t address = take(bytes, 4);
  const auto sum = static_cast<uint32_t>(take(bytes, 4));
  if (host > kMaxHost || address == 0 || address > kMaxAddress || bytes.size() != host + address)
    refuse("their lengths do not add up");
  if (sum != checksum(std::string(all.substr(0, kHead - 4)).append(bytes)))
    refuse("their checksum is wrong");
  info.host = bytes.substr(0, host);
  info.address = bytes.substr(host);
  return info;
}

std::string bootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id.substr(0, kMaxHost);
}

}  // namespace nixl::ucx
