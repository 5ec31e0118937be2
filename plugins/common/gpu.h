// common/gpu.h - GPUs of any vendor: what a driver can do, as one table. CUDA is one file behind it
// (cuda.cc); another vendor's would be another.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace nixl::gpu {

using Stream = void*;
using Event = void*;

struct DeviceFacts {
  std::string name;
  uint64_t memory = 0;  // bytes
  // What copies can be expected to reach, in bytes per second: over the link to the host, and from
  // one place of the device to another. Derived from what the device and the system say of
  // themselves; `source` tells from what.
  double host_rate = 0, own_rate = 0;
  std::string source;
};

enum class PointerKind {
  HOST,    // the driver knows nothing of it: ordinary memory
  PINNED,  // host memory that the device can reach by itself
  DEVICE,
  MANAGED,  // moves between host and device as it is touched
};

struct PointerFacts {
  PointerKind kind = PointerKind::HOST;
  unsigned device = 0;            // DEVICE
  uint64_t begin = 0, bytes = 0;  // the allocation or mapping around it; 0 bytes: not known
  bool piecewise = false;         // DEVICE: its neighbour may belong to the same range of addresses
};

enum class Way { IN, OUT, WITHIN, ACROSS };  // to a device, from one, inside of one, between two

struct Copy {
  uint64_t to, from, bytes;
};

// One vendor's driver in this process.
//
// Errors:   calls return the vendor's own number; 0 is done. say() makes words of it. Memory and
//           streams need enter() first: calls outside of it fail as the vendor's do.
// Threads:  any. enter() is a matter of the calling thread, whose own state leave() brings back.
// Lifetime: as long as the process.
class Driver {
 public:
  virtual ~Driver() = default;

  virtual const std::string& path() const = 0;  // of the library
  virtual std::string version() const = 0;      // "CUDA 12.8"
  virtual unsigned devices() const = 0;
  virtual DeviceFacts facts(unsigned device) const = 0;

  // "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"
  virtual std::string say(int code) const = 0;
  virtual bool isPending(int code) const = 0;  // of query(): it is still under way
  virtual bool isLost(int code) const = 0;     // the device is of no use to this process any more
  virtual bool isOutOfMemory(int code) const = 0;

  // Counted. The first retain() of a device in a process may take a second.
  virtual int retain(unsigned device) = 0;
  virtual void release(unsigned device) = 0;
  virtual int enter(unsigned device) = 0;
  virtual void leave() = 0;

  virtual int allocate(uint64_t bytes, uint64_t* address) = 0;
  virtual int free(uint64_t address) = 0;
  virtual int allocateHost(uint64_t bytes, void** address) = 0;  // pinned, for every device
  virtual int freeHost(void* address) = 0;
  virtual int pin(void* address, uint64_t bytes) = 0;
  virtual int unpin(void* address) = 0;
  virtual int room(uint64_t* free, uint64_t* total) = 0;
  // Outside of enter() a driver may know less of how far device memory reaches.
  virtual PointerFacts find(uint64_t address) const = 0;
  // Lets the entered device reach memory of another directly, where the machine can.
  virtual void reach(unsigned other) = 0;

  virtual int makeStream(Stream* stream) = 0;
  virtual void endStream(Stream stream) = 0;
  virtual int queryStream(Stream stream) = 0;
  // Starts copies in the order of the stream; `*started` were, also when it fails. Host memory must
  // be pinned. With ACROSS the entered device is the source's, and `other` the target's.
  virtual int copy(Stream stream, Way way, const Copy* copies, uint64_t count, unsigned other,
                   uint64_t* started) = 0;
  // Copies and waits; host memory of any kind.
  virtual int copyNow(Way way, const Copy& copy) = 0;

  virtual int makeEvent(Event* event) = 0;
  virtual void endEvent(Event event) = 0;
  virtual int record(Event event, Stream stream) = 0;
  virtual int query(Event event) = 0;
  virtual int wait(Stream stream, Event event) = 0;  // what follows in the stream comes after it
  // An event of the stream's own device, recorded there now; `stream` is one of the program's.
  virtual int mark(Stream stream, Event* event) = 0;
  // Calls back on a thread of the driver's once what is in the stream is done. The function must
  // not call the driver. After a device was lost it may never come.
  virtual int call(Stream stream, void (*function)(void*), void* data) = 0;
};

// The thread is on a device while this lives.
class Scope {
 public:
  Scope(Driver& driver, unsigned device) : driver_(driver), code_(driver.enter(device)) {}
  ~Scope() {
    if (code_ == 0) driver_.leave();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  int code() const { return code_; }  // 0: it is

 private:
  Driver& driver_;
  const int code_;
};

// The driver of this machine, ready for use. Throws BackendFailure: NOT_FOUND without one or
// without a device, NOT_SUPPORTED in a child of a process that used it before fork().
Driver& open();

// Why there is no driver; "" if there is one. Starts nothing: a program may still fork().
std::string whyNone();

// Host memory, kept pinned while somebody holds this. Memory that lies inside a pinned range shares
// its pin. Null, with the reason, where it cannot be pinned; it may well be used unpinned.
std::shared_ptr<void> pinned(Driver& driver, unsigned device, uint64_t address, uint64_t bytes,
                             std::string* why);

}  // namespace nixl::gpu
