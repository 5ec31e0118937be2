// The table of a GPU driver's calls, over the software driver.
#include "common/gpu.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "common/cuda.h"
#include "common/cuda_abi.h"
#include "control.h"
#include "nixl/backend.h"

namespace nixl::gpu {
namespace {

using fakes::CudaControl;

// What a thread has as its own context, past our table.
cuda_abi::Context currentContext() {
  void* library = ::dlopen(std::getenv("NIXL_CUDA_PATH"), RTLD_NOW | RTLD_NOLOAD);
  auto* ask = reinterpret_cast<int (*)(cuda_abi::Context*)>(::dlsym(library, "cuCtxGetCurrent"));
  cuda_abi::Context current = nullptr;
  EXPECT_EQ(ask(&current), 0);
  return current;
}

class TemporaryVariable {
 public:
  TemporaryVariable(const char* name, const char* value) : name_(name) {
    if (const char* text = std::getenv(name)) former_ = text;
    ::setenv(name, value, 1);
  }
  ~TemporaryVariable() { ::setenv(name_, former_.c_str(), 1); }

 private:
  const char* name_;
  std::string former_;
};

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(control_);
    control_.reset();
    ASSERT_EQ(driver_.retain(0), 0);
    ASSERT_EQ(driver_.retain(1), 0);
  }
  void TearDown() override {
    control_.reset();
    driver_.release(0);
    driver_.release(1);
  }
  void waitFor(Event event) {
    int code = 0;
    while (driver_.isPending(code = driver_.query(event))) std::this_thread::yield();
    ASSERT_EQ(code, 0);
  }

  Driver& driver_ = open();
  CudaControl control_ = CudaControl::find();
};

TEST_F(GpuTest, TellsWhatThereIs) {
  EXPECT_EQ(whyNone(), "");
  EXPECT_EQ(driver_.devices(), 2u);
  EXPECT_EQ(driver_.version().substr(0, 7), "CUDA 12");
  const DeviceFacts facts = driver_.facts(1);
  EXPECT_EQ(facts.name, "Software GPU 1");
  EXPECT_EQ(facts.memory, uint64_t{4} << 30);
  EXPECT_GT(facts.host_rate, 1e9);
  EXPECT_GT(facts.own_rate, facts.host_rate);
  EXPECT_NE(facts.source, "");
}

TEST_F(GpuTest, SaysWhatWentWrong) {
  EXPECT_EQ(driver_.say(2), "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory");
  EXPECT_EQ(driver_.say(12345), "CUDA error (12345): unknown");
  EXPECT_TRUE(driver_.isOutOfMemory(2));
  EXPECT_TRUE(driver_.isPending(600));
  for (int code : {46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
    EXPECT_TRUE(driver_.isLost(code)) << code;
  for (int code : {0, 1, 2, 201, 400, 600, 704, 712, 713, 720, 801, 999})
    EXPECT_FALSE(driver_.isLost(code)) << code;
}

TEST_F(GpuTest, LeavesThreadsAsTheyWere) {
  EXPECT_EQ(currentContext(), nullptr);
  {
    Scope first(driver_, 0);
    ASSERT_EQ(first.code(), 0);
    const auto context = currentContext();
    EXPECT_NE(context, nullptr);
    {
      Scope second(driver_, 1);
      EXPECT_NE(currentContext(), context);
    }
    EXPECT_EQ(currentContext(), context);
  }
  EXPECT_EQ(currentContext(), nullptr);
}

TEST_F(GpuTest, MovesBytesEveryWay) {
  constexpr uint64_t kSize = 300'000;
  void* host = nullptr;
  uint64_t here = 0, near = 0, far = 0;
  Stream stream = nullptr;
  Event event = nullptr;
  {
    Scope scope(driver_, 1);
    ASSERT_EQ(driver_.allocate(kSize, &far), 0);
  }
  Scope scope(driver_, 0);
  ASSERT_EQ(driver_.allocate(kSize, &here), 0);
  ASSERT_EQ(driver_.allocate(kSize, &near), 0);
  ASSERT_EQ(driver_.allocateHost(2 * kSize, &host), 0);
  ASSERT_EQ(driver_.makeStream(&stream), 0);
  ASSERT_EQ(driver_.makeEvent(&event), 0);
  driver_.reach(1);
  auto* bytes = static_cast<unsigned char*>(host);
  std::iota(bytes, bytes + kSize, static_cast<unsigned char>(7));
  const auto in = reinterpret_cast<uint64_t>(host), out = in + kSize;

  uint64_t started = 0;
  // In many pieces, so that they go in one call where the driver has it.
  std::vector<Copy> pieces;
  for (uint64_t at = 0; at < kSize; at += 1000) pieces.push_back({here + at, in + at, 1000});
  ASSERT_EQ(driver_.copy(stream, Way::IN, pieces.data(), pieces.size(), 0, &started), 0);
  EXPECT_EQ(started, pieces.size());
  const bool batch = std::getenv("NIXL_FAKE_CUDA_VERSION") == nullptr;
  EXPECT_EQ(control_.count("cuMemcpyBatchAsync"), batch ? 1u : 0u);
  EXPECT_EQ(control_.count("cuMemcpyHtoDAsync_v2"), batch ? 0u : pieces.size());
  const Copy within{near, here, kSize}, across{far, near, kSize};
  ASSERT_EQ(driver_.copy(stream, Way::WITHIN, &within, 1, 0, &started), 0);
  ASSERT_EQ(driver_.copy(stream, Way::ACROSS, &across, 1, 1, &started), 0);
  ASSERT_EQ(driver_.record(event, stream), 0);
  waitFor(event);
  {
    Scope other(driver_, 1);
    ASSERT_EQ(driver_.copyNow(Way::OUT, {out, far, kSize}), 0);
  }
  EXPECT_EQ(std::memcmp(bytes, bytes + kSize, kSize), 0);
  driver_.endEvent(event);
  driver_.endStream(stream);
  EXPECT_EQ(driver_.free(here), 0);
  EXPECT_EQ(driver_.free(near), 0);
  EXPECT_EQ(driver_.free(far), 0);
  EXPECT_EQ(driver_.freeHost(host), 0);
}

TEST_F(GpuTest, TellsWhichCopyItRefused) {
  Scope scope(driver_, 0);
  uint64_t memory = 0, started = 0;
  void* host = nullptr;
  Stream stream = nullptr;
  ASSERT_EQ(driver_.allocate(100, &memory), 0);
  ASSERT_EQ(driver_.allocateHost(100, &host), 0);
  ASSERT_EQ(driver_.makeStream(&stream), 0);
  const auto from = reinterpret_cast<uint64_t>(host);
  const Copy copies[] = {{memory, from, 10}, {memory + 10, from, 10}, {memory + 95, from, 10}};
  EXPECT_EQ(driver_.copy(stream, Way::IN, copies, 3, 0, &started), 1);
  EXPECT_EQ(started, 2u);
  driver_.endStream(stream);
  driver_.free(memory);
  driver_.freeHost(host);
}

TEST_F(GpuTest, KnowsWhoseAPointerIs) {
  uint64_t memory = 0;
  void* host = nullptr;
  int own = 0;
  {
    Scope scope(driver_, 1);
    ASSERT_EQ(driver_.allocate(1000, &memory), 0);
    ASSERT_EQ(driver_.allocateHost(1000, &host), 0);
  }
  const PointerFacts device = driver_.find(memory + 10);
  EXPECT_EQ(device.kind, PointerKind::DEVICE);
  EXPECT_EQ(device.device, 1u);
  EXPECT_EQ(device.begin, memory);
  EXPECT_EQ(device.bytes, 1000u);
  EXPECT_FALSE(device.piecewise);
  EXPECT_EQ(driver_.find(reinterpret_cast<uint64_t>(host)).kind, PointerKind::PINNED);
  EXPECT_EQ(driver_.find(reinterpret_cast<uint64_t>(&own)).kind, PointerKind::HOST);
  Scope scope(driver_, 1);
  driver_.free(memory);
  driver_.freeHost(host);
}

TEST_F(GpuTest, PinsWhatIsNotPinnedYet) {
  std::vector<std::byte> memory(100'000);
  const auto begin = reinterpret_cast<uint64_t>(memory.data());
  const uint64_t before = control_.count("live");
  std::string why;
  auto all = pinned(driver_, 0, begin, memory.size(), &why);
  ASSERT_TRUE(all) << why;
  auto part = pinned(driver_, 1, begin + 500, 1000, &why);
  EXPECT_EQ(all, part);
  EXPECT_EQ(control_.count("live"), before + 1);
  // Memory that lies across the end of it can be pinned by nobody.
  EXPECT_EQ(pinned(driver_, 0, begin + 99'000, 2000, &why), nullptr);
  EXPECT_NE(why.find("712"), std::string::npos) << why;
  all.reset();
  EXPECT_EQ(control_.count("live"), before + 1) << "somebody still holds a part";
  part.reset();
  EXPECT_EQ(control_.count("live"), before);
}

TEST_F(GpuTest, SaysWhyThereIsNone) {
  {
    TemporaryVariable path("NIXL_CUDA_PATH", "/nonexistent/libcuda.so.1");
    EXPECT_NE(whyNone().find("NIXL_CUDA_PATH is \"/nonexistent/libcuda.so.1\""), std::string::npos)
        << whyNone();
    EXPECT_THROW(open(), BackendFailure);
  }
  {
    TemporaryVariable path("NIXL_CUDA_PATH", "libm.so.6");  // a library, but no driver
    EXPECT_NE(whyNone().find("has no cuInit"), std::string::npos) << whyNone();
  }
}

TEST_F(GpuTest, IsRefusedInAChildAfterFork) {
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 1;
    try {
      open();
    } catch (const BackendFailure& failure) {
      result = failure.code() == Errc::NOT_SUPPORTED ? 7 : 2;
    }
    std::_Exit(result);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(PciRate, IsWhatALinkMoves) {
  EXPECT_NEAR(pciRate("16.0 GT/s PCIe", "16"), 26.8e9, 0.1e9);
  EXPECT_NEAR(pciRate("32.0 GT/s PCIe", "16"), 53.6e9, 0.1e9);
  EXPECT_EQ(pciRate("Unknown", "16"), 0);
  EXPECT_EQ(pciRate("", ""), 0);
  EXPECT_EQ(pciRate("16.0 GT/s PCIe", "0"), 0);
}

}  // namespace
}  // namespace nixl::gpu
