// plugins/device/device.cc - copies between host memory and GPUs, and between GPUs, inside one
// agent.
//
// What it says of itself, registration, requests, progress; how bytes move is in lane.cc, the
// vendor's driver behind common/gpu.h. Read plugins/loopback first, the smallest engine.

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "lane.h"

namespace nixl::device {
namespace {

// ---- what it says of itself -----------------------------------------------------------------

constexpr uint64_t kLongestDelayUs = 60'000'000;

constexpr nixl_option kOptions[] = {
    {"pin", "auto",
     "auto: host memory is pinned when it is registered, so that devices reach it by themselves; "
     "never: it goes through pinned buffers of the engine"},
    {"delay_us", "0", "microseconds that a transfer waits before it starts; for tests"},
    {nullptr, nullptr, nullptr},
};

nixl_facts deviceFacts() {
  auto f = backendFacts({MemType::DRAM, MemType::VRAM}, NIXL_ENGINE_LOCAL | NIXL_ENGINE_NOTIF);
  // What the driver has begun cannot be cancelled: a piece is some milliseconds on the slowest
  // link.
  f.max_piece = 64 << 20;
  f.max_slice = 64;
  return f;
}

constexpr nixl_option kVariables[] = {
    {"NIXL_CUDA_PATH", "", "libcuda.so.1 to open, or its folder; empty: the system's"},
    {nullptr, nullptr, nullptr},
};

void inspect(const Findings& tell) {
  gpu::Driver& driver = gpu::open();
  tell("library", driver.path() + " (" + driver.version() + ")");
  for (unsigned device = 0; device < driver.devices(); ++device) {
    const gpu::DeviceFacts facts = driver.facts(device);
    tell("device " + std::to_string(device),
         facts.name + ", " + std::to_string(facts.memory >> 20) + " MB; " + facts.source);
  }
}

BackendDescription description() {
  return {"DEVICE", "1.0",         "copies between host and GPU memory inside one agent",
          kOptions, deviceFacts(), kVariables,
          &inspect};
}

std::string hex(uint64_t number) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%" PRIx64, number);
  return text;
}

std::string describe(uint64_t address, uint64_t length) {
  return hex(address) + " (" + std::to_string(length) + " bytes)";
}

uint64_t numberOf(std::string_view text, bool* good) {
  const bool hexadecimal = text.substr(0, 2) == "0x";
  if (hexadecimal) text.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, failure] =
      std::from_chars(text.data(), text.data() + text.size(), value, hexadecimal ? 16 : 10);
  *good = failure == std::errc() && end == text.data() + text.size();
  return value;
}

// ---- the engine -----------------------------------------------------------------------------

// Threads: registering_ comes before mutex_, and may be held as long as it takes to pin memory.
// Lanes have locks of their own. None is held while the library is called back. A thread that comes
// in is put on the device for the time of a call, and leaves with the context that it came with.
class DeviceEngine final : public BackendEngine {
 public:
  explicit DeviceEngine(const BackendArgs& args)
      : BackendEngine(args, deviceFacts()),
        driver_(gpu::open()),
        pin_(pinOf(args)),
        delay_ns_(delayOf(args) * 1000),
        retained_(driver_.devices()),
        bell_(std::make_unique<Bell>()) {
    bell_->fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (bell_->fd < 0)
      throw BackendFailure(Errc::LIMIT, std::string("make an eventfd: ") + std::strerror(errno));
    log(NIXL_LEVEL_INFO, __FILE__, __LINE__, "%s, %s, %u devices", driver_.path().c_str(),
        driver_.version().c_str(), driver_.devices());
  }

  ~DeviceEngine() override {
    for (auto& [address, kind] : allocated_) freeOne(address, kind);
    const bool quiet = under_way_.load() == 0 && allIdle();
    if (quiet) {
      lanes_.clear();
      regions_.clear();
      for (unsigned device = 0; device < retained_.size(); ++device)
        if (retained_[device]) driver_.release(device);
    } else {
      // What a device may still be at work on is never used again.
      for (auto& [key, lane] : lanes_) keep(std::move(lane));
      for (auto& [key, region] : regions_) keep(std::move(region));
    }
    if (bell_->pending.load(std::memory_order_acquire) != 0) keep(std::move(bell_));
  }

  // ---- memory

  void registerMemory(const nixl_region* regions, uint64_t count, void** handles) override {
    std::vector<std::unique_ptr<Region>> made;
    for (uint64_t i = 0; i < count; ++i) {
      auto region = std::make_unique<Region>();
      region->kind = static_cast<MemType>(regions[i].kind);
      region->address = regions[i].addr;
      region->length = regions[i].length;
      if (region->kind == MemType::VRAM)
        registerDevice(*region, regions[i].device);
      else
        registerHost(*region);
      made.push_back(std::move(region));
    }
    std::lock_guard lock(registering_);
    for (uint64_t i = 0; i < count; ++i) {
      handles[i] = made[i].get();
      Region& region = *made[i];
      // Which device pins is known once there is memory of one.
      if (region.kind == MemType::DRAM && !region.direct && pin_) unpinned_.push_back(&region);
      regions_[made[i].get()] = std::move(made[i]);
    }
    pinAll();
  }

  int32_t deregister(void* const* regions, uint64_t count, uint64_t /*deadline_ns*/) override {
    std::vector<std::unique_ptr<Region>> gone;  // unpinned without the lock
    std::lock_guard lock(registering_);
    for (uint64_t i = 0; i < count; ++i) {
      auto found = regions_.find(static_cast<Region*>(regions[i]));
      if (found == regions_.end()) continue;
      unpinned_.erase(std::remove(unpinned_.begin(), unpinned_.end(), found->first),
                      unpinned_.end());
      gone.push_back(std::move(found->second));
      regions_.erase(found);
    }
    return 0;
  }

  void* allocate(MemType kind, uint64_t device, uint64_t size) override {
    const std::string what = std::to_string(size) + " bytes of " +
                             (kind == MemType::VRAM ? "GPU " + std::to_string(device) + "'s memory"
                                                    : std::string("pinned host memory"));
    if (kind != MemType::VRAM && kind != MemType::DRAM)
      throw BackendFailure(Errc::NOT_SUPPORTED, "allocate memory of neither host nor GPU");
    retain(device, "allocate " + what);
    gpu::Scope scope(driver_, static_cast<unsigned>(device));
    uint64_t address = 0;
    void* host = nullptr;
    int code = scope.code();
    if (code == 0)
      code = kind == MemType::VRAM ? driver_.allocate(size, &address)
                                   : driver_.allocateHost(size, &host);
    if (code != 0) {
      std::string room;
      uint64_t free = 0, total = 0;
      if (kind == MemType::VRAM && driver_.isOutOfMemory(code) && driver_.room(&free, &total) == 0)
        room = "; " + std::to_string(free) + " of " + std::to_string(total) + " bytes are free";
      throw BackendFailure(driver_.isOutOfMemory(code) ? Errc::LIMIT : Errc::BACKEND,
                           "allocate " + what + ": " + driver_.say(code) + room, code);
    }
    void* const made = kind == MemType::VRAM ? reinterpret_cast<void*>(address) : host;
    std::lock_guard lock(mutex_);
    allocated_[made] = {kind, static_cast<unsigned>(device)};
    return made;
  }

  void freeMemory(void* address) override {
    std::pair<MemType, unsigned> kind;
    {
      std::lock_guard lock(mutex_);
      auto found = allocated_.find(address);
      if (found == allocated_.end()) return;
      kind = found->second;
      allocated_.erase(found);
    }
    freeOne(address, kind);
  }

  // ---- requests

  void* prepare(const nixl_plan& plan, void* host_request) override {
    if (static_cast<MemType>(plan.local_kind) == MemType::DRAM &&
        static_cast<MemType>(plan.remote_kind) == MemType::DRAM)
      throw BackendFailure(
          Errc::NOT_SUPPORTED,
          "host memory to host memory is not this engine's; another one that moves "
          "bytes inside an agent is needed, such as the library's own LOOPBACK");
    auto request = std::make_unique<Request>();
    request->plan = plan;
    request->host_request = host_request;
    readCustom({plan.custom, plan.custom_size}, *request);
    // What may take time is done once, here. Most plans have one pair of regions.
    const Region *last_target = nullptr, *last_source = nullptr;
    bool last_empty = true;
    for (uint64_t i = 0; i < plan.count; ++i) {
      const Piece piece = pieceOf(*request, i);
      const bool empty = piece.bytes == 0;
      if (piece.target == last_target && piece.source == last_source && (empty || !last_empty))
        continue;
      Lane& lane = laneOf(piece);
      const bool through_slot = (lane.way() == gpu::Way::IN && !piece.source->direct) ||
                                (lane.way() == gpu::Way::OUT && !piece.target->direct);
      if (through_slot && !empty) lane.needStaging();
      last_target = piece.target;
      last_source = piece.source;
      last_empty = empty;
      if (plan.local_region == nullptr && plan.remote_region == nullptr && !empty) break;
    }
    return request.release();
  }

  int32_t post(void* request, const nixl_post& post) override {
    auto& r = *static_cast<Request*>(request);
    const bool ordered = post.stream != nullptr || r.ordered;
    const gpu::Stream stream = post.stream != nullptr ? post.stream : r.stream;
    // Consecutive pieces of one lane are a slice.
    std::vector<std::pair<Lane*, std::shared_ptr<Slice>>> slices;
    std::shared_ptr<Mark> mark;
    const Region *last_target = nullptr, *last_source = nullptr;
    for (uint64_t i = post.first; i < post.first + post.count; ++i) {
      const Piece piece = pieceOf(r, i);
      if (piece.target == last_target && piece.source == last_source) {
        ++slices.back().second->end;
        continue;
      }
      last_target = piece.target;
      last_source = piece.source;
      Lane& lane = laneOf(piece);
      if (!slices.empty() && slices.back().first == &lane) {
        ++slices.back().second->end;
        continue;
      }
      if (ordered && !mark) mark = std::make_shared<Mark>(driver_, lane.device(), stream);
      auto slice = std::make_shared<Slice>();
      slice->request = &r;
      slice->attempt = post.attempt;
      slice->next = i;
      slice->end = i + 1;
      slice->due_ns = delay_ns_ == 0 ? 0 : nowNs() + delay_ns_;
      slice->after = mark;
      slices.emplace_back(&lane, std::move(slice));
    }
    under_way_.fetch_add(post.count);
    for (auto& [lane, slice] : slices) lane->add(std::move(slice));
    Reports reports;
    for (auto& [lane, slice] : slices)
      while (lane->start(reports)) {
      }
    tell(reports);
    return 1;
  }

  int32_t cancel(void* request) override {
    auto* const r = static_cast<Request*>(request);
    Reports reports;
    for (Lane* lane : lanes()) lane->drop(r, reports);
    // The last report may release it: it is looked at before.
    const bool more = r->under_way.load() > 0;
    tell(reports);
    return more ? 1 : 0;
  }

  // The library calls it when every piece was reported, so no lane has anything of it.
  void release(void* request) override { delete static_cast<Request*>(request); }

  int32_t quiesce(void* /*region*/, void* /*peer*/, uint64_t deadline_ns) override {
    return waitIdle(deadline_ns);
  }

  // ---- notifications: only ever to the agent itself

  int32_t notify(void* /*peer*/, std::string_view bytes) override {
    deliver(bytes);
    return 0;
  }

  void cost(void* /*peer*/, const nixl_plan_summary& plan, nixl_cost& out) override {
    const auto local = static_cast<MemType>(plan.local_kind);
    const auto remote = static_cast<MemType>(plan.remote_kind);
    if (local == MemType::DRAM && remote == MemType::DRAM) {
      std::snprintf(out.why, sizeof out.why, "host memory to host memory is not this engine's");
      return;
    }
    const gpu::DeviceFacts& facts = typical();
    out.reachable = 1;
    // A command is some microseconds on its way; the device takes them one after another.
    out.ns_fixed = 8000 + static_cast<double>(delay_ns_);
    out.ns_per_piece = 1500;
    const bool inside = local == remote;
    out.bytes_per_second = inside ? facts.own_rate : facts.host_rate;
    std::snprintf(out.why, sizeof out.why, "%s: %s", facts.name.c_str(), facts.source.c_str());
  }

  // ---- progress

  int64_t progress(uint64_t budget_ns) override {
    if (under_way_.load() == 0) return 0;
    uint64_t rings = 0;
    [[maybe_unused]] const ssize_t taken = ::read(bell_->fd, &rings, sizeof rings);
    return work(nowNs() + budget_ns);
  }

  int32_t arm() override {
    if (under_way_.load() == 0) return 0;
    for (Lane* lane : lanes())
      if (lane->arm()) return 1;
    return 0;
  }

  uint32_t waitFds(int32_t* fds, uint32_t capacity) override {
    if (capacity > 0) fds[0] = bell_->fd;
    return 1;
  }

  uint64_t nextTimer() override {
    if (under_way_.load() == 0) return NIXL_NEVER;
    uint64_t timer = NIXL_NEVER;
    for (Lane* lane : lanes()) timer = std::min(timer, lane->nextTimer());
    return timer;
  }

  // ---- its end

  int32_t shutDown(uint64_t deadline_ns) override {
    Reports reports;
    for (Lane* lane : lanes()) lane->drop(nullptr, reports);
    tell(reports);
    return waitIdle(deadline_ns);
  }

 private:
  using Key = std::tuple<int, unsigned, unsigned>;  // way, device, other device

  // As long as the process lives.
  static void keep(std::shared_ptr<void> something) {
    static auto& mutex = *new std::mutex;
    static auto& all = *new std::vector<std::shared_ptr<void>>;
    std::lock_guard lock(mutex);
    all.push_back(std::move(something));
  }

  static bool pinOf(const BackendArgs& args) {
    const std::string text = args.option("pin", "auto");
    if (text == "auto") return true;
    if (text == "never") return false;
    throw BackendFailure(Errc::INVALID_PARAM,
                         "option pin is \"" + text + "\"; must be auto or never");
  }

  static uint64_t delayOf(const BackendArgs& args) {
    const std::string text = args.option("delay_us", "0");
    bool good = false;
    const uint64_t delay = numberOf(text, &good);
    if (!good || delay > kLongestDelayUs)
      throw BackendFailure(
          Errc::INVALID_PARAM,
          "option delay_us is \"" + text + "\"; must be 0 to " + std::to_string(kLongestDelayUs));
    return delay;
  }

  // "stream=0x7f00": after what is in that stream of the program's when the transfer is posted.
  static void readCustom(std::string_view words, Request& request) {
    constexpr std::string_view kStream = "stream=";
    if (words.empty()) return;
    bool good = words.substr(0, kStream.size()) == kStream;
    if (good) {
      request.stream = reinterpret_cast<gpu::Stream>(numberOf(words.substr(kStream.size()), &good));
      request.ordered = true;
    }
    if (!good)
      throw BackendFailure(Errc::INVALID_PARAM, "the custom words are \"" + std::string(words) +
                                                    "\"; this engine knows stream=NUMBER");
  }

  // ---- registration

  void retain(uint64_t device, const std::string& action) {
    if (device >= driver_.devices())
      throw BackendFailure(Errc::NOT_FOUND, action + ": there is no GPU " + std::to_string(device) +
                                                ", this process sees " +
                                                std::to_string(driver_.devices()));
    std::lock_guard lock(registering_);
    const auto number = static_cast<unsigned>(device);
    if (retained_[number]) return;
    const int code = driver_.retain(number);
    if (code != 0)
      throw BackendFailure(Errc::BACKEND,
                           action + ": GPU " + std::to_string(device) + ": " + driver_.say(code),
                           code);
    retained_[number] = true;
    for (unsigned other = 0; other < retained_.size(); ++other) {
      if (!retained_[other] || other == number) continue;
      for (const auto& [from, to] : {std::pair(number, other), std::pair(other, number)}) {
        gpu::Scope scope(driver_, from);
        if (scope.code() == 0) driver_.reach(to);
      }
    }
  }

  void registerDevice(Region& region, uint64_t device) {
    const std::string what = "GPU memory " + describe(region.address, region.length);
    retain(device, what);
    region.device = static_cast<unsigned>(device);
    region.direct = true;
    gpu::Scope scope(driver_, region.device);
    uint64_t at = region.address;
    const uint64_t end = region.address + region.length;
    do {
      const gpu::PointerFacts facts = driver_.find(at);
      if (facts.kind == gpu::PointerKind::MANAGED) return;  // of every device
      if (facts.kind != gpu::PointerKind::DEVICE)
        throw BackendFailure(
            Errc::INVALID_PARAM,
            what + (at == region.address
                        ? std::string(": ") + (facts.kind == gpu::PointerKind::PINNED
                                                   ? "that is host memory; register it as DRAM"
                                                   : "the driver knows of no memory there")
                        : ": it ends at " + hex(at) + ", before the range does"));
      if (facts.device != region.device)
        throw BackendFailure(Errc::INVALID_PARAM, what + ": it is of GPU " +
                                                      std::to_string(facts.device) +
                                                      ", not of GPU " + std::to_string(device));
      if (facts.bytes == 0) return;  // the driver does not tell how long it is
      at = facts.begin + facts.bytes;
      if (at < end && !facts.piecewise)
        throw BackendFailure(Errc::INVALID_PARAM,
                             what + ": it ends at " + hex(at) + ", before the range does");
    } while (at < end);
  }

  void registerHost(Region& region) {
    const gpu::PointerFacts first = driver_.find(region.address);
    if (first.kind == gpu::PointerKind::DEVICE)
      throw BackendFailure(Errc::INVALID_PARAM,
                           "host memory " + describe(region.address, region.length) +
                               ": that is memory of GPU " + std::to_string(first.device) +
                               "; register it as VRAM");
    // The program may have pinned it already.
    region.direct = first.kind == gpu::PointerKind::PINNED && first.bytes != 0 &&
                    region.address + region.length <= first.begin + first.bytes;
  }

  // registering_ is held.
  void pinAll() {
    const unsigned device = firstInUse();
    if (device == retained_.size()) return;
    for (Region* region : std::exchange(unpinned_, {})) {
      if (region->length == 0) continue;
      std::string why;
      region->pin = gpu::pinned(driver_, device, region->address, region->length, &why);
      if (region->pin)
        region->direct = true;
      else
        log(NIXL_LEVEL_DEBUG, __FILE__, __LINE__,
            "host memory %s goes through buffers, it cannot be pinned: %s",
            describe(region->address, region->length).c_str(), why.c_str());
    }
  }

  void freeOne(void* address, const std::pair<MemType, unsigned>& kind) {
    gpu::Scope scope(driver_, kind.second);
    if (kind.first == MemType::VRAM)
      driver_.free(reinterpret_cast<uint64_t>(address));
    else
      driver_.freeHost(address);
  }

  // ---- lanes

  Lane& laneOf(const Piece& piece) {
    const bool to_device = piece.target->kind == MemType::VRAM;
    const bool from_device = piece.source->kind == MemType::VRAM;
    const unsigned to = piece.target->device, from = piece.source->device;
    gpu::Way way = gpu::Way::WITHIN;
    if (!from_device) way = gpu::Way::IN;
    if (!to_device) way = gpu::Way::OUT;
    if (from_device && to_device && from != to) way = gpu::Way::ACROSS;
    const unsigned device = from_device ? from : to;
    const unsigned other = way == gpu::Way::ACROSS ? to : device;
    std::lock_guard lock(mutex_);
    std::unique_ptr<Lane>& lane = lanes_[{static_cast<int>(way), device, other}];
    if (!lane) {
      const gpu::DeviceFacts& facts = factsOf(device);
      lane = std::make_unique<Lane>(driver_, way, device, other,
                                    way == gpu::Way::WITHIN ? facts.own_rate : facts.host_rate,
                                    bell_.get());
    }
    return *lane;
  }

  // Those that there are; they live as long as the engine.
  std::vector<Lane*> lanes() {
    std::lock_guard lock(mutex_);
    std::vector<Lane*> all;
    all.reserve(lanes_.size());
    for (auto& [key, lane] : lanes_)
      if (lane) all.push_back(lane.get());
    return all;
  }

  // mutex_ is held.
  const gpu::DeviceFacts& factsOf(unsigned device) {
    auto [found, fresh] = device_facts_.try_emplace(device);
    if (fresh) found->second = driver_.facts(device);
    return found->second;
  }

  // The request for a cost names no device: the first one in use stands for all.
  const gpu::DeviceFacts& typical() {
    const unsigned device = firstInUse();
    std::lock_guard lock(mutex_);
    return factsOf(device == retained_.size() ? 0 : device);
  }

  // The number of devices: none is.
  unsigned firstInUse() const {
    unsigned device = 0;
    while (device < retained_.size() && !retained_[device]) ++device;
    return device;
  }

  bool allIdle() {
    for (Lane* lane : lanes())
      if (!lane->idle()) return false;
    return true;
  }

  int64_t work(uint64_t until_ns) {
    int64_t done = 0;
    const std::vector<Lane*> all = lanes();
    bool worked = true;
    while (worked) {
      worked = false;
      for (Lane* lane : all) {
        Reports reports;
        worked |= lane->finish(reports);
        worked |= lane->start(reports);
        tell(reports);
      }
      if (worked) ++done;
      if (nowNs() >= until_ns) break;
    }
    return done;
  }

  void tell(const Reports& reports) {
    for (const Report& r : reports) {
      under_way_.fetch_sub(r.count);
      complete(r.host_request, r.attempt, r.first, r.count, r.status, r.bytes, r.native,
               r.text.empty() ? nullptr : r.text.c_str());
    }
  }

  int32_t waitIdle(uint64_t deadline_ns) {
    while (!allIdle()) {
      if (work(nowNs()) > 0) continue;
      if (nowNs() >= deadline_ns)
        return fail(
            Errc::NOT_QUIESCED,
            "a GPU is still at work on copies, which cannot be taken back; do not reuse the "
            "memory");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return 0;
  }

  gpu::Driver& driver_;
  const bool pin_;
  const uint64_t delay_ns_;
  std::atomic<uint64_t> under_way_{0};  // pieces posted and not reported

  std::vector<std::atomic<bool>> retained_;  // by device; set with registering_ held

  std::mutex registering_;  // guards regions_ and unpinned_
  std::map<Region*, std::unique_ptr<Region>> regions_;
  std::vector<Region*> unpinned_;  // host memory that waits for a device to pin it for

  std::mutex mutex_;  // guards what follows
  std::map<void*, std::pair<MemType, unsigned>> allocated_;
  std::map<unsigned, gpu::DeviceFacts> device_facts_;
  std::map<Key, std::unique_ptr<Lane>> lanes_;

  std::unique_ptr<Bell> bell_;
};

}  // namespace
}  // namespace nixl::device

NIXL_BACKEND(nixl::device::DeviceEngine, nixl::device::description(), nixl::gpu::whyNone)
