// Our description of CUDA's driver interface against the vendor's own header. Compiling it is the
// test: nothing is called.
#include "common/cuda_abi.h"

#include <cuda.h>

#include <cstddef>
#include <type_traits>

namespace ours = nixl::cuda_abi;

namespace nixl::cuda_abi {
namespace {

// Enumerations travel as int, handles as pointers: it is the machine's view of them that counts.
template <typename A, typename B>
constexpr bool sameOnTheWire() {
  if constexpr (std::is_pointer_v<A> || std::is_pointer_v<B>)
    return std::is_pointer_v<A> && std::is_pointer_v<B>;
  else
    return sizeof(A) == sizeof(B) && (std::is_integral_v<B> || std::is_enum_v<B>);
}

template <typename Ours, typename Theirs>
struct Same;
template <typename... A, typename R, typename... B>
struct Same<ours::Result (*)(A...), R (*)(B...)> {
  static constexpr bool value() {
    if constexpr (sizeof...(A) != sizeof...(B))
      return false;
    else
      return (sameOnTheWire<A, B>() && ...);
  }
};

#define NIXL_CUDA_CHECK(name, ...)                                               \
  static_assert(Same<ours::Result (*)(__VA_ARGS__), decltype(&::name)>::value(), \
                #name " has other parameters");
NIXL_CUDA_FUNCTIONS(NIXL_CUDA_CHECK)
#if CUDA_VERSION >= 12080 && CUDA_VERSION < 13000  // later headers give the name to another call
#define NIXL_CUDA_LATER_CHECK(name, version, ...) NIXL_CUDA_CHECK(name, __VA_ARGS__)
NIXL_CUDA_LATER_FUNCTIONS(NIXL_CUDA_LATER_CHECK)
static_assert(sizeof(ours::CopyAttributes) == sizeof(CUmemcpyAttributes));
static_assert(offsetof(ours::CopyAttributes, flags) == offsetof(CUmemcpyAttributes, flags));
static_assert(offsetof(ours::CopyAttributes, source_hint) ==
              offsetof(CUmemcpyAttributes, srcLocHint));
static_assert(ours::kSourceInStreamOrder == CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
static_assert(ours::kLocationDevice == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(ours::kLocationHost == CU_MEM_LOCATION_TYPE_HOST);
#endif

static_assert(ours::kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(ours::kDeviceUnavailable == CUDA_ERROR_DEVICE_UNAVAILABLE);
static_assert(ours::kNoDevice == CUDA_ERROR_NO_DEVICE);
static_assert(ours::kInvalidContext == CUDA_ERROR_INVALID_CONTEXT);
static_assert(ours::kEccUncorrectable == CUDA_ERROR_ECC_UNCORRECTABLE);
static_assert(ours::kNvlinkUncorrectable == CUDA_ERROR_NVLINK_UNCORRECTABLE);
static_assert(ours::kInvalidHandle == CUDA_ERROR_INVALID_HANDLE);
static_assert(ours::kNotReady == CUDA_ERROR_NOT_READY);
static_assert(ours::kIllegalAddress == CUDA_ERROR_ILLEGAL_ADDRESS);
static_assert(ours::kLaunchTimeout == CUDA_ERROR_LAUNCH_TIMEOUT);
static_assert(ours::kPeerAccessEnabled == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
static_assert(ours::kContextDestroyed == CUDA_ERROR_CONTEXT_IS_DESTROYED);
static_assert(ours::kAssert == CUDA_ERROR_ASSERT);
static_assert(ours::kHostMemoryRegistered == CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
static_assert(ours::kHardwareStackError == CUDA_ERROR_HARDWARE_STACK_ERROR);
static_assert(ours::kLaunchFailed == CUDA_ERROR_LAUNCH_FAILED);
static_assert(ours::kNotSupported == CUDA_ERROR_NOT_SUPPORTED);
static_assert(ours::kMemoryClockKhz == CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
static_assert(ours::kMemoryBusBits == CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
static_assert(ours::kMemoryType == CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
static_assert(ours::kIsManaged == CU_POINTER_ATTRIBUTE_IS_MANAGED);
static_assert(ours::kDeviceOrdinal == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
static_assert(ours::kIsLegacyIpcCapable == CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE);
static_assert(ours::kRangeStart == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
static_assert(ours::kRangeSize == CU_POINTER_ATTRIBUTE_RANGE_SIZE);
static_assert(ours::kMapped == CU_POINTER_ATTRIBUTE_MAPPED);
static_assert(ours::kMemoryTypeHost == CU_MEMORYTYPE_HOST);
static_assert(ours::kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE);
static_assert(ours::kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(ours::kEventWithoutTiming == CU_EVENT_DISABLE_TIMING);
static_assert(ours::kHostPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(ours::kHostPortable == CU_MEMHOSTREGISTER_PORTABLE);

}  // namespace
}  // namespace nixl::cuda_abi

int main() {}
