// The engine DEVICE through its table, without the library: what no face of it offers yet, and many
// threads at once.
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/gpu.h"
#include "control.h"
#include "nixl/backend.h"

extern "C" const nixl_plugin* nixl_backend_init_device(uint32_t host_abi);

namespace nixl {
namespace {

using namespace std::chrono_literals;
using fakes::CudaControl;

constexpr auto kVram = static_cast<uint32_t>(MemType::VRAM);
constexpr auto kDram = static_cast<uint32_t>(MemType::DRAM);

uint64_t nowNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
}

// What a transfer was told.
struct Told {
  std::atomic<uint64_t> pieces{0}, done{0}, canceled{0}, bytes{0};
};

class RawEngine {
 public:
  using Options = std::vector<std::pair<const char*, const char*>>;

  explicit RawEngine(const Options& options = {}) {
    host_.struct_size = sizeof host_;
    host_.abi_version = NIXL_PLUGIN_ABI_VERSION;
    host_.log = [](void*, int32_t, const char*, int32_t, const char*) {};
    host_.wake = [](void*) {};
    host_.count = [](void*, const char*, int64_t) {};
    host_.on_complete = [](void* request, uint64_t, uint64_t, uint64_t count, int32_t status,
                           uint64_t bytes, int32_t, const char*) {
      auto& told = *static_cast<Told*>(request);
      told.bytes += bytes;
      if (status == 0) told.done += count;
      if (status == static_cast<int32_t>(Errc::CANCELED)) told.canceled += count;
      told.pieces += count;  // the last word
    };
    std::vector<const char*> names, values;
    for (const auto& [name, value] : options) {
      names.push_back(name);
      values.push_back(value);
    }
    nixl_engine_args args{};
    args.struct_size = sizeof args;
    args.host = &host_;
    args.agent = "raw";
    args.agent_size = 3;
    args.option_count = static_cast<uint32_t>(names.size());
    args.option_names = names.data();
    args.option_values = values.data();
    const nixl_plugin* plugin = nixl_backend_init_device(NIXL_PLUGIN_ABI_VERSION);
    EXPECT_EQ(plugin->create(&args, &engine, &ops, &error), 0) << text;
  }
  RawEngine(const RawEngine&) = delete;
  RawEngine& operator=(const RawEngine&) = delete;
  ~RawEngine() {
    EXPECT_EQ(ops->shutdown(engine, NIXL_NEVER, &error), 0);
    ops->destroy(engine);
  }

  void* registered(uint32_t kind, const void* address, uint64_t length, uint64_t device = 0) {
    nixl_region region{};
    region.struct_size = sizeof region;
    region.kind = kind;
    region.addr = reinterpret_cast<uint64_t>(address);
    region.length = length;
    region.device = device;
    region.dmabuf_fd = -1;
    void* handle = nullptr;
    EXPECT_EQ(ops->register_memory(engine, &region, 1, &handle, &error), 0) << text;
    return handle;
  }

  void* engine = nullptr;
  const nixl_engine_ops* ops = nullptr;
  char text[512] = {};
  nixl_error error{sizeof(nixl_error), 0, text, sizeof text};

 private:
  nixl_host host_{};
};

class DeviceEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!control_) GTEST_SKIP() << "NIXL_CUDA_PATH names no software driver";
    control_.reset();
    gpu::open();
    live_ = control_.count("live");
  }
  void TearDown() override {
    if (control_) control_.reset();
  }

  CudaControl control_ = CudaControl::find();
  uint64_t live_ = 0;
};

TEST_F(DeviceEngineTest, AllocatesMemoryOfBothKinds) {
  {
    RawEngine raw;
    void *device = nullptr, *host = nullptr, *kept = nullptr;
    ASSERT_EQ(raw.ops->allocate(raw.engine, kVram, 1, 5000, &device, &raw.error), 0) << raw.text;
    ASSERT_EQ(raw.ops->allocate(raw.engine, kDram, 0, 5000, &host, &raw.error), 0) << raw.text;
    ASSERT_EQ(raw.ops->allocate(raw.engine, kDram, 0, 5000, &kept, &raw.error), 0) << raw.text;
    const gpu::PointerFacts facts = gpu::open().find(reinterpret_cast<uint64_t>(device));
    EXPECT_EQ(facts.kind, gpu::PointerKind::DEVICE);
    EXPECT_EQ(facts.device, 1u);
    EXPECT_EQ(gpu::open().find(reinterpret_cast<uint64_t>(host)).kind, gpu::PointerKind::PINNED);
    std::memset(host, 1, 5000);
    EXPECT_EQ(raw.ops->allocate(raw.engine, kVram, 0, uint64_t{1} << 40, &device, &raw.error),
              static_cast<int32_t>(Errc::LIMIT));
    EXPECT_NE(std::string(raw.text).find("bytes are free"), std::string::npos) << raw.text;
    EXPECT_EQ(raw.ops->allocate(raw.engine, kVram, 7, 1, &device, &raw.error),
              static_cast<int32_t>(Errc::NOT_FOUND));
    raw.ops->free_memory(raw.engine, host);
    raw.ops->free_memory(raw.engine, host);  // nobody's any more: ignored
  }
  EXPECT_EQ(control_.count("live"), live_) << "what was not freed goes with the engine";
}

TEST_F(DeviceEngineTest, PredictsFromWhatTheDeviceSays) {
  RawEngine raw;
  nixl_plan_summary plan{sizeof(nixl_plan_summary), 0, kDram, kVram, 10, 1000};
  nixl_cost cost{};
  cost.struct_size = sizeof cost;
  ASSERT_EQ(raw.ops->cost(raw.engine, nullptr, &plan, &cost, &raw.error), 0);
  EXPECT_EQ(cost.reachable, 1u);
  const gpu::DeviceFacts facts = gpu::open().facts(0);
  EXPECT_EQ(cost.bytes_per_second, facts.host_rate);
  EXPECT_NE(std::string(cost.why).find(facts.name), std::string::npos) << cost.why;
  plan.local_kind = kVram;
  ASSERT_EQ(raw.ops->cost(raw.engine, nullptr, &plan, &cost, &raw.error), 0);
  EXPECT_EQ(cost.bytes_per_second, facts.own_rate);
  plan.local_kind = plan.remote_kind = kDram;
  cost = {};
  cost.struct_size = sizeof cost;
  ASSERT_EQ(raw.ops->cost(raw.engine, nullptr, &plan, &cost, &raw.error), 0);
  EXPECT_EQ(cost.reachable, 0u);
  EXPECT_NE(std::string(cost.why), "");
}

// ---- many threads -------------------------------------------------------------------------------

constexpr uint64_t kSize = 3 << 20;

// One thread's memory, and what it moves.
struct Worker {
  std::vector<unsigned char> host = std::vector<unsigned char>(kSize);
  void *device = nullptr, *host_region = nullptr, *device_region = nullptr;
  std::string wrong;
};

// Posts transfers in pieces of all sizes, there and back, some of them cancelled, and looks at the
// bytes. Polls as a user's thread does: whoever gets the turn drives the engine.
void work(RawEngine& raw, std::mutex& turn, Worker& w, unsigned seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < 12 && w.wrong.empty(); ++round) {
    const bool write = round % 2 == 0;
    std::vector<uint64_t> local, remote, length;
    for (uint64_t at = 0; at < kSize;) {
      uint64_t bytes = random() % 20 == 0 ? random() % (2 << 20) : random() % 40'000;
      bytes = std::min<uint64_t>(bytes, kSize - at);
      local.push_back(reinterpret_cast<uint64_t>(w.host.data()) + at);
      remote.push_back(reinterpret_cast<uint64_t>(w.device) + at);
      length.push_back(bytes);
      at += bytes;
    }
    if (write) {
      for (auto& byte : w.host) byte = static_cast<unsigned char>(random());
    } else {
      std::fill(w.host.begin(), w.host.end(), static_cast<unsigned char>(0));
    }
    const std::vector<unsigned char> sent = w.host;
    Told told;
    nixl_plan plan{};
    plan.struct_size = sizeof plan;
    plan.op = static_cast<uint32_t>(write ? OpType::WRITE : OpType::READ);
    plan.local_kind = kDram;
    plan.remote_kind = kVram;
    plan.count = length.size();
    plan.local_addr = local.data();
    plan.remote_addr = remote.data();
    plan.length = length.data();
    plan.local_regions = &w.host_region;
    plan.remote_regions = &w.device_region;
    plan.local_region_count = plan.remote_region_count = 1;
    plan.bytes = kSize;
    void* request = nullptr;
    char text[256];
    nixl_error error{sizeof(nixl_error), 0, text, sizeof text};
    if (raw.ops->prepare(raw.engine, &plan, &told, &request, &error) != 0) {
      w.wrong = text;
      return;
    }
    uint64_t posted = 0;
    const bool cancel = round % 7 == 5;
    while (posted < plan.count) {
      nixl_post post{};
      post.struct_size = sizeof post;
      post.attempt = 1;
      post.first = posted;
      post.count = std::min<uint64_t>(64, plan.count - posted);
      posted += post.count;
      if (raw.ops->post(raw.engine, request, &post, &error) != 1) w.wrong = text;
    }
    if (cancel) raw.ops->cancel(raw.engine, request, &error);
    const uint64_t deadline = nowNs() + 60'000'000'000;
    while (told.pieces < plan.count && nowNs() < deadline) {
      std::unique_lock lock(turn, std::try_to_lock);
      if (lock)
        raw.ops->progress(raw.engine, 50'000);
      else
        std::this_thread::yield();
    }
    if (told.pieces != plan.count) {
      w.wrong = "it does not end";
      return;
    }
    raw.ops->release(raw.engine, request);
    if (told.done + told.canceled != plan.count) w.wrong = "pieces failed";
    if (cancel || !write) continue;
    if (told.bytes != kSize) w.wrong = "bytes were not counted";
    std::vector<unsigned char> came(kSize);
    gpu::Scope scope(gpu::open(), 0);
    if (gpu::open().copyNow(gpu::Way::OUT, {reinterpret_cast<uint64_t>(came.data()),
                                            reinterpret_cast<uint64_t>(w.device), kSize}) != 0)
      w.wrong = "cannot look at the device's memory";
    if (came != sent) w.wrong = "other bytes arrived in round " + std::to_string(round);
  }
}

TEST_F(DeviceEngineTest, IsUsedByManyThreads) {
  for (const char* pin : {"auto", "never"}) {
    RawEngine raw(RawEngine::Options{{"pin", pin}});
    ASSERT_TRUE(control_.configure("", "0-100"));
    constexpr unsigned kThreads = 4;
    Worker workers[kThreads];
    for (Worker& w : workers) {
      ASSERT_EQ(raw.ops->allocate(raw.engine, kVram, 0, kSize, &w.device, &raw.error), 0);
      w.device_region = raw.registered(kVram, w.device, kSize);
      w.host_region = raw.registered(kDram, w.host.data(), kSize);
    }
    // As the library's own thread does: it sleeps until a descriptor tells, or a timer.
    std::mutex turn;
    std::atomic<bool> over{false};
    std::thread sleeper([&] {
      int32_t fd = -1;
      ASSERT_EQ(raw.ops->wait_fds(raw.engine, &fd, 1), 1u);
      while (!over) {
        uint64_t timer = 0;
        bool busy = true;
        {
          std::lock_guard lock(turn);
          if (raw.ops->progress(raw.engine, 100'000) == 0) busy = raw.ops->arm(raw.engine) != 0;
          timer = raw.ops->next_timer(raw.engine);
        }
        const uint64_t now = nowNs();
        pollfd ready{fd, POLLIN, 0};
        if (!busy && timer > now)
          ::poll(&ready, 1,
                 static_cast<int>(std::min<uint64_t>(timer - now, 5'000'000) / 1'000'000));
      }
    });
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < kThreads; ++i)
      threads.emplace_back([&, i] { work(raw, turn, workers[i], i + 1); });
    for (auto& thread : threads) thread.join();
    over = true;
    sleeper.join();
    for (unsigned i = 0; i < kThreads; ++i) EXPECT_EQ(workers[i].wrong, "") << pin << " " << i;
    EXPECT_EQ(control_.count("pageable"), 0u);
    for (Worker& w : workers) {
      void* handles[] = {w.host_region, w.device_region};
      EXPECT_EQ(raw.ops->deregister(raw.engine, handles, 2, NIXL_NEVER, &raw.error), 0);
    }
  }
}

}  // namespace
}  // namespace nixl
