// tests/fakes/hostile/hostile.cc - an engine that misbehaves as it is told; see README.md.
//
// It moves bytes inside an agent and between agents of one process. Left alone (no option) it does
// all of that right, but never inline and never in one report. Its table is nixl/backend.h's, with
// some functions replaced: what may not happen at the boundary happens here on purpose.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "nixl/backend.h"

namespace {

using nixl::Errc;
using nixl::MemType;
using nixl::OpType;

constexpr nixl_option kOptions[] = {
    {"mode", "", "what it does wrong, separated by commas; see README.md"},
    {"fail", "", "calls that fail once each, separated by commas: register_memory, post, ..."},
    {"throw", "", "calls that throw across the boundary, every time"},
    {"delay_us", "0", "microseconds that a transfer waits before it starts"},
    {"connect_us", "0", "microseconds until a peer is up; what is sent before waits for that"},
    {nullptr, nullptr, nullptr},
};

const nixl_facts kFacts = [] {
  auto facts = nixl::backendFacts({MemType::DRAM},
                                  NIXL_ENGINE_LOCAL | NIXL_ENGINE_REMOTE | NIXL_ENGINE_NOTIF,
                                  NIXL_FENCE_REVOKE);
  facts.max_piece = 1 << 20;
  facts.max_slice = 1000;
  return facts;
}();

uint64_t nowNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
}

std::set<std::string> words(const std::string& text) {
  std::set<std::string> all;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    if (end > at) all.insert(text.substr(at, end - at));
    at = end + 1;
  }
  return all;
}

class Hostile;

// All engines of the process, by the number that they tell their peers. Its lock is held while one
// of them is used from outside, so that it is not destroyed meanwhile.
struct Directory {
  std::recursive_mutex mutex;
  std::map<uint64_t, Hostile*> engines;
  uint64_t next = 1;
};
Directory& directory() {
  static auto& instance = *new Directory;
  return instance;
}

struct Region {  // its address is also its key
  uint64_t addr, length;
};

struct Peer {
  uint64_t engine;  // its number in the directory
  void* host_peer;
  uint64_t up_ns;  // when it will be connected
  bool told = false;
};

struct Request {
  nixl_plan plan;
  void* host_request;
};

class Hostile final : public nixl::BackendEngine {
 public:
  explicit Hostile(const nixl::BackendArgs& args)
      : BackendEngine(args, kFacts),
        modes_(words(args.option("mode"))),
        fail_(words(args.option("fail"))),
        throw_(words(args.option("throw"))),
        delay_ns_(std::stoull(args.option("delay_us", "0")) * 1000),
        connect_ns_(std::stoull(args.option("connect_us", "0")) * 1000) {
    std::lock_guard lock(directory().mutex);
    number_ = directory().next++;
    directory().engines[number_] = this;
    info_ = std::to_string(number_);
  }
  ~Hostile() override {
    std::lock_guard lock(directory().mutex);
    directory().engines.erase(number_);
  }

  bool is(const char* mode) const { return modes_.contains(mode); }

  // For the functions of the table that are replaced: may the call go on?
  bool fails(const std::string& call) {
    if (throw_.contains(call)) throw std::runtime_error("thrown on purpose by " + call);
    std::lock_guard lock(mutex_);
    return fail_.erase(call) != 0;
  }

  // ---- connections

  std::string_view localInfo() override { return info_; }

  void* connect(std::string_view, std::string_view info, void* host_peer) override {
    auto* peer = new Peer{std::stoull(std::string(info)), host_peer, nowNs() + connect_ns_};
    std::lock_guard lock(mutex_);
    peers_.push_back(peer);
    return peer;
  }

  void disconnect(void* handle) override {
    auto* peer = static_cast<Peer*>(handle);
    if (!is("never"))
      drop([&](const Queued& q) { return q.request->plan.peer == peer; }, Errc::REMOTE_DISCONNECT);
    waitWhile([&] { return busy_peer_ == peer; }, NIXL_NEVER);
    std::lock_guard lock(mutex_);
    std::erase(peers_, peer);
    delete peer;
  }

  // ---- memory

  void registerMemory(const nixl_region* regions, uint64_t count, void** handles) override {
    for (uint64_t i = 0; i < count; ++i) {
      auto* region = new Region{regions[i].addr, regions[i].length};
      std::lock_guard lock(mutex_);
      regions_.insert(region);
      handles[i] = region;
    }
  }
  std::string_view publicKey(void* region) override {
    std::lock_guard lock(mutex_);
    std::string& key = keys_[region];
    key = std::to_string(reinterpret_cast<uintptr_t>(region));
    return key;
  }
  int32_t deregister(void* const* regions, uint64_t count, uint64_t) override {
    // The directory's lock keeps peers out: none of them is in the middle of a piece.
    std::lock_guard outside(directory().mutex);
    for (uint64_t i = 0; i < count; ++i) {
      auto* region = static_cast<Region*>(regions[i]);
      // Hostile, but not suicidal: the memory may be unmapped next.
      for (auto& [number, engine] : directory().engines) engine->forgetLate(*region);
      std::lock_guard lock(mutex_);
      regions_.erase(region);
      keys_.erase(region);
      delete region;
    }
    return 0;
  }
  void* load(void*, MemType, std::string_view key) override {
    return reinterpret_cast<void*>(std::stoull(std::string(key)));
  }
  bool owns(const void* region) {
    std::lock_guard lock(mutex_);
    return regions_.contains(static_cast<const Region*>(region));
  }

  // ---- requests

  void* prepare(const nixl_plan& plan, void* host_request) override {
    return new Request{plan, host_request};
  }

  int32_t post(void* handle, const nixl_post& post) override {
    auto* request = static_cast<Request*>(handle);
    if (is("inline_twice")) {  // says it is done in two ways
      Result r = move(*request, post.first, post.count);
      complete(request->host_request, post.attempt, post.first, post.count, r.status, r.bytes);
      return 0;
    }
    uint64_t due = nowNs() + delay_ns_;
    if (auto* peer = static_cast<Peer*>(request->plan.peer)) due = std::max(due, peer->up_ns);
    {
      std::lock_guard lock(mutex_);
      // In parts that fit nothing, so that a report is seldom a whole slice.
      const uint64_t part = is("partial") ? 7 : std::max<uint64_t>(1, (post.count + 1) / 2);
      std::vector<Queued> parts;
      for (uint64_t first = post.first; first < post.first + post.count; first += part)
        parts.push_back(
            {due, request, post.attempt, first, std::min(part, post.first + post.count - first)});
      if (is("reversed")) std::ranges::reverse(parts);
      queue_.insert(queue_.end(), parts.begin(), parts.end());
    }
    wake();
    return 1;
  }

  int32_t cancel(void* handle) override {
    if (is("late_after_cancel") || is("never")) return 1;
    const bool lands = is("lands_after_cancel");
    if (lands) {
      std::lock_guard lock(mutex_);
      for (const Queued& q : queue_)
        if (q.request == handle)
          for (uint64_t i = q.first; i < q.first + q.count; ++i)
            late_.push_back(
                {nowNs() + 30'000'000, target(q.request->plan, i), q.request->plan.length[i], 0});
    }
    drop([&](const Queued& q) { return q.request == handle; }, Errc::CANCELED);
    return 1;
  }

  void release(void* handle) override { delete static_cast<Request*>(handle); }

  int32_t quiesce(void*, void*, uint64_t deadline) override {
    if (waitWhile([&] { return busy_ || !queue_.empty(); }, deadline)) return 0;
    return fail(Errc::NOT_QUIESCED, "something is still in flight");
  }

  // ---- notifications

  int32_t notify(void* handle, std::string_view bytes) override {
    if (is("loses_notifications")) return 0;
    const auto* peer = static_cast<Peer*>(handle);
    const auto send = [&](std::string_view message) {
      if (peer == nullptr) {
        deliver(message);
        return true;
      }
      std::lock_guard outside(directory().mutex);
      const auto found = directory().engines.find(peer->engine);
      if (found == directory().engines.end()) return false;
      found->second->deliver(message);
      return true;
    };
    if (is("garbage_notifications")) {
      send("");
      send(std::string_view("\xFF\0\x80garbage", 10));
      send(std::string(100'000, '\x01'));
      send(bytes.substr(0, 10));
    }
    if (is("reorders_notifications")) {
      std::lock_guard lock(mutex_);
      if (held_.empty()) {
        held_ = bytes;
        return 0;
      }
    }
    bool sent = send(bytes);
    if (is("reorders_notifications")) send(std::exchange(held_, {}));
    if (is("repeats_notifications")) send(bytes);
    return sent ? 0 : fail(Errc::REMOTE_DISCONNECT, "the other agent is gone");
  }

  // ---- progress

  int64_t progress(uint64_t budget_ns) override {
    const uint64_t until = nowNs() + budget_ns;
    int64_t done = tellPeers() + landLate();
    while (!is("never")) {
      Queued next;
      {
        std::lock_guard lock(mutex_);
        if (queue_.empty() || queue_.front().due_ns > nowNs()) break;
        next = queue_.front();
        queue_.pop_front();
        busy_ = true;
        busy_peer_ = static_cast<Peer*>(next.request->plan.peer);
      }
      report(next);
      {
        std::lock_guard lock(mutex_);
        busy_ = false;
        busy_peer_ = nullptr;
      }
      idle_.notify_all();
      ++done;
      if (nowNs() >= until) break;
    }
    return done;
  }
  int32_t arm() override { return nextTimer() <= nowNs() ? 1 : 0; }
  uint64_t nextTimer() override {
    if (is("never")) return NIXL_NEVER;
    std::lock_guard lock(mutex_);
    uint64_t next = NIXL_NEVER;
    if (!queue_.empty()) next = queue_.front().due_ns;
    if (!late_.empty()) next = std::min(next, late_.front().due_ns);
    for (const Peer* peer : peers_)
      if (!peer->told) next = std::min(next, peer->up_ns);
    return next;
  }

  int32_t shutDown(uint64_t deadline) override {
    if (is("never")) return fail(Errc::NOT_QUIESCED, "it never lets go");
    drop([](const Queued&) { return true; }, Errc::CANCELED);
    waitWhile([&] { return busy_; }, deadline);
    return 0;
  }

 private:
  struct Queued {
    uint64_t due_ns;
    Request* request;
    uint64_t attempt, first, count;
  };
  struct Late {  // a write that comes when nobody expects it any more; from 0: of some bytes
    uint64_t due_ns, to, length, from = 0;
  };
  struct Result {
    Errc status;
    uint64_t bytes;
  };

  static uint64_t target(const nixl_plan& plan, uint64_t i) {
    return static_cast<OpType>(plan.op) == OpType::WRITE ? plan.remote_addr[i] : plan.local_addr[i];
  }

  Result move(const Request& request, uint64_t first, uint64_t count) {
    const nixl_plan& plan = request.plan;
    std::lock_guard outside(directory().mutex);
    Hostile* owner = this;
    if (plan.peer != nullptr) {
      const auto found = directory().engines.find(static_cast<Peer*>(plan.peer)->engine);
      if (found == directory().engines.end()) return {Errc::REMOTE_DISCONNECT, 0};
      owner = found->second;
    }
    uint64_t bytes = 0;
    for (uint64_t i = first; i < first + count; ++i) {
      const uint32_t region = plan.remote_region != nullptr ? plan.remote_region[i] : 0;
      if (!owner->owns(plan.remote_regions[region])) return {Errc::NOT_ALLOWED, bytes};
      const bool write = static_cast<OpType>(plan.op) == OpType::WRITE;
      auto* to = reinterpret_cast<char*>(target(plan, i));
      auto* from = reinterpret_cast<char*>(write ? plan.local_addr[i] : plan.remote_addr[i]);
      uint64_t length = plan.length[i];
      if (is("short") && i == 0 && length > 0) --length;
      if (!is("moves_nothing")) std::memmove(to, from, length);
      if (is("corrupt") && length > 100) to[100] ^= 1;
      if (is("overrun")) to[length] ^= 1;
      bytes += plan.length[i];
    }
    return {Errc::OK, bytes};
  }

  void report(const Queued& q) {
    void* const name = q.request->host_request;
    const uint64_t pieces = q.request->plan.count;
    if (is("early")) {  // says so first, and moves later; the plan may be gone by then
      std::lock_guard lock(mutex_);
      for (uint64_t i = q.first; i < q.first + q.count; ++i) {
        const bool write = static_cast<OpType>(q.request->plan.op) == OpType::WRITE;
        late_.push_back({nowNs() + 30'000'000, target(q.request->plan, i),
                         q.request->plan.length[i],
                         write ? q.request->plan.local_addr[i] : q.request->plan.remote_addr[i]});
      }
    }
    const Result r = is("early") ? Result{Errc::OK, 0} : move(*q.request, q.first, q.count);
    const uint64_t bytes = is("bytes_too_many") ? UINT64_MAX / 2 : r.bytes;
    if (is("wrong_attempt")) {
      complete(name, q.attempt + 1, q.first, q.count, Errc::BACKEND, bytes);
      complete(name, q.attempt - 1, q.first, q.count, Errc::BACKEND, bytes);
    }
    if (is("out_of_bounds")) {
      complete(name, q.attempt, pieces, 1, Errc::BACKEND, bytes);
      complete(name, q.attempt, 0, pieces + 1, Errc::BACKEND, bytes);
      complete(name, q.attempt, UINT64_MAX, 2, Errc::BACKEND, bytes);
      complete(name, q.attempt, 1, UINT64_MAX, Errc::BACKEND, bytes);
      complete(name, q.attempt, 0, 0, Errc::BACKEND, bytes);
    }
    if (is("wrong_request")) {
      complete(nullptr, q.attempt, q.first, q.count, Errc::BACKEND, bytes);
      complete(reinterpret_cast<void*>(UINTPTR_MAX), q.attempt, q.first, q.count, Errc::BACKEND, 0);
    }
    const std::string garbage(5000, '\xEE');
    const Errc status = is("positive_status") && r.status == Errc::OK ? static_cast<Errc>(77)
                        : is("fails_garbled")                         ? static_cast<Errc>(-9999)
                                                                      : r.status;
    complete(name, q.attempt, q.first, q.count, status, bytes, 0,
             is("fails_garbled") ? garbage.c_str() : nullptr);
    if (is("twice"))
      complete(name, q.attempt, q.first, q.count, Errc::BACKEND, bytes, 0, "said once more");
  }

  int64_t tellPeers() {
    std::vector<void*> up;
    {
      std::lock_guard lock(mutex_);
      for (Peer* peer : peers_)
        if (!peer->told && peer->up_ns <= nowNs()) {
          peer->told = true;
          up.push_back(peer->host_peer);
        }
    }
    for (void* host_peer : up) peerState(host_peer, NIXL_PEER_UP, Errc::OK, "");
    if (is("garbage_peers")) {
      host_->on_peer(nullptr, 12345, -12345, nullptr);
      host_->on_peer(reinterpret_cast<void*>(UINTPTR_MAX), NIXL_PEER_DOWN, -10, "nobody");
    }
    return static_cast<int64_t>(up.size());
  }

  void forgetLate(const Region& region) {
    std::lock_guard lock(mutex_);
    std::erase_if(late_, [&](const Late& late) {
      const auto touches = [&](uint64_t at) {
        return at < region.addr + region.length && at + late.length > region.addr;
      };
      return touches(late.to) || (late.from != 0 && touches(late.from));
    });
  }

  int64_t landLate() {
    int64_t done = 0;
    std::lock_guard outside(directory().mutex);  // as against deregister()
    std::lock_guard lock(mutex_);
    for (; !late_.empty() && late_.front().due_ns <= nowNs(); ++done) {
      const Late& late = late_.front();
      if (late.from != 0)
        std::memmove(reinterpret_cast<void*>(late.to), reinterpret_cast<void*>(late.from),
                     late.length);
      else
        std::memset(reinterpret_cast<void*>(late.to), 0x5A, late.length);
      late_.pop_front();
    }
    return done;
  }

  // Reports what is queued and meant by `which` as ended with `status`.
  template <typename Which>
  void drop(Which which, Errc status) {
    std::vector<Queued> dropped;
    {
      std::lock_guard lock(mutex_);
      for (const Queued& q : queue_)
        if (which(q)) dropped.push_back(q);
      std::erase_if(queue_, which);
    }
    idle_.notify_all();
    for (const Queued& q : dropped)
      complete(q.request->host_request, q.attempt, q.first, q.count, status, 0);
  }

  template <typename Condition>
  bool waitWhile(Condition condition, uint64_t deadline) {
    std::unique_lock lock(mutex_);
    while (condition()) {
      if (nowNs() >= deadline) return false;
      idle_.wait_for(lock, std::chrono::milliseconds(1));
    }
    return true;
  }

  const std::set<std::string> modes_;
  std::set<std::string> fail_;
  const std::set<std::string> throw_;
  const uint64_t delay_ns_, connect_ns_;
  uint64_t number_ = 0;
  std::string info_;

  std::mutex mutex_;  // of all below; taken after the directory's
  std::condition_variable idle_;
  std::deque<Queued> queue_;
  std::deque<Late> late_;
  std::vector<Peer*> peers_;
  std::set<const Region*> regions_;
  std::map<const void*, std::string> keys_;
  std::string held_;
  bool busy_ = false;
  const Peer* busy_peer_ = nullptr;
};

// ---- the table: nixl/backend.h's, with a guard in front of each call that does not guard --------

Hostile& self(void* engine) {
  return static_cast<Hostile&>(*static_cast<nixl::BackendEngine*>(engine));
}

// What a failure may look like: no NUL at the end, no text at all, a number that means nothing.
int32_t fail(nixl_error* err, bool garbled) {
  if (garbled) {
    std::memset(err->text, 0xEE, err->capacity);
    return -12345;
  }
  std::snprintf(err->text, err->capacity, "it was asked to fail once");
  return static_cast<int32_t>(Errc::BACKEND);
}

#define CALL(name, ...)                                                                       \
  table.name = [](void* e, auto... args) -> int32_t {                                         \
    if (self(e).fails(#name))                                                                 \
      return fail(std::get<sizeof...(args) - 1>(std::tuple(args...)), self(e).is("garbled")); \
    return nixl::BackendGlue::ops()->name(e, args...);                                        \
  }

const nixl_engine_ops* ops() {
  static const nixl_engine_ops table = [] {
    nixl_engine_ops table = *nixl::BackendGlue::ops();
    CALL(shutdown);
    CALL(local_info);
    CALL(connect);
    CALL(register_memory);
    CALL(public_key);
    CALL(deregister);
    CALL(load);
    CALL(prepare);
    CALL(post);
    CALL(cancel);
    CALL(quiesce);
    CALL(notify);
    table.progress = [](void* e, uint64_t budget) {
      if (self(e).fails("progress")) return int64_t{-1};
      return nixl::BackendGlue::ops()->progress(e, budget);
    };
    table.arm = [](void* e) {
      if (self(e).fails("arm")) return int32_t{-3};
      return nixl::BackendGlue::ops()->arm(e);
    };
    table.release = [](void* e, void* request) {
      nixl::BackendGlue::ops()->release(e, request);
      self(e).fails("release");
    };
    table.disconnect = [](void* e, void* peer) {
      nixl::BackendGlue::ops()->disconnect(e, peer);
      self(e).fails("disconnect");
    };
    return table;
  }();
  return &table;
}

int32_t create(const nixl_engine_args* args, void** engine, const nixl_engine_ops** table,
               nixl_error* err) {
  const int32_t code = nixl::BackendGlue::create<Hostile>(args, engine, table, err);
  if (code < 0) return code;
  if (self(*engine).fails("create")) {
    nixl::BackendGlue::ops()->destroy(*engine);
    return fail(err, false);
  }
  *table = ops();
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const nixl_plugin* nixl_backend_init(uint32_t) {
  static const nixl_plugin plugin = [] {
    nixl_plugin p{};
    p.struct_size = sizeof p;
    p.abi_version = NIXL_PLUGIN_ABI_VERSION;
    p.name = "HOSTILE";
    p.version = "1.0";
    p.summary = "misbehaves as it is told; for tests";
    p.options = kOptions;
    p.facts = &kFacts;
    p.create = &create;
    return p;
  }();
  return &plugin;
}
