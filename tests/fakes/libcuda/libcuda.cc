// The software driver's entry points; README.md says what it does and does not.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/cuda_abi.h"
#include "faults.h"
#include "memory.h"
#include "stream.h"

#define NIXL_FAKE extern "C" __attribute__((visibility("default")))

using nixl::cuda_abi::CopyAttributes;
using nixl::cuda_abi::Device;
using nixl::cuda_abi::HostFunction;
using nixl::cuda_abi::Pointer;
using nixl::cuda_abi::Result;
using CuContext = nixl::cuda_abi::Context;
using CuStream = nixl::cuda_abi::Stream;
using CuEvent = nixl::cuda_abi::Event;

namespace nixl::fakes::cuda {
namespace {

using namespace nixl::cuda_abi;
constexpr uint64_t kStagedByDriver = 64 << 10;  // host memory up to this is copied at the call

// Everything there is, once cuInit() was called. Never destroyed: streams may outlive main().
struct Driver {
  const unsigned count = static_cast<unsigned>(numberOf("NIXL_FAKE_CUDA_DEVICES", 2));
  const pid_t process = ::getpid();
  Memory memory{count, numberOf("NIXL_FAKE_CUDA_MEMORY", uint64_t{4} << 30)};

  std::mutex mutex;  // guards what follows
  std::vector<std::unique_ptr<DeviceContext>> contexts;
  std::map<CuStream, std::shared_ptr<WorkStream>> streams;
  std::vector<std::shared_ptr<WorkStream>> ending;  // destroyed, and perhaps still at work
  std::map<const DeviceContext*, std::shared_ptr<WorkStream>> default_streams;
  std::map<CuEvent, std::shared_ptr<Recorder>> events;
  std::set<std::pair<int, int>> peers;

  Driver() {
    for (unsigned i = 0; i < count; ++i) {
      contexts.push_back(std::make_unique<DeviceContext>());
      contexts.back()->device = static_cast<int>(i);
    }
  }
};

std::mutex g_driver_mutex;
Driver* g_driver = nullptr;  // guarded by g_driver_mutex

Driver* driver() {
  std::lock_guard lock(g_driver_mutex);
  return g_driver;
}

thread_local std::vector<DeviceContext*> t_stack;

DeviceContext* contextOf(CuContext context) { return reinterpret_cast<DeviceContext*>(context); }
CuContext handleOf(DeviceContext* context) { return reinterpret_cast<CuContext>(context); }

// What every call begins with: it is counted, and may be told to fail.
struct Call {
  Driver* d = nullptr;
  DeviceContext* context = nullptr;
  int code = kSuccess;

  explicit Call(const char* name, bool needs_context = true) {
    d = driver();
    const Fault fault = countCall(name);
    if (d == nullptr || d->process != ::getpid()) {
      code = kNotInitialized;
      return;
    }
    context = t_stack.empty() ? nullptr : t_stack.back();
    if (needs_context && context == nullptr) {
      code = kInvalidContext;
    } else if (needs_context && context->lost.load() != 0) {
      code = context->lost.load();
    } else if (fault.code != 0) {
      code = fault.code;
      if (fault.lost && context != nullptr) context->lost.store(fault.code);
    }
  }
};

#define NIXL_FAKE_CALL(name) \
  Call call(#name);          \
  if (call.code != 0) return call.code
#define NIXL_FAKE_FREE_CALL(name) \
  Call call(#name, false);        \
  if (call.code != 0) return call.code

std::shared_ptr<WorkStream> find(Driver& d, CuStream stream, DeviceContext* current) {
  std::lock_guard lock(d.mutex);
  if (reinterpret_cast<uintptr_t>(stream) <= 2) {  // the default ones
    std::shared_ptr<WorkStream>& own = d.default_streams[current];
    if (!own) own = WorkStream::make(current);
    return own;
  }
  auto found = d.streams.find(stream);
  return found == d.streams.end() ? nullptr : found->second;
}

std::shared_ptr<Recorder> find(Driver& d, CuEvent event) {
  std::lock_guard lock(d.mutex);
  auto found = d.events.find(event);
  return found == d.events.end() ? nullptr : found->second;
}

struct End {  // of a copy
  uint64_t address = 0;
  bool device = false;
};

// The copy itself, on the stream's thread.
void carryOut(Driver& d, DeviceContext* context, End to, End from, uint64_t bytes) {
  if (context->lost.load() != 0) return;
  const Fault fault = countCall("copy");
  pauseBeforeCopy();
  if (fault.stuck) waitWhileStuck();
  if (fault.code != 0) {
    context->lost.store(fault.code);
    return;
  }
  if (!d.memory.move(to.address, from.address, bytes, to.device, from.device, pauseBeforeCopy))
    context->lost.store(kIllegalAddress);
}

bool reachesAll(Driver& d, End end, uint64_t bytes) {
  return end.device ? d.memory.covers(end.address, bytes)
                    : d.memory.pinned(end.address, bytes) != Pinned::PARTLY;
}

// Any copy. Host memory that is not pinned makes it wait, as the real driver does.
int startCopy(Call& call, CuStream where, End to, End from, uint64_t bytes, bool wait) {
  Driver& d = *call.d;
  auto stream = find(d, where, call.context);
  if (!stream) return kInvalidHandle;
  if (bytes == 0) return kSuccess;
  if (!reachesAll(d, to, bytes) || !reachesAll(d, from, bytes)) return kInvalidValue;
  const bool pageable_from = !from.device && d.memory.pinned(from.address, bytes) == Pinned::NO;
  const bool pageable_to = !to.device && d.memory.pinned(to.address, bytes) == Pinned::NO;
  if (!wait && (pageable_from || pageable_to)) addTo("pageable", 1);
  DeviceContext* const context = stream->context();
  if (pageable_from && !wait && bytes <= kStagedByDriver) {
    const auto* first = reinterpret_cast<const std::byte*>(from.address);
    auto copy = std::make_shared<std::vector<std::byte>>(first, first + bytes);
    stream->add([&d, context, to, bytes, copy] {
      carryOut(d, context, to, {reinterpret_cast<uintptr_t>(copy->data()), false}, bytes);
    });
    return kSuccess;
  }
  stream->add([&d, context, to, from, bytes] { carryOut(d, context, to, from, bytes); });
  if (wait || pageable_from || pageable_to) {
    stream->wait();
    return context->lost.load();
  }
  return kSuccess;
}

// Freeing memory waits for what is at work in it, as the real driver does.
void waitForAll(Driver& d, const DeviceContext* context) {
  std::vector<std::shared_ptr<WorkStream>> all;
  {
    std::lock_guard lock(d.mutex);
    for (auto& [handle, stream] : d.streams)
      if (stream->context() == context) all.push_back(stream);
    for (auto& stream : std::exchange(d.ending, {})) all.push_back(std::move(stream));
    auto own = d.default_streams.find(context);
    if (own != d.default_streams.end()) all.push_back(own->second);
  }
  for (auto& stream : all) stream->wait();
}

End hostEnd(const void* address) { return {reinterpret_cast<uintptr_t>(address), false}; }
End deviceEnd(Pointer address) { return {address, true}; }
End anyEnd(Driver& d, Pointer address) { return {address, d.memory.find(address).has_value()}; }

struct ErrorName {
  int code;
  const char *name, *text;
};
constexpr ErrorName kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorName* errorOf(int code) {
  const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                   [code](const ErrorName& e) { return e.code == code; });
  return found == std::end(kErrors) ? nullptr : found;
}

bool isDevice(const Driver& d, Device device) {
  return device >= 0 && device < static_cast<Device>(d.count);
}

int version() { return static_cast<int>(numberOf("NIXL_FAKE_CUDA_VERSION", 12080)); }

// Attributes of a pointer; kInvalidValue for one that is nobody's, as the real driver says.
int attribute(Driver& d, void* data, int which, Pointer pointer) {
  const auto device = d.memory.findAddresses(pointer);
  const auto host = device ? std::nullopt : d.memory.findHost(pointer);
  if (!device && !host) return kInvalidValue;
  const DeviceRange& range = device ? *device : *host;
  switch (which) {
    case 1:  // the context
      *static_cast<CuContext*>(data) =
          handleOf(d.contexts[static_cast<size_t>(range.device)].get());
      return kSuccess;
    case kMemoryType:
      *static_cast<unsigned*>(data) = device ? kMemoryTypeDevice : kMemoryTypeHost;
      return kSuccess;
    case kIsManaged:
      *static_cast<unsigned*>(data) = 0;
      return kSuccess;
    case kDeviceOrdinal:
      *static_cast<int*>(data) = range.device;
      return kSuccess;
    case kIsLegacyIpcCapable:
      *static_cast<unsigned*>(data) = device && !device->mapped ? 1 : 0;
      return kSuccess;
    case kRangeStart:
      *static_cast<Pointer*>(data) = range.begin;
      return kSuccess;
    case kRangeSize:
      *static_cast<size_t*>(data) = range.size;
      return kSuccess;
    case kMapped:
      *static_cast<unsigned*>(data) = 1;
      return kSuccess;
    default:
      return kInvalidValue;
  }
}

}  // namespace
}  // namespace nixl::fakes::cuda

using namespace nixl::fakes::cuda;

// ---- the driver and its devices ---------------------------------------------------------------

NIXL_FAKE Result cuInit(unsigned) {
  std::lock_guard lock(g_driver_mutex);
  const Fault fault = countCall("cuInit");
  if (fault.code != 0) return fault.code;
  if (g_driver == nullptr) g_driver = new Driver;
  if (g_driver->process != ::getpid()) return kNotInitialized;
  return g_driver->count == 0 ? kNoDevice : kSuccess;
}

NIXL_FAKE Result cuDriverGetVersion(int* number) {
  *number = version();
  return kSuccess;
}

NIXL_FAKE Result cuGetErrorName(Result code, const char** name) {
  const ErrorName* found = errorOf(code);
  *name = found != nullptr ? found->name : nullptr;
  return found != nullptr ? kSuccess : kInvalidValue;
}

NIXL_FAKE Result cuGetErrorString(Result code, const char** text) {
  const ErrorName* found = errorOf(code);
  *text = found != nullptr ? found->text : nullptr;
  return found != nullptr ? kSuccess : kInvalidValue;
}

NIXL_FAKE Result cuGetProcAddress_v2(const char* name, void** function, int wanted,
                                     unsigned long long, int* status) {
  Dl_info self{};
  *function = nullptr;
  void* library = nullptr;
  if (::dladdr(reinterpret_cast<void*>(&cuGetErrorName), &self) != 0)
    library = ::dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  const bool there =
      std::strcmp(name, "cuMemcpyBatchAsync") != 0 || (wanted >= 12080 && version() >= 12080);
  if (library != nullptr && there) {
    *function = ::dlsym(library, (std::string(name) + "_v2").c_str());
    if (*function == nullptr) *function = ::dlsym(library, name);
  }
  if (library != nullptr) ::dlclose(library);
  if (status != nullptr) *status = *function != nullptr ? 0 : 1;
  return *function != nullptr ? kSuccess : kNotFound;
}

NIXL_FAKE Result cuDeviceGetCount(int* count) {
  NIXL_FAKE_FREE_CALL(cuDeviceGetCount);
  *count = static_cast<int>(call.d->count);
  return kSuccess;
}

NIXL_FAKE Result cuDeviceGet(Device* device, int ordinal) {
  NIXL_FAKE_FREE_CALL(cuDeviceGet);
  if (!isDevice(*call.d, ordinal)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

NIXL_FAKE Result cuDeviceGetName(char* name, int size, Device device) {
  NIXL_FAKE_FREE_CALL(cuDeviceGetName);
  if (!isDevice(*call.d, device)) return kInvalidDevice;
  std::snprintf(name, static_cast<size_t>(size), "Software GPU %d", device);
  return kSuccess;
}

NIXL_FAKE Result cuDeviceGetAttribute(int* value, int which, Device device) {
  NIXL_FAKE_FREE_CALL(cuDeviceGetAttribute);
  if (!isDevice(*call.d, device)) return kInvalidDevice;
  switch (which) {
    case kMemoryClockKhz:
      *value = 1'000'000;
      return kSuccess;
    case kMemoryBusBits:
      *value = 1024;
      return kSuccess;
    case 41:  // unified addressing
      *value = 1;
      return kSuccess;
    default:
      *value = 0;
      return kSuccess;
  }
}

NIXL_FAKE Result cuDeviceGetPCIBusId(char* id, int size, Device device) {
  NIXL_FAKE_FREE_CALL(cuDeviceGetPCIBusId);
  if (!isDevice(*call.d, device)) return kInvalidDevice;
  std::snprintf(id, static_cast<size_t>(size), "FFFF:%02X:00.0", device);  // no machine has it
  return kSuccess;
}

NIXL_FAKE Result cuDeviceTotalMem_v2(size_t* bytes, Device device) {
  NIXL_FAKE_FREE_CALL(cuDeviceTotalMem_v2);
  if (!isDevice(*call.d, device)) return kInvalidDevice;
  uint64_t free = 0, total = 0;
  call.d->memory.room(device, &free, &total);
  *bytes = total;
  return kSuccess;
}

NIXL_FAKE Result cuDeviceCanAccessPeer(int* can, Device device, Device other) {
  NIXL_FAKE_FREE_CALL(cuDeviceCanAccessPeer);
  if (!isDevice(*call.d, device) || !isDevice(*call.d, other)) return kInvalidDevice;
  *can = device != other && numberOf("NIXL_FAKE_CUDA_PEERS", 1) != 0;
  return kSuccess;
}

// ---- contexts -----------------------------------------------------------------------------------

NIXL_FAKE Result cuDevicePrimaryCtxRetain(CuContext* context, Device device) {
  NIXL_FAKE_FREE_CALL(cuDevicePrimaryCtxRetain);
  if (!isDevice(*call.d, device)) return kInvalidDevice;
  std::lock_guard lock(call.d->mutex);
  auto* own = call.d->contexts[static_cast<size_t>(device)].get();
  ++own->uses;
  addTo("contexts", 1);
  *context = handleOf(own);
  return kSuccess;
}

NIXL_FAKE Result cuDevicePrimaryCtxRelease_v2(Device device) {
  NIXL_FAKE_FREE_CALL(cuDevicePrimaryCtxRelease_v2);
  if (!isDevice(*call.d, device)) return kInvalidDevice;
  std::lock_guard lock(call.d->mutex);
  auto* own = call.d->contexts[static_cast<size_t>(device)].get();
  if (own->uses == 0) return kInvalidContext;
  --own->uses;
  addTo("contexts", -1);
  return kSuccess;
}

NIXL_FAKE Result cuCtxPushCurrent_v2(CuContext context) {
  NIXL_FAKE_FREE_CALL(cuCtxPushCurrent_v2);
  if (context == nullptr) return kInvalidContext;
  t_stack.push_back(contextOf(context));
  return kSuccess;
}

NIXL_FAKE Result cuCtxPopCurrent_v2(CuContext* context) {
  NIXL_FAKE_FREE_CALL(cuCtxPopCurrent_v2);
  if (t_stack.empty()) return kInvalidContext;
  if (context != nullptr) *context = handleOf(t_stack.back());
  t_stack.pop_back();
  return kSuccess;
}

NIXL_FAKE Result cuCtxGetCurrent(CuContext* context) {
  NIXL_FAKE_FREE_CALL(cuCtxGetCurrent);
  *context = handleOf(t_stack.empty() ? nullptr : t_stack.back());
  return kSuccess;
}

NIXL_FAKE Result cuCtxSetCurrent(CuContext context) {
  NIXL_FAKE_FREE_CALL(cuCtxSetCurrent);
  if (!t_stack.empty()) t_stack.pop_back();
  if (context != nullptr) t_stack.push_back(contextOf(context));
  return kSuccess;
}

NIXL_FAKE Result cuCtxGetDevice(Device* device) {
  NIXL_FAKE_CALL(cuCtxGetDevice);
  *device = call.context->device;
  return kSuccess;
}

NIXL_FAKE Result cuCtxSynchronize() {
  NIXL_FAKE_CALL(cuCtxSynchronize);
  waitForAll(*call.d, call.context);
  return call.context->lost.load();
}

NIXL_FAKE Result cuCtxEnablePeerAccess(CuContext context, unsigned) {
  NIXL_FAKE_CALL(cuCtxEnablePeerAccess);
  if (context == nullptr || contextOf(context) == call.context) return kInvalidDevice;
  if (numberOf("NIXL_FAKE_CUDA_PEERS", 1) == 0) return 217;
  std::lock_guard lock(call.d->mutex);
  const bool fresh =
      call.d->peers.insert({call.context->device, contextOf(context)->device}).second;
  return fresh ? kSuccess : kPeerAccessEnabled;
}

// ---- memory -------------------------------------------------------------------------------------

NIXL_FAKE Result cuPointerGetAttribute(void* data, int which, Pointer pointer) {
  NIXL_FAKE_FREE_CALL(cuPointerGetAttribute);
  return attribute(*call.d, data, which, pointer);
}

NIXL_FAKE Result cuPointerGetAttributes(unsigned count, int* which, void** data, Pointer pointer) {
  NIXL_FAKE_FREE_CALL(cuPointerGetAttributes);
  for (unsigned i = 0; i < count; ++i)
    if (attribute(*call.d, data[i], which[i], pointer) != kSuccess)
      std::memset(data[i], 0, which[i] == kRangeStart || which[i] == kRangeSize ? 8 : 4);
  return kSuccess;
}

NIXL_FAKE Result cuMemGetAddressRange_v2(Pointer* begin, size_t* size, Pointer pointer) {
  NIXL_FAKE_CALL(cuMemGetAddressRange_v2);
  const auto found = call.d->memory.find(pointer);
  if (!found) return kNotFound;
  if (begin != nullptr) *begin = found->begin;
  if (size != nullptr) *size = found->size;
  return kSuccess;
}

NIXL_FAKE Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  NIXL_FAKE_CALL(cuMemGetInfo_v2);
  uint64_t left = 0, all = 0;
  call.d->memory.room(call.context->device, &left, &all);
  *free = left;
  *total = all;
  return kSuccess;
}

NIXL_FAKE Result cuMemAlloc_v2(Pointer* pointer, size_t bytes) {
  NIXL_FAKE_CALL(cuMemAlloc_v2);
  uint64_t address = 0;
  const int code = call.d->memory.allocate(call.context->device, bytes, &address);
  if (code == kSuccess) *pointer = address;
  return code;
}

NIXL_FAKE Result cuMemFree_v2(Pointer pointer) {
  NIXL_FAKE_CALL(cuMemFree_v2);
  waitForAll(*call.d, call.context);
  return pointer == 0 ? kSuccess : call.d->memory.free(pointer);
}

NIXL_FAKE Result cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
  NIXL_FAKE_CALL(cuMemHostAlloc);
  void* made = nullptr;
  if (bytes == 0 || ::posix_memalign(&made, 4096, bytes) != 0) return kOutOfMemory;
  call.d->memory.pin(reinterpret_cast<uintptr_t>(made), bytes, true);
  *pointer = made;
  return kSuccess;
}

NIXL_FAKE Result cuMemAllocHost_v2(void** pointer, size_t bytes) {
  return cuMemHostAlloc(pointer, bytes, 0);
}

NIXL_FAKE Result cuMemFreeHost(void* pointer) {
  NIXL_FAKE_CALL(cuMemFreeHost);
  waitForAll(*call.d, call.context);
  const int code = call.d->memory.unpin(reinterpret_cast<uintptr_t>(pointer), true);
  if (code != kSuccess) return kInvalidValue;
  std::free(pointer);
  return kSuccess;
}

NIXL_FAKE Result cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
  NIXL_FAKE_CALL(cuMemHostRegister_v2);
  if (call.d->memory.find(reinterpret_cast<uintptr_t>(pointer))) return kInvalidValue;
  return call.d->memory.pin(reinterpret_cast<uintptr_t>(pointer), bytes, false);
}

NIXL_FAKE Result cuMemHostUnregister(void* pointer) {
  NIXL_FAKE_CALL(cuMemHostUnregister);
  return call.d->memory.unpin(reinterpret_cast<uintptr_t>(pointer), false);
}

NIXL_FAKE Result cuMemGetHandleForAddressRange(void*, Pointer, size_t, int, unsigned long long) {
  NIXL_FAKE_CALL(cuMemGetHandleForAddressRange);
  return kNotSupported;  // there is no device that a DMA buffer could be of
}

// Addresses and physical memory apart. The first fields of CUmemAllocationProp and of
// CUmemAccessDesc are all that is looked at.
struct AllocationProperties {
  int type, handle_types;
  nixl::cuda_abi::Location location;
};

NIXL_FAKE Result cuMemGetAllocationGranularity(size_t* bytes, const void*, int) {
  NIXL_FAKE_FREE_CALL(cuMemGetAllocationGranularity);
  *bytes = 2 << 20;
  return kSuccess;
}

NIXL_FAKE Result cuMemCreate(unsigned long long* handle, size_t bytes, const void* properties,
                             unsigned long long) {
  NIXL_FAKE_FREE_CALL(cuMemCreate);
  const auto* wanted = static_cast<const AllocationProperties*>(properties);
  if (wanted->location.type != kLocationDevice || !isDevice(*call.d, wanted->location.id))
    return kInvalidDevice;
  uint64_t made = 0;
  const int code = call.d->memory.create(wanted->location.id, bytes, &made);
  if (code == kSuccess) *handle = made;
  return code;
}

NIXL_FAKE Result cuMemRelease(unsigned long long handle) {
  NIXL_FAKE_FREE_CALL(cuMemRelease);
  return call.d->memory.destroy(handle);
}

NIXL_FAKE Result cuMemAddressReserve(Pointer* pointer, size_t bytes, size_t, Pointer,
                                     unsigned long long) {
  NIXL_FAKE_FREE_CALL(cuMemAddressReserve);
  uint64_t address = 0;
  const int code = call.d->memory.reserve(bytes, &address);
  if (code == kSuccess) *pointer = address;
  return code;
}

NIXL_FAKE Result cuMemAddressFree(Pointer pointer, size_t bytes) {
  NIXL_FAKE_FREE_CALL(cuMemAddressFree);
  return call.d->memory.unreserve(pointer, bytes);
}

NIXL_FAKE Result cuMemMap(Pointer pointer, size_t bytes, size_t offset, unsigned long long handle,
                          unsigned long long) {
  NIXL_FAKE_FREE_CALL(cuMemMap);
  return call.d->memory.map(pointer, bytes, offset, handle);
}

NIXL_FAKE Result cuMemUnmap(Pointer pointer, size_t bytes) {
  NIXL_FAKE_FREE_CALL(cuMemUnmap);
  return call.d->memory.unmap(pointer, bytes);
}

NIXL_FAKE Result cuMemSetAccess(Pointer pointer, size_t bytes, const void*, size_t) {
  NIXL_FAKE_FREE_CALL(cuMemSetAccess);
  return call.d->memory.allow(pointer, bytes);
}

// ---- copies
// ---------------------------------------------------------------------------------------

NIXL_FAKE Result cuMemcpyHtoD_v2(Pointer to, const void* from, size_t bytes) {
  NIXL_FAKE_CALL(cuMemcpyHtoD_v2);
  return startCopy(call, nullptr, deviceEnd(to), hostEnd(from), bytes, true);
}

NIXL_FAKE Result cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes) {
  NIXL_FAKE_CALL(cuMemcpyDtoH_v2);
  return startCopy(call, nullptr, hostEnd(to), deviceEnd(from), bytes, true);
}

NIXL_FAKE Result cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t bytes) {
  NIXL_FAKE_CALL(cuMemcpyDtoD_v2);
  return startCopy(call, nullptr, deviceEnd(to), deviceEnd(from), bytes, true);
}

NIXL_FAKE Result cuMemcpy(Pointer to, Pointer from, size_t bytes) {
  NIXL_FAKE_CALL(cuMemcpy);
  return startCopy(call, nullptr, anyEnd(*call.d, to), anyEnd(*call.d, from), bytes, true);
}

NIXL_FAKE Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, CuStream stream) {
  NIXL_FAKE_CALL(cuMemcpyHtoDAsync_v2);
  return startCopy(call, stream, deviceEnd(to), hostEnd(from), bytes, false);
}

NIXL_FAKE Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, CuStream stream) {
  NIXL_FAKE_CALL(cuMemcpyDtoHAsync_v2);
  return startCopy(call, stream, hostEnd(to), deviceEnd(from), bytes, false);
}

NIXL_FAKE Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, CuStream stream) {
  NIXL_FAKE_CALL(cuMemcpyDtoDAsync_v2);
  return startCopy(call, stream, deviceEnd(to), deviceEnd(from), bytes, false);
}

NIXL_FAKE Result cuMemcpyAsync(Pointer to, Pointer from, size_t bytes, CuStream stream) {
  NIXL_FAKE_CALL(cuMemcpyAsync);
  return startCopy(call, stream, anyEnd(*call.d, to), anyEnd(*call.d, from), bytes, false);
}

NIXL_FAKE Result cuMemcpyPeerAsync(Pointer to, CuContext to_context, Pointer from,
                                   CuContext from_context, size_t bytes, CuStream stream) {
  NIXL_FAKE_CALL(cuMemcpyPeerAsync);
  auto lies = [&](Pointer pointer, CuContext context) {
    const auto range = call.d->memory.find(pointer);
    return context != nullptr && range && range->device == contextOf(context)->device;
  };
  if (!lies(to, to_context) || !lies(from, from_context)) return kInvalidValue;
  return startCopy(call, stream, deviceEnd(to), deviceEnd(from), bytes, false);
}

NIXL_FAKE Result cuMemcpyBatchAsync(Pointer* to, Pointer* from, size_t* bytes, size_t count,
                                    CopyAttributes* how, size_t* first, size_t kinds,
                                    size_t* failed, CuStream stream) {
  NIXL_FAKE_CALL(cuMemcpyBatchAsync);
  *failed = SIZE_MAX;
  // The default stream is refused, and so are attributes that do not begin with the first copy.
  if (count == 0 || kinds == 0 || kinds > count || first[0] != 0 || how[0].source_order == 0 ||
      reinterpret_cast<uintptr_t>(stream) <= 1)
    return kInvalidValue;
  for (size_t i = 0; i < count; ++i) {
    const int code =
        startCopy(call, stream, anyEnd(*call.d, to[i]), anyEnd(*call.d, from[i]), bytes[i], false);
    if (code == kSuccess) continue;
    *failed = i;
    return code;
  }
  return kSuccess;
}

NIXL_FAKE Result cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, CuStream where) {
  NIXL_FAKE_CALL(cuMemsetD8Async);
  auto stream = find(*call.d, where, call.context);
  if (!stream) return kInvalidHandle;
  if (!call.d->memory.covers(to, bytes)) return kInvalidValue;
  stream->add([d = call.d, to, value, bytes, context = stream->context()] {
    if (context->lost.load() == 0 && !d->memory.set(to, value, bytes))
      context->lost.store(kIllegalAddress);
  });
  return kSuccess;
}

NIXL_FAKE Result cuMemsetD8_v2(Pointer to, unsigned char value, size_t bytes) {
  NIXL_FAKE_CALL(cuMemsetD8_v2);
  if (!call.d->memory.covers(to, bytes) || !call.d->memory.set(to, value, bytes))
    return kInvalidValue;
  return kSuccess;
}

// ---- streams and events
// ----------------------------------------------------------------------------

NIXL_FAKE Result cuStreamCreate(CuStream* stream, unsigned) {
  NIXL_FAKE_CALL(cuStreamCreate);
  auto made = WorkStream::make(call.context);
  *stream = reinterpret_cast<CuStream>(made.get());
  std::lock_guard lock(call.d->mutex);
  call.d->streams[*stream] = std::move(made);
  addTo("live", 1);
  return kSuccess;
}

NIXL_FAKE Result cuStreamDestroy_v2(CuStream stream) {
  NIXL_FAKE_FREE_CALL(cuStreamDestroy_v2);
  std::lock_guard lock(call.d->mutex);
  auto found = call.d->streams.find(stream);
  if (found == call.d->streams.end()) return kInvalidHandle;
  auto& ending = call.d->ending;
  std::erase_if(ending, [](const auto& other) { return other->idle(); });
  ending.push_back(std::move(found->second));
  call.d->streams.erase(found);
  addTo("live", -1);
  return kSuccess;
}

NIXL_FAKE Result cuStreamQuery(CuStream where) {
  NIXL_FAKE_CALL(cuStreamQuery);
  auto stream = find(*call.d, where, call.context);
  if (!stream) return kInvalidHandle;
  if (const int lost = stream->context()->lost.load()) return lost;
  return stream->idle() ? kSuccess : kNotReady;
}

NIXL_FAKE Result cuStreamSynchronize(CuStream where) {
  NIXL_FAKE_CALL(cuStreamSynchronize);
  auto stream = find(*call.d, where, call.context);
  if (!stream) return kInvalidHandle;
  stream->wait();
  return stream->context()->lost.load();
}

NIXL_FAKE Result cuStreamGetCtx(CuStream where, CuContext* context) {
  NIXL_FAKE_CALL(cuStreamGetCtx);
  auto stream = find(*call.d, where, call.context);
  if (!stream) return kInvalidHandle;
  *context = handleOf(stream->context());
  return kSuccess;
}

NIXL_FAKE Result cuLaunchHostFunc(CuStream where, HostFunction function, void* data) {
  NIXL_FAKE_CALL(cuLaunchHostFunc);
  auto stream = find(*call.d, where, call.context);
  if (!stream) return kInvalidHandle;
  stream->add([function, data, context = stream->context()] {
    if (context->lost.load() == 0) function(data);  // it may not come, and here it does not
  });
  return kSuccess;
}

NIXL_FAKE Result cuStreamAddCallback(CuStream where, void (*function)(CuStream, Result, void*),
                                     void* data, unsigned) {
  NIXL_FAKE_CALL(cuStreamAddCallback);
  auto stream = find(*call.d, where, call.context);
  if (!stream) return kInvalidHandle;
  stream->add([function, data, where, context = stream->context()] {
    function(where, context->lost.load(), data);
  });
  return kSuccess;
}

NIXL_FAKE Result cuEventCreate(CuEvent* event, unsigned) {
  NIXL_FAKE_CALL(cuEventCreate);
  auto made = std::make_shared<Recorder>();
  made->context = call.context;
  *event = reinterpret_cast<CuEvent>(made.get());
  std::lock_guard lock(call.d->mutex);
  call.d->events[*event] = std::move(made);
  addTo("live", 1);
  return kSuccess;
}

NIXL_FAKE Result cuEventDestroy_v2(CuEvent event) {
  NIXL_FAKE_FREE_CALL(cuEventDestroy_v2);
  std::lock_guard lock(call.d->mutex);
  if (call.d->events.erase(event) == 0) return kInvalidHandle;
  addTo("live", -1);
  return kSuccess;
}

NIXL_FAKE Result cuEventRecord(CuEvent handle, CuStream where) {
  NIXL_FAKE_CALL(cuEventRecord);
  auto event = find(*call.d, handle);
  auto stream = find(*call.d, where, call.context);
  if (!event || !stream || event->context != stream->context()) return kInvalidHandle;
  auto mark = std::make_shared<Mark>();
  {
    std::lock_guard lock(event->mutex);
    event->mark = mark;
  }
  stream->add([mark] { mark->set(); });
  return kSuccess;
}

NIXL_FAKE Result cuEventQuery(CuEvent handle) {
  NIXL_FAKE_FREE_CALL(cuEventQuery);
  auto event = find(*call.d, handle);
  if (!event) return kInvalidHandle;
  if (const int lost = event->context->lost.load()) return lost;
  std::lock_guard lock(event->mutex);
  if (event->mark && !event->mark->isSet()) return kNotReady;
  // A copy before it may have failed between the two looks.
  return event->context->lost.load();
}

NIXL_FAKE Result cuEventSynchronize(CuEvent handle) {
  NIXL_FAKE_FREE_CALL(cuEventSynchronize);
  auto event = find(*call.d, handle);
  if (!event) return kInvalidHandle;
  std::shared_ptr<Mark> mark;
  {
    std::lock_guard lock(event->mutex);
    mark = event->mark;
  }
  if (mark) mark->wait();
  return event->context->lost.load();
}

NIXL_FAKE Result cuStreamWaitEvent(CuStream where, CuEvent handle, unsigned) {
  NIXL_FAKE_CALL(cuStreamWaitEvent);
  auto event = find(*call.d, handle);
  auto stream = find(*call.d, where, call.context);
  if (!event || !stream) return kInvalidHandle;
  std::shared_ptr<Mark> mark;
  {
    std::lock_guard lock(event->mutex);
    mark = event->mark;
  }
  if (mark) stream->add([mark] { mark->wait(); });
  return kSuccess;
}

// ---- for tests: see control.h
// ----------------------------------------------------------------------

NIXL_FAKE bool nixlFakeCudaConfigure(const char* faults, const char* delay_us) {
  return configure(faults, delay_us);
}

NIXL_FAKE void nixlFakeCudaReset() {
  clearFaults();
  Driver* d = driver();
  if (d == nullptr) return;
  std::lock_guard lock(d->mutex);
  for (auto& context : d->contexts) context->lost.store(0);
}

NIXL_FAKE uint64_t nixlFakeCudaCount(const char* what) { return calls(what); }

// What the project calls is declared as the real library has it.
#define NIXL_FAKE_CHECK(name, ...) \
  static_assert(std::is_same_v<decltype(&name), Result (*)(__VA_ARGS__)>, #name);
#define NIXL_FAKE_LATER_CHECK(name, version, ...) NIXL_FAKE_CHECK(name, __VA_ARGS__)
namespace nixl::cuda_abi {
NIXL_CUDA_FUNCTIONS(NIXL_FAKE_CHECK)
NIXL_CUDA_LATER_FUNCTIONS(NIXL_FAKE_LATER_CHECK)
}  // namespace nixl::cuda_abi
