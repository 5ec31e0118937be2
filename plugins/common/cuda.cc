#include "common/cuda.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "common/cuda_abi.h"
#include "common/library.h"
#include "nixl/backend.h"

namespace nixl::gpu {
namespace {

using namespace cuda_abi;

constexpr const char* kFileName = "libcuda.so.1";
constexpr const char* kVariable = "NIXL_CUDA_PATH";

// Where the devices say nothing: PCI Express 3 with 16 lanes, and a card of ten years ago.
constexpr double kUnknownHostRate = 12e9, kUnknownOwnRate = 200e9;

Library openLibrary() {
  const char* chosen = std::getenv(kVariable);
  try {
    return Library::open(kFileName, chosen != nullptr ? chosen : "", kVariable,
                         {"/usr/lib/wsl/lib", "/run/opengl-driver/lib", "/usr/local/nvidia/lib64"});
  } catch (const BackendFailure& failure) {
    if (chosen != nullptr && *chosen != '\0') throw;
    throw BackendFailure(failure.code(),
                         std::string("this machine has no GPU driver (") + failure.what() +
                             "); install NVIDIA's driver, start the container with its GPUs "
                             "(--gpus all), or name the file in " +
                             kVariable);
  }
}

Functions bindAll(const Library& library) {
  Functions f;
#define NIXL_CUDA_BIND(name, ...) library.bind(#name, f.name);
  NIXL_CUDA_FUNCTIONS(NIXL_CUDA_BIND)
#undef NIXL_CUDA_BIND
  if (void* symbol = library.symbol("cuGetProcAddress_v2")) {
    const auto ask = reinterpret_cast<GetProcAddress>(symbol);
    void* found = nullptr;
    int status = 0;
#define NIXL_CUDA_ASK(name, version, ...)                                                     \
  if (ask(#name, &found, version, 0, &status) == kSuccess && status == 0 && found != nullptr) \
    f.name = reinterpret_cast<decltype(f.name)>(found);
    NIXL_CUDA_LATER_FUNCTIONS(NIXL_CUDA_ASK)
#undef NIXL_CUDA_ASK
  }
  return f;
}

std::string firstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

cuda_abi::Stream streamOf(Stream stream) { return static_cast<cuda_abi::Stream>(stream); }
cuda_abi::Event eventOf(Event event) { return static_cast<cuda_abi::Event>(event); }

class Cuda final : public Driver {
 public:
  explicit Cuda(const Library& library) : path_(library.path()), cu_(bindAll(library)) {
    const std::string where = "use the GPU driver " + path_;
    orThrow(cu_.cuInit(0), where);
    orThrow(cu_.cuDriverGetVersion(&version_), where);
    int count = 0;
    orThrow(cu_.cuDeviceGetCount(&count), where);
    if (count == 0) throw BackendFailure(Errc::NOT_FOUND, where + ": it knows no device");
    devices_.resize(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i)
      orThrow(cu_.cuDeviceGet(&devices_[static_cast<size_t>(i)].number, i), where);
  }

  const std::string& path() const override { return path_; }
  std::string version() const override {
    return "CUDA " + std::to_string(version_ / 1000) + "." + std::to_string(version_ % 1000 / 10);
  }
  unsigned devices() const override { return static_cast<unsigned>(devices_.size()); }
  DeviceFacts facts(unsigned device) const override;

  std::string say(int code) const override;
  bool isPending(int code) const override { return code == kNotReady; }
  bool isLost(int code) const override {
    switch (code) {
      case kDeviceUnavailable:
      case kEccUncorrectable:
      case kNvlinkUncorrectable:
      case kContained:
      case kIllegalAddress:
      case kLaunchTimeout:
      case kContextDestroyed:
      case kAssert:
      case kLaunchFailed:
        return true;
      default:
        return code >= kHardwareStackError && code < kLaunchFailed;
    }
  }
  bool isOutOfMemory(int code) const override { return code == kOutOfMemory; }

  int retain(unsigned device) override;
  void release(unsigned device) override;
  int enter(unsigned device) override;
  void leave() override {
    Context former = nullptr;
    cu_.cuCtxPopCurrent_v2(&former);
  }

  int allocate(uint64_t bytes, uint64_t* address) override {
    Pointer made = 0;
    const int code = cu_.cuMemAlloc_v2(&made, bytes);
    *address = made;
    return code;
  }
  int free(uint64_t address) override { return cu_.cuMemFree_v2(address); }
  int allocateHost(uint64_t bytes, void** address) override {
    return cu_.cuMemHostAlloc(address, bytes, kHostPortable);
  }
  int freeHost(void* address) override { return cu_.cuMemFreeHost(address); }
  int pin(void* address, uint64_t bytes) override {
    return cu_.cuMemHostRegister_v2(address, bytes, kHostPortable);
  }
  int unpin(void* address) override { return cu_.cuMemHostUnregister(address); }
  int room(uint64_t* free, uint64_t* total) override {
    size_t here = 0, all = 0;
    const int code = cu_.cuMemGetInfo_v2(&here, &all);
    *free = here;
    *total = all;
    return code;
  }
  PointerFacts find(uint64_t address) const override;
  void reach(unsigned other) override;

  int makeStream(Stream* stream) override {
    cuda_abi::Stream made = nullptr;
    const int code = cu_.cuStreamCreate(&made, kStreamNonBlocking);
    *stream = made;
    return code;
  }
  void endStream(Stream stream) override { cu_.cuStreamDestroy_v2(streamOf(stream)); }
  int queryStream(Stream stream) override { return cu_.cuStreamQuery(streamOf(stream)); }
  int copy(Stream stream, Way way, const Copy* copies, uint64_t count, unsigned other,
           uint64_t* started) override;
  int copyNow(Way way, const Copy& copy) override;

  int makeEvent(Event* event) override {
    cuda_abi::Event made = nullptr;
    const int code = cu_.cuEventCreate(&made, kEventWithoutTiming);
    *event = made;
    return code;
  }
  void endEvent(Event event) override { cu_.cuEventDestroy_v2(eventOf(event)); }
  int record(Event event, Stream stream) override {
    return cu_.cuEventRecord(eventOf(event), streamOf(stream));
  }
  int query(Event event) override { return cu_.cuEventQuery(eventOf(event)); }
  int wait(Stream stream, Event event) override {
    return cu_.cuStreamWaitEvent(streamOf(stream), eventOf(event), 0);
  }
  int mark(Stream stream, Event* event) override;
  int call(Stream stream, void (*function)(void*), void* data) override {
    return cu_.cuLaunchHostFunc(streamOf(stream), function, data);
  }

 private:
  struct Known {
    Device number = 0;
    Context context = nullptr;  // guarded by mutex_ when it changes; constant while retained
    unsigned uses = 0;          // guarded by mutex_
  };

  void orThrow(int code, const std::string& action) const {
    if (code == kSuccess) return;
    throw BackendFailure(code == kNoDevice ? Errc::NOT_FOUND : Errc::BACKEND,
                         action + ": " + say(code), code);
  }
  uint64_t rangeFact(uint64_t address, int attribute) const {
    uint64_t value = 0;
    return cu_.cuPointerGetAttribute(&value, attribute, address) == kSuccess ? value : 0;
  }

  const std::string path_;
  const Functions cu_;
  int version_ = 0;
  std::vector<Known> devices_;  // their number is constant
  std::mutex mutex_;
};

DeviceFacts Cuda::facts(unsigned device) const {
  DeviceFacts facts;
  const Device number = devices_[device].number;
  std::array<char, 256> text{};
  if (cu_.cuDeviceGetName(text.data(), static_cast<int>(text.size()) - 1, number) == kSuccess)
    facts.name = text.data();
  size_t bytes = 0;
  if (cu_.cuDeviceTotalMem_v2(&bytes, number) == kSuccess) facts.memory = bytes;

  text = {};
  std::string link;
  if (cu_.cuDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()) - 1, number) == kSuccess) {
    std::string id = text.data();
    std::transform(id.begin(), id.end(), id.begin(),
                   [](char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c; });
    // An idle link rests at a lower speed, so that only the maxima tell.
    const std::string folder = "/sys/bus/pci/devices/" + id + "/";
    const std::string speed = firstLine(folder + "max_link_speed");
    const std::string width = firstLine(folder + "max_link_width");
    facts.host_rate = pciRate(speed, width);
    if (facts.host_rate > 0) link = speed + " with " + width + " lanes";
  }
  if (facts.host_rate <= 0) {
    facts.host_rate = kUnknownHostRate;
    link = "a link of unknown speed, taken for PCI Express 3";
  }
  int khz = 0, bits = 0;
  cu_.cuDeviceGetAttribute(&khz, kMemoryClockKhz, number);
  cu_.cuDeviceGetAttribute(&bits, kMemoryBusBits, number);
  // Two transfers a clock; each byte is read and written; four fifths of it are reached.
  facts.own_rate = 1e3 * khz * 2 * bits / 8 / 2 * 0.8;
  if (facts.own_rate <= 0) facts.own_rate = kUnknownOwnRate;
  facts.source = link + "; memory of " + std::to_string(khz / 1000) + " MHz and " +
                 std::to_string(bits) + " bits";
  return facts;
}

std::string Cuda::say(int code) const {
  const char *name = nullptr, *text = nullptr;
  if (cu_.cuGetErrorName(code, &name) != kSuccess || name == nullptr) name = "CUDA error";
  if (cu_.cuGetErrorString(code, &text) != kSuccess || text == nullptr) text = "unknown";
  return std::string(name) + " (" + std::to_string(code) + "): " + text;
}

int Cuda::retain(unsigned device) {
  Known& known = devices_[device];
  std::lock_guard lock(mutex_);
  if (known.uses == 0) {
    const int code = cu_.cuDevicePrimaryCtxRetain(&known.context, known.number);
    if (code != kSuccess) return code;
  }
  ++known.uses;
  return kSuccess;
}

void Cuda::release(unsigned device) {
  Known& known = devices_[device];
  std::lock_guard lock(mutex_);
  if (--known.uses > 0) return;
  known.context = nullptr;
  cu_.cuDevicePrimaryCtxRelease_v2(known.number);
}

int Cuda::enter(unsigned device) {
  const Context context = devices_[device].context;
  return context == nullptr ? kInvalidContext : cu_.cuCtxPushCurrent_v2(context);
}

PointerFacts Cuda::find(uint64_t address) const {
  PointerFacts facts;
  unsigned type = 0, managed = 0;
  if (cu_.cuPointerGetAttribute(&type, kMemoryType, address) != kSuccess) return facts;
  if (cu_.cuPointerGetAttribute(&managed, kIsManaged, address) != kSuccess) managed = 0;
  int ordinal = 0;
  if (cu_.cuPointerGetAttribute(&ordinal, kDeviceOrdinal, address) == kSuccess && ordinal > 0)
    facts.device = static_cast<unsigned>(ordinal);
  if (managed != 0) {
    facts.kind = PointerKind::MANAGED;
  } else if (type == kMemoryTypeHost) {
    facts.kind = PointerKind::PINNED;
  } else if (type == kMemoryTypeDevice) {
    facts.kind = PointerKind::DEVICE;
  }
  // The range of an attribute may be one of addresses only, of which a part is mapped.
  Pointer begin = 0;
  size_t bytes = 0;
  if (facts.kind == PointerKind::DEVICE &&
      cu_.cuMemGetAddressRange_v2(&begin, &bytes, address) == kSuccess) {
    facts.begin = begin;
    facts.bytes = bytes;
  } else {
    facts.begin = rangeFact(address, kRangeStart);
    facts.bytes = rangeFact(address, kRangeSize);
  }
  unsigned whole = 1;
  facts.piecewise =
      cu_.cuPointerGetAttribute(&whole, kIsLegacyIpcCapable, address) == kSuccess && whole == 0;
  return facts;
}

void Cuda::reach(unsigned other) {
  // Where the machine cannot, or the pair is connected already, copies work all the same.
  if (const Context context = devices_[other].context) cu_.cuCtxEnablePeerAccess(context, 0);
}

int Cuda::copy(Stream stream, Way way, const Copy* copies, uint64_t count, unsigned other,
               uint64_t* started) {
  *started = 0;
  const auto where = streamOf(stream);
  // One call for many. A pair of devices is left to the call that names both.
  if (count > 1 && cu_.cuMemcpyBatchAsync != nullptr && way != Way::ACROSS) {
    std::vector<Pointer> to(count), from(count);
    std::vector<size_t> bytes(count);
    for (uint64_t i = 0; i < count; ++i) {
      to[i] = copies[i].to;
      from[i] = copies[i].from;
      bytes[i] = copies[i].bytes;
    }
    CopyAttributes how;
    how.source_order = kSourceInStreamOrder;
    size_t first = 0, failed = SIZE_MAX;
    const int code = cu_.cuMemcpyBatchAsync(to.data(), from.data(), bytes.data(), count, &how,
                                            &first, 1, &failed, where);
    if (code == kSuccess) {
      *started = count;
      return code;
    }
    // Which of them it had started is not said: one by one tells, and to copy twice does no harm.
    if (isLost(code)) return code;
  }
  for (; *started < count; ++*started) {
    const Copy& c = copies[*started];
    int code = kSuccess;
    switch (way) {
      case Way::IN:
        code =
            cu_.cuMemcpyHtoDAsync_v2(c.to, reinterpret_cast<const void*>(c.from), c.bytes, where);
        break;
      case Way::OUT:
        code = cu_.cuMemcpyDtoHAsync_v2(reinterpret_cast<void*>(c.to), c.from, c.bytes, where);
        break;
      case Way::WITHIN:
        code = cu_.cuMemcpyDtoDAsync_v2(c.to, c.from, c.bytes, where);
        break;
      case Way::ACROSS: {
        Context here = nullptr;
        code = cu_.cuStreamGetCtx(where, &here);
        if (code == kSuccess)
          code = cu_.cuMemcpyPeerAsync(c.to, devices_[other].context, c.from, here, c.bytes, where);
        break;
      }
    }
    if (code != kSuccess) return code;
  }
  return kSuccess;
}

int Cuda::copyNow(Way way, const Copy& c) {
  switch (way) {
    case Way::IN:
      return cu_.cuMemcpyHtoD_v2(c.to, reinterpret_cast<const void*>(c.from), c.bytes);
    case Way::OUT:
      return cu_.cuMemcpyDtoH_v2(reinterpret_cast<void*>(c.to), c.from, c.bytes);
    default:
      return kNotSupported;
  }
}

int Cuda::mark(Stream stream, Event* event) {
  // An event belongs to the stream's own device, which may be neither of a copy's.
  Context context = nullptr;
  int code = cu_.cuStreamGetCtx(streamOf(stream), &context);
  if (code != kSuccess) return code;
  code = cu_.cuCtxPushCurrent_v2(context);
  if (code != kSuccess) return code;
  Event made = nullptr;
  code = makeEvent(&made);
  if (code == kSuccess) {
    code = record(made, stream);
    if (code == kSuccess) {
      *event = made;
    } else {
      endEvent(made);
    }
  }
  leave();
  return code;
}

struct Opened {
  std::mutex mutex;
  std::map<std::string, Cuda*> drivers;  // by path; guarded by mutex
};
Opened& opened() {
  static auto& all = *new Opened;
  return all;
}
// The process that initialized a driver: 0 before.
pid_t g_initialized_by = 0;  // guarded by opened().mutex

}  // namespace

double pciRate(const std::string& speed, const std::string& width) {
  // 128 of 130 bits are the payload's, of which packets leave some 85 %.
  const double transfers = std::strtod(speed.c_str(), nullptr) * 1e9;
  const double lanes = std::strtod(width.c_str(), nullptr);
  const double rate = transfers * lanes / 8 * 128 / 130 * 0.85;
  return rate > 0 && rate < 1e13 ? rate : 0;
}

Driver& openCuda() {
  const Library library = openLibrary();
  Opened& all = opened();
  std::lock_guard lock(all.mutex);
  if (g_initialized_by != 0 && g_initialized_by != ::getpid())
    throw BackendFailure(Errc::NOT_SUPPORTED,
                         "CUDA was used in this process before fork(), and does not work in its "
                         "children; start them with spawn or exec, or fork before the first use");
  Cuda*& driver = all.drivers[library.path()];
  if (driver == nullptr) {
    g_initialized_by = ::getpid();
    driver = new Cuda(library);
  }
  return *driver;
}

std::string whyNoCuda() {
  try {
    bindAll(openLibrary());
    return "";
  } catch (const BackendFailure& failure) {
    return failure.what();
  }
}

}  // namespace nixl::gpu
