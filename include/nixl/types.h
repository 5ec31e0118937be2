// nixl/types.h - the words that every face of the library shares: kinds of memory, operations,
// states, error codes, descriptors. Complete as C++17; nothing here allocates or throws by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(_WIN32)
#error "NIXL runs on Linux only"
#endif

#define NIXL_API __attribute__((visibility("default")))

namespace nixl {

// Where bytes live. The numbers travel in metadata and in pickled lists: they never change.
enum class MemType : uint8_t { DRAM = 0, VRAM = 1, BLOCK = 2, OBJ = 3, FILE = 4 };
inline constexpr unsigned kMemTypes = 5;

// READ copies from the remote to the local side, WRITE from the local to the remote side.
enum class OpType : uint8_t { READ = 0, WRITE = 1 };

enum class XferState : uint8_t {
  PREPARED = 0,  // never posted
  POSTED = 1,    // in flight
  DONE = 2,      // WRITE: the bytes are in the target's memory; READ: they are in ours
  FAILED = 3,    // lastError() tells why
  CANCELED = 4,  // cancelled, and nothing of it can land any more
};

// Error codes. -1 to -12 are the numbers that programs in the field compare with.
enum class Errc : int {
  OK = 0,
  IN_PROG = 1,
  NOT_POSTED = -1,
  INVALID_PARAM = -2,
  BACKEND = -3,
  NOT_FOUND = -4,
  MISMATCH = -5,
  NOT_ALLOWED = -6,
  REPOST_ACTIVE = -7,
  UNKNOWN = -8,
  NOT_SUPPORTED = -9,
  REMOTE_DISCONNECT = -10,
  CANCELED = -11,
  NO_TELEMETRY = -12,
  TIMEOUT = -20,       // a deadline passed; what was in flight is being cancelled
  STALLED = -21,       // no byte moved for NIXL_STALL_MS
  PARTIAL = -22,       // some pieces are done, some failed: see pieceStatus()
  NOT_QUIESCED = -23,  // cannot promise that nothing lands any more
  LIMIT = -24,         // a bound was reached (unread notifications, handles, ...)
  SHUT_DOWN = -25,     // the agent is being destroyed
  FORKED = -26,        // the agent belongs to the parent process
};

// The enumerator's name, for example "NOT_FOUND"; "UNKNOWN" for numbers that have none.
NIXL_API const char* errcName(Errc code) noexcept;
NIXL_API const char* memTypeName(MemType type) noexcept;      // "DRAM", "VRAM", "BLOCK", ...
NIXL_API const char* xferStateName(XferState state) noexcept;  // "POSTED", "DONE", ...

// What failed calls throw. what() is a sentence: action, object, cause, what to try.
class NIXL_API Error : public std::runtime_error {
 public:
  Error(Errc code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ~Error() override;
  Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};

// One range of memory, of a file, a block device or an object.
//
//   type    address means                 device means         info means
//   DRAM    virtual address               any number, mostly 0  -
//   VRAM    device virtual address        GPU                   -
//   FILE    offset in the file            open descriptor       path, or mode:path
//   OBJ     offset in the object          number of the key     key
//   BLOCK   offset on the device          volume                backend's own
struct MemDescriptor {
  uint64_t address = 0;
  uint64_t length = 0;  // bytes
  uint64_t device = 0;
  MemType type = MemType::DRAM;
  std::string info;

  MemDescriptor() = default;
  MemDescriptor(uint64_t a, uint64_t bytes, uint64_t dev = 0, MemType t = MemType::DRAM,
                std::string text = {})
      : address(a), length(bytes), device(dev), type(t), info(std::move(text)) {}
  // A template, so that a plain 0 is an offset and not a null pointer.
  template <typename T>
  MemDescriptor(T* a, uint64_t bytes, uint64_t dev = 0, MemType t = MemType::DRAM,
                std::string text = {})
      : MemDescriptor(static_cast<uint64_t>(reinterpret_cast<uintptr_t>(a)), bytes, dev, t,
                      std::move(text)) {}
};

// A view of a table of ranges that stays the caller's: `count` rows of `columns` numbers.
// 3 columns: address, length, device. 5 columns: address, length, device, stride, blocks, which
// stands for `blocks` ranges of `length` bytes that start `stride` bytes apart.
// Calls copy what they need before they return.
struct Rows {
  MemType type = MemType::DRAM;
  const uint64_t* data = nullptr;
  size_t count = 0;
  unsigned columns = 3;
};

}  // namespace nixl
