#include "lane.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

namespace nixl::device {
namespace {

constexpr uint64_t kSlotBytes = 1 << 20, kSlots = 4;
constexpr uint64_t kMostPieces = 64;    // in one operation
constexpr size_t kMostOperations = 32;  // under way; a driver's queue holds some 1,000 commands
constexpr uint64_t kMostCopies = 512;
constexpr double kLongest = 5e-3;  // seconds of work under way; the rest can still be cancelled
constexpr uint64_t kFewestBytes = uint64_t{64} << 20;

constexpr uint64_t kLook = 100'000;       // ns between looks where no bell rings,
constexpr uint64_t kSeldom = 10'000'000;  // and where one does, should the device be lost

}  // namespace

uint64_t nowNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
}

Piece pieceOf(const Request& request, uint64_t i) {
  const nixl_plan& p = request.plan;
  auto* const local = static_cast<Region*>(p.local_regions[p.local_region ? p.local_region[i] : 0]);
  auto* const remote =
      static_cast<Region*>(p.remote_regions[p.remote_region ? p.remote_region[i] : 0]);
  if (static_cast<OpType>(p.op) == OpType::WRITE)
    return {p.remote_addr[i], p.local_addr[i], p.length[i], remote, local};
  return {p.local_addr[i], p.remote_addr[i], p.length[i], local, remote};
}

Mark::Mark(gpu::Driver& driver, unsigned device, gpu::Stream stream)
    : driver_(driver), device_(device) {
  gpu::Scope scope(driver, device);
  const int code = scope.code() != 0 ? scope.code() : driver.mark(stream, &event_);
  if (code != 0)
    throw BackendFailure(Errc::INVALID_PARAM,
                         "order a transfer after a stream: " + driver.say(code), code);
}

Mark::~Mark() {
  gpu::Scope scope(driver_, device_);
  driver_.endEvent(event_);
}

Bell::~Bell() {
  if (fd >= 0) ::close(fd);
}

void Bell::ring(void* bell) {
  auto* const self = static_cast<Bell*>(bell);
  const uint64_t one = 1;
  // It cannot be full, and there is nobody to tell.
  [[maybe_unused]] const ssize_t written = ::write(self->fd, &one, sizeof one);
  self->pending.fetch_sub(1, std::memory_order_release);  // the last use of it
}

Lane::Lane(gpu::Driver& driver, gpu::Way way, unsigned device, unsigned other, double rate,
           Bell* bell)
    : driver_(driver),
      way_(way),
      device_(device),
      other_(other),
      most_bytes_(std::max(kFewestBytes, static_cast<uint64_t>(rate * kLongest))),
      bell_(bell) {
  gpu::Scope scope(driver, device);
  const int code = scope.code() != 0 ? scope.code() : driver.makeStream(&stream_);
  if (code != 0)
    throw BackendFailure(Errc::BACKEND,
                         "make a stream on GPU " + std::to_string(device) + ": " + driver.say(code),
                         code);
}

Lane::~Lane() {
  gpu::Scope scope(driver_, device_);
  for (gpu::Event event : events_) driver_.endEvent(event);
  driver_.endStream(stream_);
  if (slots_ != nullptr) driver_.freeHost(slots_);
}

void Lane::needStaging() {
  std::lock_guard lock(mutex_);
  if (slots_ != nullptr) return;
  gpu::Scope scope(driver_, device_);
  void* memory = nullptr;
  const int code =
      scope.code() != 0 ? scope.code() : driver_.allocateHost(kSlots * kSlotBytes, &memory);
  if (code != 0)
    throw BackendFailure(driver_.isOutOfMemory(code) ? Errc::LIMIT : Errc::BACKEND,
                         "allocate pinned memory, through which unpinned memory goes to GPU " +
                             std::to_string(device_) + ": " + driver_.say(code),
                         code);
  slots_ = static_cast<std::byte*>(memory);
  slot_used_.assign(kSlots, false);
}

void Lane::add(std::shared_ptr<Slice> slice) {
  std::lock_guard lock(mutex_);
  waiting_.push_back(std::move(slice));
}

bool Lane::idle() const {
  std::lock_guard lock(mutex_);
  if (!waiting_.empty() || !running_.empty() || busy_ != 0) return false;
  if (!armed_) return true;
  gpu::Scope scope(driver_, device_);
  return scope.code() != 0 || !driver_.isPending(driver_.queryStream(stream_));
}

// ---- what is started next -----------------------------------------------------------------------

bool Lane::staged(const Slice& slice) const {
  if (way_ != gpu::Way::IN && way_ != gpu::Way::OUT) return false;
  const Piece piece = pieceOf(*slice.request, slice.next);
  const Region* const host = way_ == gpu::Way::IN ? piece.source : piece.target;
  return piece.bytes > 0 && !host->direct.load();
}

int Lane::freeSlot() const {
  const auto found = std::find(slot_used_.begin(), slot_used_.end(), false);
  return found == slot_used_.end() ? -1 : static_cast<int>(found - slot_used_.begin());
}

Lane::Ready Lane::ready() const {
  if (waiting_.empty()) return Ready::NOTHING_WAITS;
  const Slice& slice = *waiting_.front();
  if (slice.due_ns != 0 && slice.due_ns > nowNs()) return Ready::NOT_DUE;
  if (lost_ != 0) return Ready::YES;
  if (running_.size() + static_cast<size_t>(busy_) >= kMostOperations || copies_ >= kMostCopies ||
      bytes_ >= most_bytes_)
    return Ready::NO_ROOM;
  if (!staged(slice)) return Ready::YES;
  if (freeSlot() < 0) return Ready::NO_ROOM;
  // The processor is about to read or write the memory that others may be at work on.
  if (slice.after && driver_.isPending(driver_.query(slice.after->event())))
    return Ready::AFTER_OTHERS;
  return Ready::YES;
}

// Takes as much of the first slice as one operation carries.
Lane::Operation Lane::build() {
  Operation op;
  op.slice = waiting_.front();
  Slice& slice = *op.slice;
  const bool through_slot = staged(slice);
  if (through_slot) {
    op.slot = freeSlot();
    slot_used_[static_cast<size_t>(op.slot)] = true;
  }
  const uint64_t slot = through_slot ? reinterpret_cast<uint64_t>(slots_) +
                                           static_cast<uint64_t>(op.slot) * kSlotBytes
                                     : 0;
  const uint64_t most = through_slot ? kSlotBytes : most_bytes_;
  for (uint64_t taken = 0; slice.next < slice.end && taken < kMostPieces; ++taken) {
    if (staged(slice) != through_slot) break;
    const Piece piece = pieceOf(*slice.request, slice.next);
    uint64_t bytes = piece.bytes - slice.offset;
    const bool cut = slice.offset != 0 || (through_slot && bytes > kSlotBytes);
    if (cut) {
      if (taken > 0) break;  // alone, so that it gets a whole slot
      bytes = std::min(bytes, kSlotBytes);
    } else if (taken > 0 && op.bytes + bytes > most) {
      break;
    }
    Part part{slice.next, 1, bytes, cut, slice.offset};
    gpu::Copy copy{piece.to + slice.offset, piece.from + slice.offset, bytes};
    if (through_slot) (way_ == gpu::Way::IN ? copy.from : copy.to) = slot + op.bytes;
    // Pieces that touch on both sides need one copy: in a slot they always do on one.
    const bool goes_on = through_slot && !op.copies.empty() &&
                         op.copies.back().to + op.copies.back().bytes == copy.to &&
                         op.copies.back().from + op.copies.back().bytes == copy.from;
    op.parts.push_back(part);
    if (goes_on) {
      op.copies.back().bytes += bytes;
      op.owner.back() = op.parts.size() - 1;
    } else if (bytes > 0) {
      op.copies.push_back(copy);
      op.owner.push_back(op.parts.size() - 1);
    }
    op.bytes += bytes;
    if (cut) slice.cuts.try_emplace(slice.next, Slice::Cut{piece.bytes, Errc::OK, 0});
    if (cut && slice.offset + bytes < piece.bytes) {
      slice.offset += bytes;
      break;
    }
    slice.offset = 0;
    ++slice.next;
    if (cut) break;
  }
  if (slice.next == slice.end) waiting_.pop_front();
  bytes_ += op.bytes;
  op.planned = op.copies.size();
  copies_ += op.planned;
  ++busy_;
  ++slice.request->under_way;
  return op;
}

bool Lane::start(Reports& reports) {
  std::unique_lock lock(mutex_);
  if (ready() != Ready::YES) return false;
  if (lost_ != 0) {
    failAllWaiting(reports);
    return true;
  }
  Operation op = build();
  if (!events_.empty()) {
    op.event = events_.back();
    events_.pop_back();
  }
  lock.unlock();
  if (op.slot >= 0 && way_ == gpu::Way::IN) moveStaged(op, true);
  launch(op);
  lock.lock();
  --busy_;
  running_.push_back(std::move(op));
  armed_ = false;
  return true;
}

// Between the pieces and their slot.
void Lane::moveStaged(const Operation& op, bool in) {
  std::byte* at = slots_ + static_cast<uint64_t>(op.slot) * kSlotBytes;
  for (const Part& part : op.parts) {
    const Piece piece = pieceOf(*op.slice->request, part.first);
    if (part.bytes == 0) continue;
    if (in)
      std::memcpy(at, reinterpret_cast<const void*>(piece.from + part.offset), part.bytes);
    else if (part.status == Errc::OK)
      std::memcpy(reinterpret_cast<void*>(piece.to + part.offset), at, part.bytes);
    at += part.bytes;
  }
}

// Starts the copies. Those that the driver refuses fail their parts, the others go on.
void Lane::launch(Operation& op) {
  gpu::Scope scope(driver_, device_);
  int code = scope.code();
  Slice& slice = *op.slice;
  // Two threads may both find that it does not wait yet; twice does no harm.
  if (code == 0 && slice.after && !slice.ordered.load())
    code = driver_.wait(stream_, slice.after->event());
  size_t part = 0;
  auto fail = [&](size_t until, int why) {
    for (; part < until; ++part) {
      op.parts[part].status = Errc::BACKEND;
      op.parts[part].native = why;
    }
  };
  if (code != 0) {
    fail(op.parts.size(), code);
    op.copies.clear();
    return;
  }
  slice.ordered.store(true);
  uint64_t started = 0;
  for (size_t at = 0; at < op.copies.size();) {
    uint64_t some = 0;
    const int why =
        driver_.copy(stream_, way_, op.copies.data() + at, op.copies.size() - at, other_, &some);
    started += some;
    at += some;
    if (some > 0) part = op.owner[at - 1] + 1;
    if (why == 0) break;
    if (driver_.isLost(why)) {
      fail(op.parts.size(), why);
      break;
    }
    fail(op.owner[at] + 1, why);
    ++at;
  }
  if (started == 0 && op.copies.empty()) return;  // nothing but pieces without a byte
  if (op.event == nullptr && driver_.makeEvent(&op.event) != 0) op.event = nullptr;
  if (op.event != nullptr && driver_.record(op.event, stream_) != 0) {
    driver_.endEvent(op.event);
    op.event = nullptr;
  }
}

// ---- what has ended -----------------------------------------------------------------------------

// The driver's word about an operation: pending, done, or what went wrong.
int Lane::codeOf(const Operation& op) {
  if (op.copies.empty()) return 0;
  gpu::Scope scope(driver_, device_);
  if (scope.code() != 0) return scope.code();
  if (op.event != nullptr) {
    const int code = driver_.query(op.event);
    // A question that fails is no answer: only a device that is lost, or a stream that has come to
    // its end, makes sure that nothing lands any more.
    if (code == 0 || driver_.isPending(code) || driver_.isLost(code)) return code;
  }
  return driver_.queryStream(stream_);
}

bool Lane::finish(Reports& reports) {
  std::unique_lock lock(mutex_);
  bool any = false;
  while (!running_.empty()) {
    const int code = codeOf(running_.front());
    if (driver_.isPending(code)) break;
    if (code != 0 && !driver_.isLost(code)) break;  // not an answer either: ask again later
    any = true;
    Operation op = std::move(running_.front());
    running_.pop_front();
    bytes_ -= op.bytes;
    copies_ -= op.planned;
    if (driver_.isLost(code)) lost_ = code;
    for (const Part& part : op.parts)
      if (driver_.isLost(part.native)) lost_ = part.native;
    if (op.slot >= 0 && way_ == gpu::Way::OUT && code == 0) {
      ++busy_;
      lock.unlock();
      moveStaged(op, false);
      lock.lock();
      --busy_;
    }
    if (op.slot >= 0) slot_used_[static_cast<size_t>(op.slot)] = false;
    if (op.event != nullptr) events_.push_back(op.event);
    for (const Part& part : op.parts) {
      const bool failed_early = part.status != Errc::OK;
      end(*op.slice, part,
          failed_early ? part.status
          : code == 0  ? Errc::OK
                       : Errc::BACKEND,
          failed_early ? part.native : code, reports);
    }
    --op.slice->request->under_way;
  }
  return any;
}

void Lane::end(Slice& slice, const Part& part, Errc status, int native, Reports& reports) {
  if (!part.cut) {
    if (!reports.empty()) {  // neighbours that end alike are one report
      Report& last = reports.back();
      if (last.host_request == slice.request->host_request && last.attempt == slice.attempt &&
          last.first + last.count == part.first && last.status == status && last.native == native) {
        last.count += part.count;
        last.bytes += status == Errc::OK ? part.bytes : 0;
        return;
      }
    }
    reports.push_back(reportOf(slice, part.first, part.count, part.bytes, status, native));
    return;
  }
  auto found = slice.cuts.find(part.first);
  Slice::Cut& cut = found->second;
  cut.left -= part.bytes;
  if (status != Errc::OK && cut.status == Errc::OK) {
    cut.status = status;
    cut.native = native;
  }
  if (cut.left > 0) return;
  const uint64_t bytes = slice.request->plan.length[part.first];
  reports.push_back(reportOf(slice, part.first, 1, bytes, cut.status, cut.native));
  slice.cuts.erase(found);
}

Report Lane::reportOf(const Slice& slice, uint64_t first, uint64_t count, uint64_t bytes,
                      Errc status, int native) const {
  Report report{slice.request->host_request,    slice.attempt, first, count, status,
                status == Errc::OK ? bytes : 0, native,        ""};
  if (status == Errc::OK || status == Errc::CANCELED) return report;
  const std::string gpu = "GPU " + std::to_string(device_);
  switch (way_) {
    case gpu::Way::IN:
      report.text = "copy from host memory to " + gpu;
      break;
    case gpu::Way::OUT:
      report.text = "copy from " + gpu + " to host memory";
      break;
    case gpu::Way::WITHIN:
      report.text = "copy inside of " + gpu;
      break;
    case gpu::Way::ACROSS:
      report.text = "copy from " + gpu + " to GPU " + std::to_string(other_);
      break;
  }
  report.text += ": " + driver_.say(native);
  if (driver_.isLost(native))
    report.text += "; this process cannot use the device any more, a new one may";
  return report;
}

void Lane::failAllWaiting(Reports& reports) {
  while (!waiting_.empty()) {
    const auto slice = std::move(waiting_.front());
    waiting_.pop_front();
    for (; slice->next < slice->end; ++slice->next, slice->offset = 0) {
      const uint64_t bytes = slice->request->plan.length[slice->next] - slice->offset;
      end(*slice, {slice->next, 1, bytes, slice->offset != 0, slice->offset}, Errc::BACKEND, lost_,
          reports);
    }
  }
}

void Lane::drop(const Request* request, Reports& reports) {
  std::lock_guard lock(mutex_);
  std::deque<std::shared_ptr<Slice>> kept;
  for (auto& slice : waiting_) {
    if (request != nullptr && slice->request != request) {
      kept.push_back(std::move(slice));
      continue;
    }
    for (; slice->next < slice->end; ++slice->next, slice->offset = 0) {
      const uint64_t bytes = slice->request->plan.length[slice->next] - slice->offset;
      end(*slice, {slice->next, 1, bytes, slice->offset != 0, slice->offset}, Errc::CANCELED, 0,
          reports);
    }
  }
  waiting_.swap(kept);
}

// ---- sleeping -----------------------------------------------------------------------------------

bool Lane::arm() {
  std::lock_guard lock(mutex_);
  if (ready() == Ready::YES) return true;
  if (running_.empty()) return false;
  const int code = codeOf(running_.front());
  if (code == 0 || driver_.isLost(code)) return true;
  deaf_ = false;
  if (armed_) return false;
  gpu::Scope scope(driver_, device_);
  bell_->pending.fetch_add(1, std::memory_order_relaxed);
  if (scope.code() == 0 && driver_.call(stream_, &Bell::ring, bell_) == 0) {
    armed_ = true;
  } else {
    bell_->pending.fetch_sub(1, std::memory_order_relaxed);
    deaf_ = true;
  }
  return false;
}

uint64_t Lane::nextTimer() const {
  std::lock_guard lock(mutex_);
  uint64_t timer = NIXL_NEVER;
  if (!running_.empty() || busy_ > 0) timer = nowNs() + (deaf_ ? kLook : kSeldom);
  switch (ready()) {
    case Ready::NOT_DUE:
      timer = std::min(timer, waiting_.front()->due_ns);
      break;
    case Ready::AFTER_OTHERS:
      timer = std::min(timer, nowNs() + kLook);
      break;
    case Ready::YES:
      return 0;
    default:
      break;
  }
  return timer;
}

}  // namespace nixl::device
