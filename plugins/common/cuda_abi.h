// common/cuda_abi.h - the part of the CUDA driver's binary interface that is used here, so that
// building needs nothing of CUDA. cuda_abi_test.cc holds it against the vendor's own header where
// that is at hand.
#pragma once

#include <cstddef>

namespace nixl::cuda_abi {

using Result = int;
using Device = int;
using Pointer = unsigned long long;  // on a device, or anywhere in the unified address space
using Context = struct ContextTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;
using HostFunction = void (*)(void* data);

constexpr Result kSuccess = 0;
constexpr Result kInvalidValue = 1;
constexpr Result kOutOfMemory = 2;
constexpr Result kNotInitialized = 3;
constexpr Result kDeviceUnavailable = 46;
constexpr Result kNoDevice = 100;
constexpr Result kInvalidDevice = 101;
constexpr Result kInvalidContext = 201;
constexpr Result kEccUncorrectable = 214;
constexpr Result kNvlinkUncorrectable = 220;
constexpr Result kContained = 226;
constexpr Result kInvalidHandle = 400;
constexpr Result kNotFound = 500;
constexpr Result kNotReady = 600;
constexpr Result kIllegalAddress = 700;
constexpr Result kLaunchTimeout = 702;
constexpr Result kPeerAccessEnabled = 704;
constexpr Result kPeerAccessNotEnabled = 705;
constexpr Result kContextDestroyed = 709;
constexpr Result kAssert = 710;
constexpr Result kHostMemoryRegistered = 712;
constexpr Result kHostMemoryNotRegistered = 713;
constexpr Result kHardwareStackError = 714;
constexpr Result kLaunchFailed = 719;
constexpr Result kNotSupported = 801;

constexpr int kMemoryClockKhz = 36;  // of cuDeviceGetAttribute
constexpr int kMemoryBusBits = 37;

constexpr int kMemoryType = 2;  // of cuPointerGetAttribute
constexpr int kIsManaged = 8;
constexpr int kDeviceOrdinal = 9;
constexpr int kIsLegacyIpcCapable = 10;
constexpr int kRangeStart = 11;
constexpr int kRangeSize = 12;
constexpr int kMapped = 13;

constexpr unsigned kMemoryTypeHost = 1;
constexpr unsigned kMemoryTypeDevice = 2;

constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventWithoutTiming = 2;
constexpr unsigned kHostPortable = 1;  // of cuMemHostAlloc and cuMemHostRegister

struct Location {
  int type = 0, id = 0;
};
constexpr int kLocationDevice = 1;
constexpr int kLocationHost = 2;

struct CopyAttributes {
  int source_order = 0;
  Location source_hint, target_hint;
  unsigned flags = 0;
};
constexpr int kSourceInStreamOrder = 1;

// Calls that every driver since CUDA 11 has: NAME(parameters), all returning a Result. The names
// are those of the library's symbols.
#define NIXL_CUDA_FUNCTIONS(F)                                             \
  F(cuInit, unsigned)                                                      \
  F(cuDriverGetVersion, int*)                                              \
  F(cuGetErrorName, Result, const char**)                                  \
  F(cuGetErrorString, Result, const char**)                                \
  F(cuDeviceGetCount, int*)                                                \
  F(cuDeviceGet, Device*, int)                                             \
  F(cuDeviceGetName, char*, int, Device)                                   \
  F(cuDeviceGetAttribute, int*, int, Device)                               \
  F(cuDeviceGetPCIBusId, char*, int, Device)                               \
  F(cuDeviceTotalMem_v2, size_t*, Device)                                  \
  F(cuDeviceCanAccessPeer, int*, Device, Device)                           \
  F(cuDevicePrimaryCtxRetain, Context*, Device)                            \
  F(cuDevicePrimaryCtxRelease_v2, Device)                                  \
  F(cuCtxPushCurrent_v2, Context)                                          \
  F(cuCtxPopCurrent_v2, Context*)                                          \
  F(cuCtxEnablePeerAccess, Context, unsigned)                              \
  F(cuPointerGetAttribute, void*, int, Pointer)                            \
  F(cuMemGetAddressRange_v2, Pointer*, size_t*, Pointer)                   \
  F(cuMemGetInfo_v2, size_t*, size_t*)                                     \
  F(cuMemAlloc_v2, Pointer*, size_t)                                       \
  F(cuMemFree_v2, Pointer)                                                 \
  F(cuMemHostAlloc, void**, size_t, unsigned)                              \
  F(cuMemFreeHost, void*)                                                  \
  F(cuMemHostRegister_v2, void*, size_t, unsigned)                         \
  F(cuMemHostUnregister, void*)                                            \
  F(cuMemcpyHtoD_v2, Pointer, const void*, size_t)                         \
  F(cuMemcpyDtoH_v2, void*, Pointer, size_t)                               \
  F(cuMemcpyHtoDAsync_v2, Pointer, const void*, size_t, Stream)            \
  F(cuMemcpyDtoHAsync_v2, void*, Pointer, size_t, Stream)                  \
  F(cuMemcpyDtoDAsync_v2, Pointer, Pointer, size_t, Stream)                \
  F(cuMemcpyPeerAsync, Pointer, Context, Pointer, Context, size_t, Stream) \
  F(cuStreamCreate, Stream*, unsigned)                                     \
  F(cuStreamDestroy_v2, Stream)                                            \
  F(cuStreamQuery, Stream)                                                 \
  F(cuStreamGetCtx, Stream, Context*)                                      \
  F(cuStreamWaitEvent, Stream, Event, unsigned)                            \
  F(cuEventCreate, Event*, unsigned)                                       \
  F(cuEventDestroy_v2, Event)                                              \
  F(cuEventRecord, Event, Stream)                                          \
  F(cuEventQuery, Event)                                                   \
  F(cuLaunchHostFunc, Stream, HostFunction, void*)

// Calls that came later; asked for with cuGetProcAddress_v2, by the version that they came with.
#define NIXL_CUDA_LATER_FUNCTIONS(F)                                                          \
  F(cuMemcpyBatchAsync, 12080, Pointer*, Pointer*, size_t*, size_t, CopyAttributes*, size_t*, \
    size_t, size_t*, Stream)

struct Functions {
#define NIXL_CUDA_MEMBER(name, ...) Result (*name)(__VA_ARGS__) = nullptr;
#define NIXL_CUDA_LATER_MEMBER(name, version, ...) NIXL_CUDA_MEMBER(name, __VA_ARGS__)
  NIXL_CUDA_FUNCTIONS(NIXL_CUDA_MEMBER)
  NIXL_CUDA_LATER_FUNCTIONS(NIXL_CUDA_LATER_MEMBER)  // null in older drivers
#undef NIXL_CUDA_LATER_MEMBER
#undef NIXL_CUDA_MEMBER
};

using GetProcAddress = Result (*)(const char* name, void** function, int version,
                                  unsigned long long flags, int* status);

}  // namespace nixl::cuda_abi
