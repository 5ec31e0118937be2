// The software driver keeps the rules of the real one that programs depend on.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "common/cuda_abi.h"
#include "control.h"

namespace nixl::fakes {
namespace {

using namespace nixl::cuda_abi;
using namespace std::chrono_literals;

void* library() {
  static void* const handle = ::dlopen(std::getenv("NIXL_CUDA_PATH"), RTLD_NOW | RTLD_LOCAL);
  return handle;
}

template <typename... Arguments>
int call(const char* name, Arguments... arguments) {
  auto* function = reinterpret_cast<Result (*)(Arguments...)>(::dlsym(library(), name));
  if (function == nullptr) {
    ADD_FAILURE() << "no " << name;
    return -1;
  }
  return function(arguments...);
}

class SoftwareCuda : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(library(), nullptr) << ::dlerror();
    control_ = CudaControl::find();
    ASSERT_TRUE(control_);
    control_.reset();
    ASSERT_EQ(call("cuInit", 0u), 0);
    ASSERT_EQ(call("cuDevicePrimaryCtxRetain", &context_, Device{0}), 0);
    ASSERT_EQ(call("cuDevicePrimaryCtxRetain", &other_, Device{1}), 0);
    ASSERT_EQ(call("cuCtxPushCurrent_v2", context_), 0);
    ASSERT_EQ(call("cuStreamCreate", &stream_, 1u), 0);
  }
  void TearDown() override {
    control_.reset();
    call("cuStreamDestroy_v2", stream_);
    call("cuCtxPopCurrent_v2", &context_);
  }

  Pointer allocate(size_t bytes) {
    Pointer made = 0;
    EXPECT_EQ(call("cuMemAlloc_v2", &made, bytes), 0);
    return made;
  }
  std::byte* allocateHost(size_t bytes) {
    void* made = nullptr;
    EXPECT_EQ(call("cuMemHostAlloc", &made, bytes, 1u), 0);
    return static_cast<std::byte*>(made);
  }
  int copyIn(Pointer to, const void* from, size_t bytes) {
    return call("cuMemcpyHtoDAsync_v2", to, from, bytes, stream_);
  }
  int copyOut(void* to, Pointer from, size_t bytes) {
    return call("cuMemcpyDtoHAsync_v2", to, from, bytes, stream_);
  }

  CudaControl control_;
  Context context_ = nullptr, other_ = nullptr;
  Stream stream_ = nullptr;
};

using SoftwareCudaDeathTest = SoftwareCuda;

TEST_F(SoftwareCudaDeathTest, ItsMemoryTrapsTheProcessor) {
  const Pointer memory = allocate(4096);
  EXPECT_DEATH(*reinterpret_cast<volatile char*>(memory) = 1, "");
  EXPECT_DEATH(std::_Exit(*reinterpret_cast<volatile char*>(memory)), "");
  // The kernel does not reach it for anybody either.
  char byte = 1;
  iovec here{&byte, 1}, there{reinterpret_cast<void*>(memory), 1};
  EXPECT_EQ(::process_vm_writev(::getpid(), &here, 1, &there, 1, 0), -1);
  EXPECT_EQ(errno, EFAULT);
}

TEST_F(SoftwareCuda, BytesComeBackAsTheyWent) {
  constexpr size_t kSize = 5'000'001;
  const Pointer memory = allocate(kSize), second = allocate(kSize);
  std::byte* const host = allocateHost(2 * kSize);
  for (size_t i = 0; i < kSize; ++i) host[i] = static_cast<std::byte>(i * 7 % 251);
  ASSERT_EQ(copyIn(memory, host, kSize), 0);
  ASSERT_EQ(call("cuMemcpyDtoDAsync_v2", second, memory, kSize, stream_), 0);
  ASSERT_EQ(copyOut(host + kSize, second, kSize), 0);
  ASSERT_EQ(call("cuStreamSynchronize", stream_), 0);
  EXPECT_EQ(std::memcmp(host, host + kSize, kSize), 0);
  EXPECT_EQ(call("cuMemFree_v2", memory), 0);
  EXPECT_EQ(call("cuMemFree_v2", memory), kInvalidValue);
  EXPECT_EQ(copyIn(memory, host, 1), kInvalidValue);
  EXPECT_EQ(call("cuMemFree_v2", second), 0);
  EXPECT_EQ(call("cuMemFreeHost", static_cast<void*>(host)), 0);
}

TEST_F(SoftwareCuda, StreamsRunLaterAndInOrder) {
  ASSERT_TRUE(control_.configure("", "30000"));
  const Pointer memory = allocate(8);
  std::byte* const host = allocateHost(16);
  std::memset(host, 1, 8);
  std::memset(host + 8, 0, 8);
  Event event = nullptr;
  ASSERT_EQ(call("cuEventCreate", &event, 2u), 0);
  EXPECT_EQ(call("cuEventQuery", event), 0) << "an event that was never recorded";
  ASSERT_EQ(copyIn(memory, host, 8), 0);
  ASSERT_EQ(copyOut(host + 8, memory, 8), 0);
  ASSERT_EQ(call("cuEventRecord", event, stream_), 0);
  EXPECT_EQ(call("cuEventQuery", event), kNotReady);
  EXPECT_EQ(call("cuStreamQuery", stream_), kNotReady);
  static std::atomic<int> rang{0};
  rang = 0;
  ASSERT_EQ(call("cuLaunchHostFunc", stream_, HostFunction([](void*) { ++rang; }),
                 static_cast<void*>(nullptr)),
            0);
  EXPECT_EQ(rang, 0);
  ASSERT_EQ(call("cuStreamSynchronize", stream_), 0);
  EXPECT_EQ(call("cuEventQuery", event), 0);
  EXPECT_EQ(rang, 1);
  EXPECT_EQ(std::memcmp(host, host + 8, 8), 0);
  EXPECT_EQ(call("cuEventDestroy_v2", event), 0);
}

TEST_F(SoftwareCuda, AStreamWaitsForAnEventOfAnother) {
  const Pointer memory = allocate(1 << 20);
  std::byte* const host = allocateHost(1 << 20);
  std::memset(host, 5, 1 << 20);
  Stream second = nullptr;
  Event event = nullptr;
  ASSERT_EQ(call("cuStreamCreate", &second, 1u), 0);
  ASSERT_EQ(call("cuEventCreate", &event, 2u), 0);
  ASSERT_TRUE(control_.configure("", "20000"));
  ASSERT_EQ(copyIn(memory, host, 1 << 20), 0);
  ASSERT_EQ(call("cuEventRecord", event, stream_), 0);
  ASSERT_EQ(call("cuStreamWaitEvent", second, event, 0u), 0);
  std::vector<std::byte> seen(1);
  std::byte* const out = allocateHost(1);
  ASSERT_EQ(call("cuMemcpyDtoHAsync_v2", static_cast<void*>(out), memory + (1 << 20) - 1, size_t{1},
                 second),
            0);
  ASSERT_EQ(call("cuStreamSynchronize", second), 0);
  EXPECT_EQ(*out, std::byte{5});
  call("cuStreamDestroy_v2", second);
}

TEST_F(SoftwareCuda, CallsNeedAContext) {
  Context former = nullptr;
  ASSERT_EQ(call("cuCtxPopCurrent_v2", &former), 0);
  EXPECT_EQ(former, context_);
  Pointer made = 0;
  EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{64}), kInvalidContext);
  EXPECT_EQ(call("cuStreamQuery", stream_), kInvalidContext);
  // It is a matter of the thread.
  std::thread([&] {
    Context current = context_;
    EXPECT_EQ(call("cuCtxGetCurrent", &current), 0);
    EXPECT_EQ(current, nullptr);
    EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{64}), kInvalidContext);
  }).join();
  ASSERT_EQ(call("cuCtxPushCurrent_v2", context_), 0);
  EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{64}), 0);
  call("cuMemFree_v2", made);
  // An event of one device cannot be recorded in a stream of another.
  ASSERT_EQ(call("cuCtxPushCurrent_v2", other_), 0);
  Event event = nullptr;
  ASSERT_EQ(call("cuEventCreate", &event, 2u), 0);
  EXPECT_EQ(call("cuEventRecord", event, stream_), kInvalidHandle);
  call("cuEventDestroy_v2", event);
  ASSERT_EQ(call("cuCtxPopCurrent_v2", &former), 0);
}

TEST_F(SoftwareCuda, UnpinnedMemoryMakesCopiesWait) {
  const Pointer memory = allocate(1 << 20);
  std::vector<std::byte> host(1 << 20, std::byte{3});
  ASSERT_TRUE(control_.configure("", ""));
  ASSERT_EQ(copyIn(memory, host.data(), host.size()), 0);
  EXPECT_EQ(call("cuStreamQuery", stream_), 0) << "it came back before it was done";
  // Little of it is taken at once, so that it may change afterwards.
  ASSERT_TRUE(control_.configure("", "20000"));
  const uint64_t before = control_.count("pageable");
  ASSERT_EQ(copyIn(memory, host.data(), 8), 0);
  host[0] = std::byte{9};
  EXPECT_EQ(call("cuStreamQuery", stream_), kNotReady);
  std::byte seen{};
  ASSERT_EQ(call("cuStreamSynchronize", stream_), 0);
  ASSERT_EQ(copyOut(&seen, memory, 1), 0);
  EXPECT_EQ(seen, std::byte{3});
  EXPECT_EQ(control_.count("pageable"), before + 2);
  // A range of which a part is pinned is neither.
  std::byte* const first = host.data() + 100;
  ASSERT_EQ(call("cuMemHostRegister_v2", static_cast<void*>(first), size_t{1000}, 1u), 0);
  EXPECT_EQ(copyIn(memory, host.data(), 200), kInvalidValue);
  EXPECT_EQ(call("cuMemHostRegister_v2", static_cast<void*>(first + 999), size_t{2}, 1u),
            kHostMemoryRegistered);
  EXPECT_EQ(copyIn(memory, first, 1000), 0);
  EXPECT_EQ(call("cuStreamSynchronize", stream_), 0);
  EXPECT_EQ(call("cuMemHostUnregister", static_cast<void*>(first)), 0);
  EXPECT_EQ(call("cuMemHostUnregister", static_cast<void*>(first)), kHostMemoryNotRegistered);
}

TEST_F(SoftwareCuda, TellsWhoseAPointerIs) {
  const Pointer memory = allocate(1000);
  int ordinal = -1;
  unsigned type = 0;
  Pointer begin = 0;
  size_t size = 0;
  EXPECT_EQ(call("cuPointerGetAttribute", static_cast<void*>(&ordinal), kDeviceOrdinal, memory + 9),
            0);
  EXPECT_EQ(call("cuPointerGetAttribute", static_cast<void*>(&type), kMemoryType, memory), 0);
  EXPECT_EQ(call("cuMemGetAddressRange_v2", &begin, &size, memory + 999), 0);
  EXPECT_EQ(ordinal, 0);
  EXPECT_EQ(type, kMemoryTypeDevice);
  EXPECT_EQ(begin, memory);
  EXPECT_EQ(size, 1000u);
  EXPECT_EQ(call("cuMemGetAddressRange_v2", &begin, &size, memory + 1000), kNotFound);
  const Pointer host = reinterpret_cast<Pointer>(&ordinal);
  EXPECT_EQ(call("cuPointerGetAttribute", static_cast<void*>(&type), kMemoryType, host),
            kInvalidValue);
  EXPECT_EQ(call("cuMemGetHandleForAddressRange", static_cast<void*>(&type), memory, size_t{1000},
                 1, 0ull),
            kNotSupported);
  // What is copied must lie in one allocation.
  std::byte* const bytes = allocateHost(2000);
  EXPECT_EQ(copyIn(memory + 1, bytes, 1000), kInvalidValue);
  EXPECT_EQ(copyIn(memory, bytes, 1000), 0);
}

TEST_F(SoftwareCuda, MapsMemoryPieceByPiece) {
  struct {
    int type = 1, handles = 0;
    Location location{kLocationDevice, 1};
    char rest[64] = {};
  } properties;
  constexpr size_t kPiece = 2 << 20;
  Pointer range = 0;
  unsigned long long handles[2] = {};
  ASSERT_EQ(call("cuMemAddressReserve", &range, 2 * kPiece, size_t{0}, Pointer{0}, 0ull), 0);
  for (unsigned i = 0; i < 2; ++i) {
    ASSERT_EQ(call("cuMemCreate", &handles[i], kPiece, static_cast<const void*>(&properties), 0ull),
              0);
    ASSERT_EQ(call("cuMemMap", range + i * kPiece, kPiece, size_t{0}, handles[i], 0ull), 0);
  }
  std::byte* const host = allocateHost(64);
  EXPECT_EQ(copyIn(range + kPiece - 32, host, 64), kInvalidValue) << "nobody was allowed to";
  ASSERT_EQ(
      call("cuMemSetAccess", range, 2 * kPiece, static_cast<const void*>(&properties), size_t{1}),
      0);
  EXPECT_EQ(copyIn(range + kPiece - 32, host, 64), 0);
  int ordinal = 0;
  EXPECT_EQ(call("cuPointerGetAttribute", static_cast<void*>(&ordinal), kDeviceOrdinal, range), 0);
  EXPECT_EQ(ordinal, 1);
  // An attribute tells of all addresses, this call of what is mapped there.
  Pointer begin = 0;
  size_t size = 0;
  EXPECT_EQ(call("cuPointerGetAttribute", static_cast<void*>(&size), kRangeSize, range + kPiece),
            0);
  EXPECT_EQ(size, 2 * kPiece);
  EXPECT_EQ(call("cuMemGetAddressRange_v2", &begin, &size, range + kPiece + 5), 0);
  EXPECT_EQ(begin, range + kPiece);
  EXPECT_EQ(size, kPiece);
  ASSERT_EQ(call("cuStreamSynchronize", stream_), 0);
  for (unsigned i = 0; i < 2; ++i) {
    EXPECT_EQ(call("cuMemUnmap", range + i * kPiece, kPiece), 0);
    EXPECT_EQ(call("cuMemRelease", handles[i]), 0);
  }
  EXPECT_EQ(call("cuMemAddressFree", range, 2 * kPiece), 0);
}

TEST_F(SoftwareCuda, HasOnlySoMuchMemory) {
  size_t free = 0, total = 0;
  ASSERT_EQ(call("cuMemGetInfo_v2", &free, &total), 0);
  Pointer made = 0;
  EXPECT_EQ(call("cuMemAlloc_v2", &made, total + 1), kOutOfMemory);
  ASSERT_EQ(call("cuMemAlloc_v2", &made, free / 2), 0);
  size_t left = 0;
  ASSERT_EQ(call("cuMemGetInfo_v2", &left, &total), 0);
  EXPECT_NEAR(static_cast<double>(free - left), static_cast<double>(free / 2), 512);
  Pointer another = 0;
  EXPECT_EQ(call("cuMemAlloc_v2", &another, free / 2 + 4096), kOutOfMemory);
  EXPECT_EQ(call("cuMemFree_v2", made), 0);
}

TEST_F(SoftwareCuda, FailsAsItIsTold) {
  ASSERT_TRUE(control_.configure("cuMemAlloc_v2@2=2,cuStreamQuery@3+=719", ""));
  Pointer made = 0;
  EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{8}), 0);
  EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{8}), kOutOfMemory);
  EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{8}), 0);
  EXPECT_EQ(control_.count("cuMemAlloc_v2"), 3u);
  const int wanted[] = {0, 0, 719, 719};
  for (const int code : wanted) EXPECT_EQ(call("cuStreamQuery", stream_), code);
  EXPECT_FALSE(control_.configure("cuMemAlloc_v2=2", ""));
  EXPECT_FALSE(control_.configure("cuMemAlloc_v2@0=2", ""));
  EXPECT_FALSE(control_.configure("", "10-5"));
}

TEST_F(SoftwareCuda, ALostDeviceStaysLost) {
  const Pointer memory = allocate(64);
  std::byte* const host = allocateHost(64);
  ASSERT_TRUE(control_.configure("copy@1=700", ""));
  ASSERT_EQ(copyIn(memory, host, 64), 0) << "it is found out later";
  EXPECT_EQ(call("cuStreamSynchronize", stream_), kIllegalAddress);
  EXPECT_EQ(copyIn(memory, host, 64), kIllegalAddress);
  EXPECT_EQ(call("cuStreamQuery", stream_), kIllegalAddress);
  // The other one is not concerned.
  Context former = nullptr;
  ASSERT_EQ(call("cuCtxPushCurrent_v2", other_), 0);
  Pointer made = 0;
  EXPECT_EQ(call("cuMemAlloc_v2", &made, size_t{8}), 0);
  ASSERT_EQ(call("cuCtxPopCurrent_v2", &former), 0);
}

TEST_F(SoftwareCuda, CopiesGetStuck) {
  const Pointer memory = allocate(64);
  std::byte* const host = allocateHost(64);
  ASSERT_TRUE(control_.configure("copy@1=stuck", ""));
  ASSERT_EQ(copyIn(memory, host, 64), 0);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(call("cuStreamQuery", stream_), kNotReady);
  control_.reset();
  EXPECT_EQ(call("cuStreamSynchronize", stream_), 0);
}

TEST_F(SoftwareCuda, CopiesManyAtOnce) {
  const Pointer memory = allocate(64);
  std::byte* const host = allocateHost(64);
  Pointer to[] = {memory, memory + 8}, from[] = {reinterpret_cast<Pointer>(host), memory};
  size_t bytes[] = {8, 8}, first = 0, failed = 0;
  CopyAttributes how;
  auto copy = [&](Stream where) {
    return call("cuMemcpyBatchAsync", &to[0], &from[0], &bytes[0], size_t{2}, &how, &first,
                size_t{1}, &failed, where);
  };
  EXPECT_EQ(copy(stream_), kInvalidValue) << "without an order of the source";
  how.source_order = kSourceInStreamOrder;
  EXPECT_EQ(copy(nullptr), kInvalidValue) << "in the default stream";
  EXPECT_EQ(copy(stream_), 0);
  to[1] = memory + 60;
  EXPECT_EQ(copy(stream_), kInvalidValue);
  EXPECT_EQ(failed, 1u);
  ASSERT_EQ(call("cuStreamSynchronize", stream_), 0);
}

TEST_F(SoftwareCuda, GivesFunctionsByNameAndVersion) {
  void* found = nullptr;
  int status = -1;
  const auto ask = [&](const char* name, int version) {
    return call("cuGetProcAddress_v2", name, &found, version, 0ull, &status);
  };
  EXPECT_EQ(ask("cuMemAlloc", 12000), 0);
  EXPECT_EQ(found, ::dlsym(library(), "cuMemAlloc_v2"));
  EXPECT_EQ(ask("cuMemcpyBatchAsync", 12000), kNotFound);
  EXPECT_EQ(ask("cuMemcpyBatchAsync", 12080), 0);
  EXPECT_EQ(ask("cuNoSuchThing", 12080), kNotFound);
}

TEST_F(SoftwareCuda, IsOfNoUseInAForkedChild) {
  const pid_t child = ::fork();
  if (child == 0) {
    int count = 0;
    std::_Exit(call("cuInit", 0u) == kNotInitialized &&
                       call("cuDeviceGetCount", &count) == kNotInitialized
                   ? 7
                   : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

}  // namespace
}  // namespace nixl::fakes
