// plugins/ucx/engine_harness.h - for tests: an engine behind the C table, with a host that records
// what it is told.
#pragma once

#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/backend.h"

extern "C" const nixl_plugin* nixl_backend_init(uint32_t host_abi);

namespace nixl::test {

using namespace std::chrono_literals;
using Options = std::map<std::string, std::string>;

inline std::chrono::steady_clock::time_point now() { return std::chrono::steady_clock::now(); }
inline uint64_t deadlineIn(std::chrono::nanoseconds time) {
  return static_cast<uint64_t>((now() + time).time_since_epoch().count());
}

// What became of one request.
struct Outcome {
  uint64_t posted = 0, done = 0, failed = 0, bytes = 0, reported_twice = 0;
  uint64_t wrong_attempt = 0, attempt = 0;
  int32_t status = 0;
  std::string text;
  std::vector<int32_t> piece;  // 1: open
  bool ended() const { return done + failed == posted; }
};

struct PeerEvents {
  std::vector<int32_t> states;
  int32_t status = 0;
  std::string reason;
  bool down() const { return !states.empty() && states.back() == NIXL_PEER_DOWN; }
};

struct EngineError : std::runtime_error {
  EngineError(int32_t c, const std::string& text) : std::runtime_error(text), code(c) {}
  int32_t code;
};

class Engine {
 public:
  explicit Engine(std::string name, const Options& options = {}) : name_(std::move(name)) {
    host_.struct_size = sizeof host_;
    host_.abi_version = NIXL_PLUGIN_ABI_VERSION;
    host_.context = this;
    host_.on_complete = &Engine::onComplete;
    host_.on_notification = &Engine::onNotification;
    host_.on_peer = &Engine::onPeer;
    host_.wake = [](void* self) { ++static_cast<Engine*>(self)->wakes; };
    host_.log = [](void* self, int32_t level, const char*, int32_t, const char* text) {
      auto& engine = *static_cast<Engine*>(self);
      std::lock_guard lock(engine.mutex);
      engine.log.emplace_back(level, text);
      if (std::getenv("UCX_TEST_VERBOSE")) std::fprintf(stderr, "[%d] %s\n", level, text);
    };
    host_.count = [](void*, const char*, int64_t) {};
    host_.extension = [](void*, const char*) -> const void* { return nullptr; };
    std::vector<const char*> names, values;
    for (const auto& [key, value] : options) {
      names.push_back(key.c_str());
      values.push_back(value.c_str());
    }
    nixl_engine_args args{};
    args.struct_size = sizeof args;
    args.option_count = static_cast<uint32_t>(names.size());
    args.host = &host_;
    args.agent = name_.data();
    args.agent_size = name_.size();
    args.option_names = names.data();
    args.option_values = values.data();
    args.progress_thread = 1;
    check([&](nixl_error* err) { return plugin()->create(&args, &engine_, &ops_, err); });
  }
  ~Engine() { destroy(); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  static const nixl_plugin* plugin() { return nixl_backend_init(NIXL_PLUGIN_ABI_VERSION); }

  void destroy() {
    if (engine_ == nullptr) return;
    shutDown(5s);
    ops_->destroy(engine_);
    engine_ = nullptr;
  }
  int32_t shutDown(std::chrono::nanoseconds time) {
    nixl_error err = error();
    if (shut_down_) return 0;
    shut_down_ = true;
    return ops_->shutdown(engine_, deadlineIn(time), &err);
  }

  std::string info() {
    const void* bytes = nullptr;
    size_t size = 0;
    check([&](nixl_error* err) { return ops_->local_info(engine_, &bytes, &size, err); });
    return {static_cast<const char*>(bytes), size};
  }
  void* connect(const std::string& name, std::string_view info, PeerEvents* events) {
    void* peer = nullptr;
    check([&](nixl_error* err) {
      return ops_->connect(engine_, name.data(), name.size(), info.data(), info.size(), events,
                           &peer, err);
    });
    return peer;
  }
  void disconnect(void* peer) { ops_->disconnect(engine_, peer); }

  std::vector<void*> registerAll(const std::vector<nixl_region>& regions) {
    std::vector<void*> handles(regions.size());
    check([&](nixl_error* err) {
      return ops_->register_memory(engine_, regions.data(), regions.size(), handles.data(), err);
    });
    return handles;
  }
  static nixl_region region(const void* addr, uint64_t length, MemType kind = MemType::DRAM) {
    nixl_region r{};
    r.struct_size = sizeof r;
    r.kind = static_cast<uint32_t>(kind);
    r.addr = reinterpret_cast<uint64_t>(addr);
    r.length = length;
    r.rights = 3;
    r.dmabuf_fd = -1;
    return r;
  }
  void* registerMemory(const void* addr, uint64_t length, MemType kind = MemType::DRAM) {
    return registerAll({region(addr, length, kind)})[0];
  }
  std::string key(void* region) {
    const void* bytes = nullptr;
    size_t size = 0;
    check([&](nixl_error* err) { return ops_->public_key(engine_, region, &bytes, &size, err); });
    return {static_cast<const char*>(bytes), size};
  }
  void deregister(const std::vector<void*>& regions) {
    check([&](nixl_error* err) {
      return ops_->deregister(engine_, regions.data(), regions.size(), deadlineIn(5s), err);
    });
  }
  void* load(void* peer, std::string_view key) {
    void* remote = nullptr;
    check([&](nixl_error* err) {
      return ops_->load(engine_, peer, 0, key.data(), key.size(), &remote, err);
    });
    return remote;
  }
  void unload(void* remote) { ops_->unload(engine_, remote); }

  void notify(void* peer, std::string_view bytes) {
    check([&](nixl_error* err) {
      return ops_->notify(engine_, peer, bytes.data(), bytes.size(), err);
    });
  }
  int64_t progress(std::chrono::nanoseconds budget = 100us) {
    return ops_->progress(engine_, static_cast<uint64_t>(budget.count()));
  }
  nixl_facts facts() {
    nixl_facts f{};
    f.struct_size = sizeof f;
    ops_->facts(engine_, &f);
    return f;
  }
  nixl_cost cost(void* peer, const nixl_plan_summary& plan) {
    nixl_cost out{};
    out.struct_size = sizeof out;
    check([&](nixl_error* err) { return ops_->cost(engine_, peer, &plan, &out, err); });
    return out;
  }

  void* raw() { return engine_; }
  const nixl_engine_ops* ops() { return ops_; }

  template <typename Call>
  static int32_t check(Call&& call) {
    nixl_error err = error();
    const int32_t code = call(&err);
    if (code < 0) throw EngineError(code, err.text);
    return code;
  }
  static nixl_error error() {
    static thread_local char text[4096];
    text[0] = '\0';
    return {sizeof(nixl_error), 0, text, sizeof text};
  }

  std::mutex mutex;
  std::vector<std::string> messages;  // guarded by mutex
  std::vector<std::pair<int32_t, std::string>> log;
  std::atomic<int> wakes{0};
  std::function<void(Outcome&)> after_complete;

 private:
  static void onComplete(void* request, uint64_t attempt, uint64_t first, uint64_t count,
                         int32_t status, uint64_t bytes, int32_t, const char* text);
  static void onNotification(void* self, const void* bytes, size_t size) {
    auto& engine = *static_cast<Engine*>(self);
    std::lock_guard lock(engine.mutex);
    engine.messages.emplace_back(static_cast<const char*>(bytes), size);
  }
  static void onPeer(void* peer, int32_t state, int32_t status, const char* reason) {
    auto& events = *static_cast<PeerEvents*>(peer);
    events.states.push_back(state);
    events.status = status;
    events.reason = reason == nullptr ? "" : reason;
  }

  std::string name_;
  nixl_host host_{};
  void* engine_ = nullptr;
  const nixl_engine_ops* ops_ = nullptr;
  bool shut_down_ = false;
};

// A request over parallel arrays. All pieces use region 0 unless index arrays are given.
class Transfer {
 public:
  Transfer(Engine& engine, OpType op, void* peer, std::vector<void*> local_regions,
           std::vector<void*> remote_regions)
      : engine_(engine), locals_(std::move(local_regions)), remotes_(std::move(remote_regions)) {
    plan_.struct_size = sizeof plan_;
    plan_.op = static_cast<uint32_t>(op);
    plan_.peer = peer;
  }
  ~Transfer() {
    if (request_ != nullptr) engine_.ops()->release(engine_.raw(), request_);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  void add(const void* local, uint64_t remote, uint64_t length, uint32_t local_region = 0,
           uint32_t remote_region = 0) {
    local_.push_back(reinterpret_cast<uint64_t>(local));
    remote_.push_back(remote);
    length_.push_back(length);
    local_index_.push_back(local_region);
    remote_index_.push_back(remote_region);
    plan_.bytes += length;
  }
  void prepare(std::string custom = {}) {
    custom_ = std::move(custom);
    plan_.count = local_.size();
    plan_.local_addr = local_.data();
    plan_.remote_addr = remote_.data();
    plan_.length = length_.data();
    const bool one = locals_.size() == 1 && remotes_.size() == 1;
    plan_.local_region = one ? nullptr : local_index_.data();
    plan_.remote_region = one ? nullptr : remote_index_.data();
    plan_.local_regions = locals_.data();
    plan_.remote_regions = remotes_.data();
    plan_.local_region_count = static_cast<uint32_t>(locals_.size());
    plan_.remote_region_count = static_cast<uint32_t>(remotes_.size());
    plan_.custom = custom_.data();
    plan_.custom_size = custom_.size();
    Engine::check([&](nixl_error* err) {
      return engine_.ops()->prepare(engine_.raw(), &plan_, this, &request_, err);
    });
  }
  // Posts every slice; returns the last code of post(), or the first negative one.
  int32_t post() {
    if (request_ == nullptr) prepare();
    {
      std::lock_guard lock(mutex_);
      outcome_ = {};
      outcome_.attempt = ++attempt_;
      outcome_.piece.assign(plan_.count, 0);
    }
    const uint64_t most = engine_.facts().max_slice ? engine_.facts().max_slice : plan_.count;
    int32_t code = 0;
    for (uint64_t first = 0; first < plan_.count; first += most) {
      const uint64_t count = std::min(most, plan_.count - first);
      nixl_post p{};
      p.struct_size = sizeof p;
      p.flags = first + count == plan_.count ? NIXL_POST_LAST : 0;
      p.attempt = attempt_;
      p.first = first;
      p.count = count;
      {
        std::lock_guard lock(mutex_);
        outcome_.posted += count;
      }
      nixl_error err = Engine::error();
      code = engine_.ops()->post(engine_.raw(), request_, &p, &err);
      if (code == 0) note(first, count, 0, 0, nullptr);
      if (code < 0) {
        note(first, count, code, 0, err.text);
        return code;
      }
    }
    return code;
  }
  int32_t cancel() {
    return Engine::check(
        [&](nixl_error* err) { return engine_.ops()->cancel(engine_.raw(), request_, err); });
  }
  Outcome outcome() {
    std::lock_guard lock(mutex_);
    return outcome_;
  }
  bool ended() {
    std::lock_guard lock(mutex_);
    return outcome_.ended();
  }
  void note(uint64_t first, uint64_t count, int32_t status, uint64_t bytes, const char* text) {
    std::lock_guard lock(mutex_);
    for (uint64_t i = first; i < first + count; ++i) {
      if (outcome_.piece[i] != 0) ++outcome_.reported_twice;
      outcome_.piece[i] = status == 0 ? 1 : status;
    }
    (status == 0 ? outcome_.done : outcome_.failed) += count;
    outcome_.bytes += bytes;
    if (status < 0) {
      outcome_.status = status;
      outcome_.text = text == nullptr ? "" : text;
    }
  }
  uint64_t attempt() const { return attempt_; }
  std::function<void()> on_end;

 private:
  Engine& engine_;
  nixl_plan plan_{};
  std::vector<void*> locals_, remotes_;
  std::vector<uint64_t> local_, remote_, length_;
  std::vector<uint32_t> local_index_, remote_index_;
  std::string custom_;
  void* request_ = nullptr;
  uint64_t attempt_ = 0;
  std::mutex mutex_;
  Outcome outcome_;
};

inline void Engine::onComplete(void* request, uint64_t attempt, uint64_t first, uint64_t count,
                               int32_t status, uint64_t bytes, int32_t, const char* text) {
  auto& transfer = *static_cast<Transfer*>(request);
  if (attempt != transfer.attempt()) return;
  const bool watched = static_cast<bool>(transfer.on_end);  // else it may go with its last piece
  transfer.note(first, count, status, bytes, text);
  if (watched && transfer.ended()) transfer.on_end();
}

// Makes progress on the engines until `condition` holds; false at the deadline.
template <typename Condition>
bool until(std::vector<Engine*> engines, Condition&& condition,
           std::chrono::nanoseconds time = 20s) {
  const auto end = now() + time;
  while (!condition()) {
    if (now() >= end) return false;
    for (Engine* engine : engines) engine->progress(20us);
  }
  return true;
}

}  // namespace nixl::test
