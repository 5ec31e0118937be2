// The few functions that nixl/types.h declares.

#include "nixl/types.h"

namespace nixl {

const char* errcName(Errc code) noexcept {
  switch (code) {
    case Errc::OK: return "OK";
    case Errc::IN_PROG: return "IN_PROG";
    case Errc::NOT_POSTED: return "NOT_POSTED";
    case Errc::INVALID_PARAM: return "INVALID_PARAM";
    case Errc::BACKEND: return "BACKEND";
    case Errc::NOT_FOUND: return "NOT_FOUND";
    case Errc::MISMATCH: return "MISMATCH";
    case Errc::NOT_ALLOWED: return "NOT_ALLOWED";
    case Errc::REPOST_ACTIVE: return "REPOST_ACTIVE";
    case Errc::UNKNOWN: return "UNKNOWN";
    case Errc::NOT_SUPPORTED: return "NOT_SUPPORTED";
    case Errc::REMOTE_DISCONNECT: return "REMOTE_DISCONNECT";
    case Errc::CANCELED: return "CANCELED";
    case Errc::NO_TELEMETRY: return "NO_TELEMETRY";
    case Errc::TIMEOUT: return "TIMEOUT";
    case Errc::STALLED: return "STALLED";
    case Errc::PARTIAL: return "PARTIAL";
    case Errc::NOT_QUIESCED: return "NOT_QUIESCED";
    case Errc::LIMIT: return "LIMIT";
    case Errc::SHUT_DOWN: return "SHUT_DOWN";
    case Errc::FORKED: return "FORKED";
  }
  return "UNKNOWN";
}

const char* memTypeName(MemType type) noexcept {
  constexpr const char* kNames[] = {"DRAM", "VRAM", "BLOCK", "OBJ", "FILE"};
  const auto index = static_cast<unsigned>(type);
  return index < kMemTypes ? kNames[index] : "UNKNOWN";
}

const char* xferStateName(XferState state) noexcept {
  constexpr const char* kNames[] = {"PREPARED", "POSTED", "DONE", "FAILED", "CANCELED"};
  const auto index = static_cast<unsigned>(state);
  return index < 5 ? kNames[index] : "UNKNOWN";
}

Error::~Error() = default;

}  // namespace nixl
