// device/lane.h - copies of one way on one device: a stream, what is under way, and what waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/gpu.h"
#include "nixl/backend.h"

namespace nixl::device {

uint64_t nowNs();

// A registered range.
struct Region {
  MemType kind = MemType::DRAM;
  unsigned device = 0;  // VRAM
  uint64_t address = 0, length = 0;
  std::atomic<bool> direct{false};  // DRAM: the device reaches it by itself
  std::shared_ptr<void> pin;        // DRAM: why it does, if that is our doing
};

// A prepared transfer. The arrays of the plan stay the library's.
struct Request {
  nixl_plan plan;
  void* host_request;
  bool ordered = false;  // after what is in `stream` when it is posted
  gpu::Stream stream = nullptr;
  std::atomic<int> under_way{0};  // operations in lanes
};

struct Piece {
  uint64_t to, from, bytes;
  Region *target, *source;
};
Piece pieceOf(const Request& request, uint64_t number);

// A place in a stream of the program's.
class Mark {
 public:
  Mark(gpu::Driver& driver, unsigned device, gpu::Stream stream);  // BackendFailure
  ~Mark();
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  gpu::Event event() const { return event_; }

 private:
  gpu::Driver& driver_;
  const unsigned device_;
  gpu::Event event_ = nullptr;
};

// What the library is to be told once no lock is held.
struct Report {
  void* host_request;
  uint64_t attempt, first, count;
  Errc status;
  uint64_t bytes;
  int native;
  std::string text;
};
using Reports = std::vector<Report>;

// Pieces [next, end) of a request that wait to be started, in order.
struct Slice {
  Request* request;  // until its last piece was reported
  uint64_t attempt;
  uint64_t next, end;
  uint64_t offset = 0;  // of the piece `next`: where it goes on
  uint64_t due_ns = 0;
  std::shared_ptr<Mark> after;
  std::atomic<bool> ordered{false};  // the stream waits for `after` already

  // Pieces that go in parts, and have not ended.
  struct Cut {
    uint64_t left = 0;  // bytes
    Errc status = Errc::OK;
    int native = 0;
  };
  std::map<uint64_t, Cut> cuts;
};

// Rings from a thread of the driver's. Never destroyed while it may still ring.
struct Bell {
  ~Bell();
  int fd = -1;
  std::atomic<int> pending{0};
  static void ring(void* bell);
};

// Host memory that the device reaches goes directly; other memory through pinned slots of our own,
// filled and emptied by whoever calls start() and finish(), while the device works on the other
// slots.
//
// Threads: any. mutex_ guards the queues, and is not held while bytes are copied, copies are
// started, or anybody is told. Reports are for the caller, once he holds no lock.
class Lane {
 public:
  Lane(gpu::Driver& driver, gpu::Way way, unsigned device, unsigned other, double rate, Bell* bell);
  ~Lane();  // only when idle()

  void needStaging();  // the slots are there afterwards; BackendFailure
  void add(std::shared_ptr<Slice> slice);
  bool start(Reports& reports);   // the next that can be started; false: there is none
  bool finish(Reports& reports);  // what has ended; false: nothing
  // Takes what waits of a request (null: of all) out, as cancelled.
  void drop(const Request* request, Reports& reports);

  bool idle() const;  // nothing waits, is under way, or is about to ring
  bool arm();         // true: there is something to do now. Else the bell rings when there is
  uint64_t nextTimer() const;

  gpu::Way way() const { return way_; }
  unsigned device() const { return device_; }
  unsigned other() const { return other_; }

 private:
  struct Part {  // pieces, or a part of one
    uint64_t first = 0, count = 0, bytes = 0;
    bool cut = false;
    uint64_t offset = 0;  // cut: where in the piece
    Errc status = Errc::OK;
    int native = 0;
  };
  struct Operation {
    std::shared_ptr<Slice> slice;
    std::vector<Part> parts;
    std::vector<gpu::Copy> copies;
    std::vector<size_t> owner;        // of copies: the last of the parts that it carries
    uint64_t bytes = 0, planned = 0;  // planned: copies, as counted in copies_
    int slot = -1;                    // staged
    gpu::Event event = nullptr;       // null: the stream's end tells
    Errc status = Errc::OK;
    int native = 0;
  };
  enum class Ready { YES, NOTHING_WAITS, NO_ROOM, NOT_DUE, AFTER_OTHERS };

  Ready ready() const;  // mutex_ is held, as by all that follow
  bool staged(const Slice& slice) const;
  int freeSlot() const;
  Operation build();
  void end(Slice& slice, const Part& part, Errc status, int native, Reports& reports);
  void failAllWaiting(Reports& reports);
  Report reportOf(const Slice& slice, uint64_t first, uint64_t count, uint64_t bytes, Errc status,
                  int native) const;
  int codeOf(const Operation& operation);

  // Without it:
  void launch(Operation& operation);
  void moveStaged(const Operation& operation, bool in);

  gpu::Driver& driver_;
  const gpu::Way way_;
  const unsigned device_, other_;
  const uint64_t most_bytes_;  // under way at a time
  Bell* const bell_;
  gpu::Stream stream_ = nullptr;

  mutable std::mutex mutex_;
  std::deque<std::shared_ptr<Slice>> waiting_;
  std::deque<Operation> running_;
  int busy_ = 0;                     // operations that a thread starts or ends at the moment
  uint64_t bytes_ = 0, copies_ = 0;  // of running_, and of those being started
  std::vector<gpu::Event> events_;   // unused
  std::byte* slots_ = nullptr;       // kSlots of kSlotBytes
  std::vector<bool> slot_used_;
  int lost_ = 0;        // the device is, with this code
  bool armed_ = false;  // the bell rings after the last of running_
  bool deaf_ = false;   // no bell could be hung up: look from time to time
};

}  // namespace nixl::device
