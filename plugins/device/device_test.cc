// DEVICE over the software driver, which can be told to fail, to be slow, and to get stuck.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/cuda_abi.h"
#include "common/gpu.h"
#include "control.h"
#include "nixl/agent.h"

namespace nixl {

void PrintTo(Errc code, std::ostream* out) { *out << errcName(code); }
void PrintTo(XferState state, std::ostream* out) { *out << xferStateName(state); }

namespace {

using namespace std::chrono_literals;
using fakes::CudaControl;
using Clock = std::chrono::steady_clock;

template <typename... Arguments>
int cuda(const char* name, Arguments... arguments) {
  static void* const library = ::dlopen(std::getenv("NIXL_CUDA_PATH"), RTLD_NOW);
  return reinterpret_cast<int (*)(Arguments...)>(::dlsym(library, name))(arguments...);
}

// Memory of a GPU, on its own.
class DeviceMemory {
 public:
  DeviceMemory(unsigned device, uint64_t size) : device_(device), size_(size) {
    EXPECT_EQ(driver_.retain(device), 0);
    gpu::Scope scope(driver_, device);
    EXPECT_EQ(driver_.allocate(size, &address_), 0);
  }
  ~DeviceMemory() {
    {
      gpu::Scope scope(driver_, device_);
      driver_.free(address_);
    }
    driver_.release(device_);
  }
  MemDescriptor part(uint64_t offset, uint64_t size) const {
    return MemDescriptor(address_ + offset, size, device_, MemType::VRAM);
  }
  MemDescriptor whole() const { return part(0, size_); }
  uint64_t address() const { return address_; }
  std::vector<unsigned char> read() const {
    std::vector<unsigned char> bytes(size_);
    gpu::Scope scope(driver_, device_);
    EXPECT_EQ(
        driver_.copyNow(gpu::Way::OUT, {reinterpret_cast<uint64_t>(bytes.data()), address_, size_}),
        0);
    return bytes;
  }

 private:
  gpu::Driver& driver_ = gpu::open();
  const unsigned device_;
  const uint64_t size_;
  uint64_t address_ = 0;
};

std::vector<unsigned char> numbered(uint64_t size, unsigned seed = 1) {
  std::vector<unsigned char> bytes(size);
  for (uint64_t i = 0; i < size; ++i) bytes[i] = static_cast<unsigned char>((i * 31 + seed) % 253);
  return bytes;
}

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!control_) GTEST_SKIP() << "NIXL_CUDA_PATH names no software driver";
    control_.reset();
    gpu::open();
    live_ = control_.count("live");
  }
  void TearDown() override {
    agent_.reset();
    if (control_) control_.reset();
  }

  void makeAgent(const Params& params = {}) {
    AgentConfig config;
    config.backends = {"DEVICE"};
    config.backend_params["DEVICE"] = params;
    agent_ = std::make_unique<Agent>("device-test", config);
  }
  MemDescriptor hostPart(std::vector<unsigned char>& bytes, uint64_t offset, uint64_t size) {
    return MemDescriptor(bytes.data() + offset, size);
  }
  XferState run(Transfer transfer) {
    agent_->postTransfer(transfer);
    return agent_->waitTransfer(transfer, 20s);
  }
  std::string errorOf(Transfer transfer) {
    std::string text;
    agent_->transferError(transfer, &text);
    return text;
  }
  std::string whyNotRegistered(const MemDescriptor& range) {
    try {
      agent_->registerMemory({range});
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  // `bytes` to a GPU and back, in pieces of every kind.
  void goThereAndBack(uint64_t size);

  CudaControl control_ = CudaControl::find();
  uint64_t live_ = 0;
  std::unique_ptr<Agent> agent_;
};

void DeviceTest::goThereAndBack(uint64_t size) {
  std::vector<unsigned char> source = numbered(size), back(size, 0);
  DeviceMemory memory(0, size);
  agent_->registerMemory({memory.whole()});
  agent_->registerMemory({hostPart(source, 0, size)});
  agent_->registerMemory({hostPart(back, 0, size)});
  std::vector<MemDescriptor> there, here, again;
  for (uint64_t at = 0, i = 0; at < size; ++i) {
    const uint64_t piece =
        std::min<uint64_t>(size - at, i % 7 == 3 ? 3'000'001 : 1 + i * 997 % 9000);
    there.push_back(memory.part(at, piece));
    here.push_back(hostPart(source, at, piece));
    again.push_back(hostPart(back, at, piece));
    at += piece;
  }
  const Transfer in = agent_->prepareTransfer(OpType::WRITE, here, there, agent_->name());
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
  EXPECT_EQ(memory.read(), source);
  const Transfer out = agent_->prepareTransfer(OpType::READ, again, there, agent_->name());
  ASSERT_EQ(run(out), XferState::DONE) << errorOf(out);
  EXPECT_EQ(back, source);
  agent_->releaseTransfer(in);
  agent_->releaseTransfer(out);
  agent_->deregisterMemory({memory.whole()});
  agent_->deregisterMemory({hostPart(source, 0, size)});
  agent_->deregisterMemory({hostPart(back, 0, size)});
}

// ---- host memory that the device reaches, and that it does not ---------------------------------

TEST_F(DeviceTest, PinsHostMemoryAndUnpinsIt) {
  makeAgent();
  ASSERT_NO_FATAL_FAILURE(goThereAndBack(20'000'000));
  EXPECT_GE(control_.count("cuMemHostRegister_v2"), 2u);
  EXPECT_EQ(control_.count("cuMemHostRegister_v2"), control_.count("cuMemHostUnregister"));
  EXPECT_EQ(control_.count("pageable"), 0u);
}

TEST_F(DeviceTest, StagesWhatIsNotPinned) {
  makeAgent({{"pin", "never"}});
  ASSERT_NO_FATAL_FAILURE(goThereAndBack(20'000'000));
  EXPECT_EQ(control_.count("cuMemHostRegister_v2"), 0u);
  EXPECT_EQ(control_.count("pageable"), 0u) << "a copy that waits in the driver";
}

TEST_F(DeviceTest, StagesWhatCannotBePinned) {
  ASSERT_TRUE(control_.configure("cuMemHostRegister_v2@1+=2", ""));
  makeAgent();
  ASSERT_NO_FATAL_FAILURE(goThereAndBack(5'000'000));
  EXPECT_EQ(control_.count("pageable"), 0u);
}

TEST_F(DeviceTest, UsesMemoryThatTheProgramPinned) {
  makeAgent();
  DeviceMemory memory(0, 4096);
  void* host = nullptr;
  {
    gpu::Scope scope(gpu::open(), 0);
    ASSERT_EQ(gpu::open().allocateHost(4096, &host), 0);
  }
  std::memset(host, 3, 4096);
  agent_->registerMemory({memory.whole()});
  agent_->registerMemory({MemDescriptor(host, 4096)});
  EXPECT_EQ(control_.count("cuMemHostRegister_v2"), 0u);
  const Transfer in = agent_->prepareTransfer(OpType::WRITE, {MemDescriptor(host, 4096)},
                                              {memory.whole()}, agent_->name());
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
  EXPECT_EQ(memory.read(), std::vector<unsigned char>(4096, 3));
  agent_.reset();
  gpu::Scope scope(gpu::open(), 0);
  gpu::open().freeHost(host);
}

TEST_F(DeviceTest, GathersScatteredBlocksIntoOneCopy) {
  makeAgent({{"pin", "never"}});
  std::vector<unsigned char> host = numbered(64 * 1024);
  DeviceMemory memory(0, 32 * 1024);
  agent_->registerMemory({memory.whole()});
  agent_->registerMemory({hostPart(host, 0, host.size())});
  std::vector<MemDescriptor> here, there;
  for (uint64_t i = 0; i < 32; ++i) {  // every other KiB, to one row
    here.push_back(hostPart(host, i * 2048, 1024));
    there.push_back(memory.part(i * 1024, 1024));
  }
  const Transfer in = agent_->prepareTransfer(OpType::WRITE, here, there, agent_->name());
  ASSERT_TRUE(control_.configure("", ""));
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
  EXPECT_EQ(control_.count("copy"), 1u);
  const auto came = memory.read();
  for (uint64_t i = 0; i < 32; ++i)
    EXPECT_EQ(std::memcmp(came.data() + i * 1024, host.data() + i * 2048, 1024), 0) << i;
}

// ---- registration ---------------------------------------------------------------------------

TEST_F(DeviceTest, RefusesMemoryThatIsSomethingElse) {
  makeAgent();
  DeviceMemory memory(0, 4096);
  std::vector<unsigned char> host(4096);
  auto wrong = [&](const MemDescriptor& range, const std::string& why) {
    const std::string text = whyNotRegistered(range);
    EXPECT_NE(text.find(why), std::string::npos) << text;
  };
  MemDescriptor range = memory.whole();
  range.device = 1;
  wrong(range, "it is of GPU 0, not of GPU 1");
  range.device = 9;
  wrong(range, "there is no GPU 9, this process sees 2");
  wrong(memory.part(0, 4097), "before the range does");
  wrong(memory.part(4000, 200), "before the range does");
  wrong(MemDescriptor(host.data(), 4096, 0, MemType::VRAM), "knows of no memory there");
  wrong(MemDescriptor(memory.address(), 4096, 0, MemType::DRAM), "register it as VRAM");
  void* pinned = nullptr;
  {
    gpu::Scope scope(gpu::open(), 0);
    ASSERT_EQ(gpu::open().allocateHost(4096, &pinned), 0);
  }
  wrong(MemDescriptor(pinned, 4096, 0, MemType::VRAM), "register it as DRAM");
  EXPECT_EQ(whyNotRegistered(memory.part(4000, 96)), "");
  gpu::Scope scope(gpu::open(), 0);
  gpu::open().freeHost(pinned);
}

TEST_F(DeviceTest, TakesMemoryThatIsMappedPieceByPiece) {
  struct {
    int type = 1, handles = 0;
    cuda_abi::Location location{cuda_abi::kLocationDevice, 0};
    char rest[64] = {};
  } properties;
  constexpr size_t kPiece = 2 << 20;
  cuda_abi::Pointer range = 0;
  unsigned long long handles[2] = {};
  ASSERT_EQ(cuda("cuMemAddressReserve", &range, 4 * kPiece, size_t{0}, cuda_abi::Pointer{0}, 0ull),
            0);
  for (unsigned i = 0; i < 2; ++i) {
    ASSERT_EQ(cuda("cuMemCreate", &handles[i], kPiece, static_cast<const void*>(&properties), 0ull),
              0);
    ASSERT_EQ(cuda("cuMemMap", range + i * kPiece, kPiece, size_t{0}, handles[i], 0ull), 0);
  }
  ASSERT_EQ(
      cuda("cuMemSetAccess", range, 2 * kPiece, static_cast<const void*>(&properties), size_t{1}),
      0);
  makeAgent();
  const MemDescriptor whole(uint64_t{range}, 2 * kPiece, 0, MemType::VRAM);
  EXPECT_EQ(whyNotRegistered(whole), "");
  EXPECT_NE(whyNotRegistered(MemDescriptor(uint64_t{range}, 2 * kPiece + 1, 0, MemType::VRAM)), "");
  std::vector<unsigned char> host = numbered(2 * kPiece), back(2 * kPiece);
  agent_->registerMemory({hostPart(host, 0, host.size())});
  agent_->registerMemory({hostPart(back, 0, back.size())});
  const Transfer in = agent_->prepareTransfer(OpType::WRITE, {hostPart(host, 0, host.size())},
                                              {whole}, agent_->name());
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
  const Transfer out = agent_->prepareTransfer(OpType::READ, {hostPart(back, 0, back.size())},
                                               {whole}, agent_->name());
  ASSERT_EQ(run(out), XferState::DONE) << errorOf(out);
  EXPECT_EQ(back, host);
  agent_.reset();
  for (unsigned i = 0; i < 2; ++i) {
    cuda("cuMemUnmap", range + i * kPiece, kPiece);
    cuda("cuMemRelease", handles[i]);
  }
  cuda("cuMemAddressFree", range, 4 * kPiece);
}

TEST_F(DeviceTest, LeavesHostToHostToOthers) {
  makeAgent();
  std::vector<unsigned char> host(200);
  agent_->registerMemory({hostPart(host, 0, 200)});
  try {
    agent_->prepareTransfer(OpType::WRITE, {hostPart(host, 0, 100)}, {hostPart(host, 100, 100)},
                            agent_->name());
    ADD_FAILURE() << "it was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::NOT_SUPPORTED);
  }
  // Beside an engine that can, nobody has to say so.
  agent_->createBackend("LOOPBACK");
  std::memset(host.data(), 8, 100);
  agent_->registerMemory({hostPart(host, 0, 200)});
  const Transfer transfer = agent_->prepareTransfer(OpType::WRITE, {hostPart(host, 0, 100)},
                                                    {hostPart(host, 100, 100)}, agent_->name());
  EXPECT_EQ(agent_->transferBackend(transfer), "LOOPBACK");
  ASSERT_EQ(run(transfer), XferState::DONE) << errorOf(transfer);
  EXPECT_EQ(host[199], 8);
}

TEST_F(DeviceTest, MovesBetweenTwoGpusAndSeveralRegions) {
  makeAgent();
  DeviceMemory first(0, 100'000), second(1, 100'000), third(0, 100'000);
  std::vector<unsigned char> host = numbered(200'000);
  for (const DeviceMemory* memory : {&first, &second, &third})
    agent_->registerMemory({memory->whole()});
  agent_->registerMemory({hostPart(host, 0, host.size())});
  // One list with memory of both devices, in turn.
  std::vector<MemDescriptor> here, there;
  for (uint64_t i = 0; i < 100; ++i) {
    here.push_back(hostPart(host, i * 2000, 2000));
    there.push_back((i % 2 == 0 ? first : second).part(i / 2 * 2000, 2000));
  }
  const Transfer in = agent_->prepareTransfer(OpType::WRITE, here, there, agent_->name());
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
  const Transfer across =
      agent_->prepareTransfer(OpType::READ, {third.whole()}, {second.whole()}, agent_->name());
  ASSERT_EQ(run(across), XferState::DONE) << errorOf(across);
  EXPECT_EQ(third.read(), second.read());
  const auto came = second.read();
  for (uint64_t i = 1; i < 100; i += 2)
    ASSERT_EQ(std::memcmp(came.data() + i / 2 * 2000, host.data() + i * 2000, 2000), 0) << i;
  EXPECT_GE(control_.count("cuMemcpyPeerAsync"), 1u);
  EXPECT_EQ(control_.count("cuCtxEnablePeerAccess"), 2u);
  EXPECT_NE(agent_->explain(across).find("predicted"), std::string::npos)
      << agent_->explain(across);
}

// ---- whose thread it is, and when -------------------------------------------------------------

TEST_F(DeviceTest, LeavesTheCallersContextAlone) {
  makeAgent();
  cuda_abi::Context other = nullptr, current = nullptr, popped = nullptr;
  ASSERT_EQ(cuda("cuDevicePrimaryCtxRetain", &other, 1), 0);
  ASSERT_NO_FATAL_FAILURE(goThereAndBack(100'000));
  ASSERT_EQ(cuda("cuCtxGetCurrent", &current), 0);
  EXPECT_EQ(current, nullptr);
  ASSERT_EQ(cuda("cuCtxPushCurrent_v2", other), 0);
  ASSERT_NO_FATAL_FAILURE(goThereAndBack(100'000));
  agent_.reset();
  ASSERT_EQ(cuda("cuCtxGetCurrent", &current), 0);
  EXPECT_EQ(current, other);
  ASSERT_EQ(cuda("cuCtxPopCurrent_v2", &popped), 0);
  cuda("cuDevicePrimaryCtxRelease_v2", 1);
}

TEST_F(DeviceTest, PostsWithoutWaiting) {
  makeAgent({{"pin", "never"}});
  constexpr uint64_t kSize = 8 << 20;
  std::vector<unsigned char> host = numbered(kSize);
  DeviceMemory memory(0, kSize);
  agent_->registerMemory({memory.whole()});
  agent_->registerMemory({hostPart(host, 0, kSize)});
  const Transfer out = agent_->prepareTransfer(OpType::READ, {hostPart(host, 0, kSize)},
                                               {memory.whole()}, agent_->name());
  ASSERT_TRUE(control_.configure("copy@1=stuck", ""));  // whoever waits for it waits for ever
  ASSERT_EQ(agent_->postTransfer(out), XferState::POSTED);
  EXPECT_EQ(agent_->checkTransfer(out), XferState::POSTED);
  control_.reset();
  EXPECT_EQ(agent_->waitTransfer(out, 20s), XferState::DONE) << errorOf(out);
}

TEST_F(DeviceTest, WakesWhoSleeps) {
  makeAgent();
  std::vector<unsigned char> host = numbered(4096);
  DeviceMemory memory(0, 4096);
  agent_->registerMemory({memory.whole()});
  agent_->registerMemory({hostPart(host, 0, 4096)});
  const Transfer in = agent_->prepareTransfer(OpType::WRITE, {hostPart(host, 0, 4096)},
                                              {memory.whole()}, agent_->name());
  pollfd ready{agent_->completionFd(), POLLIN, 0};
  ASSERT_TRUE(control_.configure("", "100000"));
  ASSERT_EQ(agent_->postTransfer(in), XferState::POSTED);
  agent_->handOver();
  // Nobody asks; the driver's own thread rings.
  ASSERT_EQ(::poll(&ready, 1, 20'000), 1);
  EXPECT_GE(control_.count("cuLaunchHostFunc"), 1u);
  EXPECT_LT(control_.count("cuEventQuery"), 5000u) << "somebody spins";
  EXPECT_EQ(agent_->checkTransfer(in), XferState::DONE) << errorOf(in);
}

TEST_F(DeviceTest, ComesAfterTheProgramsStream) {
  for (const char* pin : {"auto", "never"}) {
    makeAgent({{"pin", pin}});
    std::vector<unsigned char> host(1 << 20, 0);
    DeviceMemory memory(0, 1 << 20);
    agent_->registerMemory({memory.whole()});
    agent_->registerMemory({hostPart(host, 0, host.size())});
    // The program's own work: first something slow, then what the transfer has to see.
    cuda_abi::Stream stream = nullptr;
    void* pinned = nullptr;
    {
      gpu::Scope scope(gpu::open(), 0);
      ASSERT_EQ(cuda("cuStreamCreate", &stream, 1u), 0);
      ASSERT_EQ(gpu::open().allocateHost(1 << 20, &pinned), 0);
    }
    std::memset(pinned, 6, 1 << 20);
    TransferOptions options;
    options.custom = "stream=" + std::to_string(reinterpret_cast<uintptr_t>(stream));
    const Transfer out = agent_->prepareTransfer(OpType::READ, {hostPart(host, 0, host.size())},
                                                 {memory.whole()}, agent_->name(), options);
    ASSERT_TRUE(control_.configure("", "30000"));
    {
      gpu::Scope scope(gpu::open(), 0);
      ASSERT_EQ(cuda("cuMemcpyHtoDAsync_v2", cuda_abi::Pointer{memory.address()},
                     static_cast<const void*>(pinned), size_t{1 << 20}, stream),
                0);
    }
    ASSERT_EQ(run(out), XferState::DONE) << errorOf(out);
    EXPECT_EQ(host, std::vector<unsigned char>(1 << 20, 6)) << pin;
    agent_.reset();
    control_.reset();
    gpu::Scope scope(gpu::open(), 0);
    cuda("cuStreamDestroy_v2", stream);
    gpu::open().freeHost(pinned);
  }
}

TEST_F(DeviceTest, RefusesWordsThatItDoesNotKnow) {
  makeAgent();
  std::vector<unsigned char> host(64);
  DeviceMemory memory(0, 64);
  agent_->registerMemory({memory.whole()});
  agent_->registerMemory({hostPart(host, 0, 64)});
  for (const char* words : {"stream", "stream=", "stream=12x", "queue=7"}) {
    TransferOptions options;
    options.custom = words;
    try {
      agent_->prepareTransfer(OpType::READ, {hostPart(host, 0, 64)}, {memory.whole()},
                              agent_->name(), options);
      ADD_FAILURE() << words;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::INVALID_PARAM) << error.what();
    }
  }
}

TEST_F(DeviceTest, RefusesOptionsThatMeanNothing) {
  for (const Params& params : {Params{{"pin", "sometimes"}}, Params{{"delay_us", "-1"}}})
    EXPECT_THROW(makeAgent(params), Error);
}

// ---- what goes wrong ------------------------------------------------------------------------

class DeviceFaultTest : public DeviceTest {
 protected:
  // Ten pieces that do not touch.
  Transfer prepareTen() {
    if (!memory_) {
      host_ = numbered(10'000);
      memory_ = std::make_unique<DeviceMemory>(0, 10'000);
      agent_->registerMemory({memory_->whole()});
      agent_->registerMemory({hostPart(host_, 0, host_.size())});
    }
    std::vector<MemDescriptor> here, there;
    for (uint64_t i = 0; i < 10; ++i) {
      here.push_back(hostPart(host_, i * 1000, 500));
      there.push_back(memory_->part(i * 1000, 500));
    }
    return agent_->prepareTransfer(OpType::WRITE, here, there, agent_->name());
  }
  void TearDown() override {
    agent_.reset();
    if (control_) control_.reset();
    memory_.reset();
  }
  std::vector<unsigned char> host_;
  std::unique_ptr<DeviceMemory> memory_;
};

TEST_F(DeviceFaultTest, FailsOnlyThePieceThatTheDriverRefuses) {
  makeAgent();
  const Transfer in = prepareTen();
  // The call for many is refused as a whole, and then the fourth one by itself.
  ASSERT_TRUE(control_.configure("cuMemcpyBatchAsync@1=801,cuMemcpyHtoDAsync_v2@4=1", ""));
  ASSERT_EQ(run(in), XferState::FAILED);
  const std::string text = errorOf(in);
  EXPECT_NE(text.find("copy from host memory to GPU 0: CUDA_ERROR_INVALID_VALUE (1)"),
            std::string::npos)
      << text;
  const PieceStatus pieces = agent_->pieceStatus(in);
  EXPECT_EQ(pieces.done, 9u);
  EXPECT_EQ(pieces.failed, 1u);
  EXPECT_EQ(pieces.bytes_done, 4500u);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(pieces.status[i], i == 3 ? -3 : 0) << i;
  const auto came = memory_->read();
  for (size_t i = 0; i < 10; ++i)
    EXPECT_EQ(std::memcmp(came.data() + i * 1000, host_.data() + i * 1000, 500) == 0, i != 3) << i;
  // It is as good as new.
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
}

TEST_F(DeviceFaultTest, FailsWithTheDeviceAndSaysSo) {
  makeAgent();
  const Transfer in = prepareTen();
  ASSERT_TRUE(control_.configure("copy@3=700", ""));
  ASSERT_EQ(run(in), XferState::FAILED);
  const std::string text = errorOf(in);
  EXPECT_NE(text.find("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), std::string::npos) << text;
  EXPECT_NE(text.find("cannot use the device any more"), std::string::npos) << text;
  EXPECT_NE(text.find("native code 700"), std::string::npos) << text;
  // Also what comes later, without a wait.
  ASSERT_EQ(run(in), XferState::FAILED);
  EXPECT_NE(errorOf(in).find("700"), std::string::npos) << errorOf(in);
  // Another device goes on.
  DeviceMemory other(1, 1000);
  agent_->registerMemory({other.whole()});
  const Transfer elsewhere = agent_->prepareTransfer(OpType::WRITE, {hostPart(host_, 0, 1000)},
                                                     {other.whole()}, agent_->name());
  ASSERT_EQ(run(elsewhere), XferState::DONE) << errorOf(elsewhere);
  control_.reset();  // a lost device would keep the memory pinned, for the next test to meet
}

TEST_F(DeviceFaultTest, DoesWithoutEventsAndBells) {
  for (const char* fault : {"cuEventCreate@1+=2", "cuEventRecord@1+=999", "cuEventQuery@1+=999",
                            "cuLaunchHostFunc@1+=999", "cuEventQuery@1=999"}) {
    makeAgent();
    const Transfer in = prepareTen();
    ASSERT_TRUE(control_.configure(fault, "20000"));
    ASSERT_EQ(run(in), XferState::DONE) << fault << ": " << errorOf(in);
    const auto came = memory_->read();
    EXPECT_EQ(std::memcmp(came.data(), host_.data(), 500), 0) << fault;
    agent_.reset();
    control_.reset();
    memory_.reset();
  }
}

TEST_F(DeviceFaultTest, EndsInTimeWhenACopyIsStuck) {
  makeAgent();
  prepareTen();
  TransferOptions options;
  options.timeout = 100ms;
  const Transfer limited = agent_->prepareTransfer(
      OpType::WRITE, {hostPart(host_, 0, 500)}, {memory_->part(0, 500)}, agent_->name(), options);
  ASSERT_TRUE(control_.configure("copy@1=stuck", ""));
  agent_->postTransfer(limited);
  EXPECT_EQ(agent_->waitTransfer(limited, 20s), XferState::FAILED);
  EXPECT_EQ(agent_->transferError(limited), Errc::TIMEOUT);
  EXPECT_THROW(agent_->quiesceTransfer(limited, 100ms), Error);
  try {
    agent_->deregisterMemory({memory_->whole()});
    ADD_FAILURE() << "memory that is being written was given back";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::NOT_QUIESCED) << error.what();
  }
  const auto begin = Clock::now();
  agent_.reset();
  EXPECT_LT(Clock::now() - begin, 10s);
  // It said not to reuse the memory.
  using Memory = std::pair<std::vector<unsigned char>, std::unique_ptr<DeviceMemory>>;
  static auto& kept = *new std::vector<Memory>;
  kept.emplace_back(std::move(host_), std::move(memory_));
}

TEST_F(DeviceFaultTest, CancelsWhatWaits) {
  makeAgent({{"delay_us", "200000"}});
  const Transfer in = prepareTen();
  ASSERT_TRUE(control_.configure("", ""));
  ASSERT_EQ(agent_->postTransfer(in), XferState::POSTED);
  agent_->cancelTransfer(in);
  EXPECT_EQ(agent_->waitTransfer(in, 20s), XferState::CANCELED) << errorOf(in);
  EXPECT_EQ(control_.count("copy"), 0u);
}

TEST_F(DeviceFaultTest, SaysThatMemoryIsShort) {
  makeAgent({{"pin", "never"}});
  ASSERT_TRUE(control_.configure("cuMemHostAlloc@1=2", ""));
  try {
    prepareTen();
    ADD_FAILURE() << "staged through nothing";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::LIMIT) << error.what();
    EXPECT_NE(std::string(error.what()).find("CUDA_ERROR_OUT_OF_MEMORY (2)"), std::string::npos)
        << error.what();
  }
  const Transfer in = prepareTen();
  ASSERT_EQ(run(in), XferState::DONE) << errorOf(in);
}

TEST_F(DeviceFaultTest, RegistersNothingWhenTheDeviceIsNotThere) {
  makeAgent();
  DeviceMemory memory(1, 64);
  ASSERT_TRUE(control_.configure("cuDevicePrimaryCtxRetain@1=46", ""));
  const std::string text = whyNotRegistered(memory.whole());
  EXPECT_NE(text.find("GPU 1: CUDA_ERROR_DEVICE_UNAVAILABLE (46)"), std::string::npos) << text;
  EXPECT_EQ(whyNotRegistered(memory.whole()), "") << "and later it is";
}

TEST_F(DeviceFaultTest, LeavesNothingBehind) {
  for (const char* pin : {"auto", "never"}) {
    const uint64_t contexts = control_.count("contexts");
    makeAgent({{"pin", pin}});
    ASSERT_NO_FATAL_FAILURE(goThereAndBack(3'000'000));
    agent_.reset();
    EXPECT_EQ(control_.count("live"), live_) << pin;
    EXPECT_EQ(control_.count("contexts"), contexts) << pin;
  }
}

}  // namespace
}  // namespace nixl
