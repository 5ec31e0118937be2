// nixl/backend.h - for authors of engines: a C++ class and one macro give a whole plugin.
//
//   class Mine final : public nixl::BackendEngine { ... };
//   NIXL_BACKEND(Mine, kFacts, whyUnusable)
//
// The functions below hide nixl/plugin_abi.h; read its rules (threads, callbacks, ownership): they
// hold here too. A method reports failure by throwing nixl::BackendFailure or returning a negative
// code after fail(); anything else thrown becomes BACKEND with its what(). plugins/loopback is the
// smallest whole example.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/plugin_abi.h"
#include "nixl/types.h"

namespace nixl {

// Thrown by engines: a code, a sentence, and the vendor library's own number.
class BackendFailure : public std::exception {
 public:
  BackendFailure(Errc code, std::string text, int native = 0)
      : code_(code), native_(native), text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }
  Errc code() const noexcept { return code_; }
  int native() const noexcept { return native_; }

 private:
  Errc code_;
  int native_;
  std::string text_;
};

// What an engine is given when it is made. Copies; nothing refers to the caller's memory.
struct BackendArgs {
  const nixl_host* host = nullptr;  // outlives the engine
  std::string agent;
  std::map<std::string, std::string> options;
  bool progress_thread = true;
  unsigned threads_wanted = 0;

  std::string option(const std::string& name, const std::string& fallback = {}) const {
    auto found = options.find(name);
    return found == options.end() ? fallback : found->second;
  }
};

// Facts with every field that an author may leave at its usual value.
inline nixl_facts backendFacts(std::initializer_list<MemType> mems, uint32_t flags,
                               uint32_t fence = NIXL_FENCE_NONE) {
  nixl_facts facts{};
  facts.struct_size = sizeof facts;
  for (MemType mem : mems) facts.memory_kinds |= 1u << static_cast<unsigned>(mem);
  facts.flags = flags;
  facts.fence = fence;
  facts.alignment = 1;
  return facts;
}

// The base class of engines. Every method has a default: what an engine does not override it
// cannot do, and its facts must say so.
//
// Threads: see plugin_abi.h. Lifetime: made by create(), shutDown() is called once, then deleted.
class BackendEngine {
 public:
  explicit BackendEngine(const BackendArgs& args, const nixl_facts& facts)
      : host_(args.host), agent_(args.agent), facts_(facts) {}
  virtual ~BackendEngine() = default;
  BackendEngine(const BackendEngine&) = delete;
  BackendEngine& operator=(const BackendEngine&) = delete;

  // The capabilities by the names that the documentation uses; derived from the facts.
  std::vector<MemType> getSupportedMems() const {
    std::vector<MemType> mems;
    for (unsigned i = 0; i < kMemTypes; ++i)
      if (facts_.memory_kinds >> i & 1u) mems.push_back(static_cast<MemType>(i));
    return mems;
  }
  bool supportsLocal() const { return facts_.flags & NIXL_ENGINE_LOCAL; }
  bool supportsRemote() const { return facts_.flags & NIXL_ENGINE_REMOTE; }
  bool supportsNotif() const { return facts_.flags & NIXL_ENGINE_NOTIF; }
  const nixl_facts& facts() const { return facts_; }

  // Life.
  virtual int32_t shutDown(uint64_t /*deadline_ns*/) { return 0; }
  virtual void afterFork() {}

  // Connections. `peer` values are the engine's own.
  virtual std::string_view localInfo() { return {}; }
  virtual void* connect(std::string_view /*name*/, std::string_view /*info*/, void* /*host_peer*/) {
    throw BackendFailure(Errc::NOT_SUPPORTED, "this engine has no peers");
  }
  virtual void disconnect(void* /*peer*/) {}

  // Memory. registerMemory() fills handles[0..count), all or none.
  virtual void registerMemory(const nixl_region* regions, uint64_t count, void** handles) {
    (void)regions;
    for (uint64_t i = 0; i < count; ++i) handles[i] = this;
  }
  virtual std::string_view publicKey(void* /*region*/) { return {}; }
  virtual int32_t deregister(void* const* /*regions*/, uint64_t /*count*/,
                             uint64_t /*deadline_ns*/) {
    return 0;
  }
  virtual void* load(void* /*peer*/, MemType /*kind*/, std::string_view /*key*/) { return this; }
  virtual void unload(void* /*remote*/) {}
  // Memory that the engine likes best: pinned, a device's. Not registered by that. It goes with the
  // engine at the latest.
  virtual void* allocate(MemType /*kind*/, uint64_t /*device*/, uint64_t /*size*/) {
    throw BackendFailure(Errc::NOT_SUPPORTED, "this engine allocates no memory");
  }
  virtual void freeMemory(void* /*address*/) {}

  // Requests. prepare() must be cheap; the plan stays valid until release().
  virtual void* prepare(const nixl_plan& plan, void* host_request) = 0;
  virtual int32_t post(void* request, const nixl_post& post) = 0;
  virtual int32_t cancel(void* /*request*/) { return 1; }
  virtual void release(void* request) = 0;
  virtual int32_t quiesce(void* /*region*/, void* /*peer*/, uint64_t /*deadline_ns*/) {
    return fail(Errc::NOT_QUIESCED, "this engine cannot fence its peers");
  }

  virtual int32_t notify(void* /*peer*/, std::string_view /*bytes*/) {
    throw BackendFailure(Errc::NOT_SUPPORTED, "this engine sends no notifications");
  }
  virtual void storage(nixl_storage_verb /*verb*/, const nixl_region* /*regions*/,
                       uint64_t /*count*/, nixl_storage_emit /*emit*/, void* /*context*/) {
    throw BackendFailure(Errc::NOT_SUPPORTED, "this engine has no storage verbs");
  }
  virtual void cost(void* /*peer*/, const nixl_plan_summary& /*plan*/, nixl_cost& out) {
    (void)out;
    throw BackendFailure(Errc::NOT_SUPPORTED, "this engine does not predict costs");
  }

  // Progress.
  virtual int64_t progress(uint64_t /*budget_ns*/) { return 0; }
  virtual int32_t arm() { return 0; }
  virtual uint32_t waitFds(int32_t* /*fds*/, uint32_t /*capacity*/) { return 0; }
  virtual uint64_t nextTimer() { return NIXL_NEVER; }
  virtual const void* extension(std::string_view /*name*/) { return nullptr; }

 protected:
  // Reports to the library; see nixl_host for when.
  void complete(void* host_request, uint64_t attempt, uint64_t first, uint64_t count, Errc status,
                uint64_t bytes, int32_t native = 0, const char* text = nullptr) const {
    host_->on_complete(host_request, attempt, first, count, static_cast<int32_t>(status), bytes,
                       native, text);
  }
  void deliver(std::string_view message) const {
    host_->on_notification(host_->context, message.data(), message.size());
  }
  void peerState(void* host_peer, nixl_peer_state state, Errc status, const char* reason) const {
    host_->on_peer(host_peer, state, static_cast<int32_t>(status), reason);
  }
  void wake() const { host_->wake(host_->context); }
  void count(const char* counter, int64_t delta = 1) const {
    host_->count(host_->context, counter, delta);
  }
  void log(nixl_log_level level, const char* file, int line, const char* format, ...) const
      __attribute__((format(printf, 5, 6))) {
    char text[1024];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    host_->log(host_->context, level, file, line, text);
  }

  // `return fail(Errc::BACKEND, "...")`: for hot paths that should not throw.
  int32_t fail(Errc code, std::string text, int native = 0) const {
    lastFailure() = {std::move(text), native};
    return static_cast<int32_t>(code);
  }

  const nixl_host* host_;
  const std::string agent_;
  nixl_facts facts_;

 private:
  friend struct BackendGlue;
  struct Failure {
    std::string text;
    int native = 0;
  };
  static Failure& lastFailure() {
    thread_local Failure failure;
    return failure;
  }
};

// The C side, written once. Users of this header need not look at it.
struct BackendGlue {
  static int32_t write(nixl_error* err, int32_t code, const char* text, int native) {
    if (err != nullptr) {
      err->native_code = native;
      if (err->text != nullptr && err->capacity > 0)
        std::snprintf(err->text, err->capacity, "%s", text);
    }
    return code;
  }

  // Runs `body`, which returns a code, and turns whatever comes out of it into a code and text.
  template <typename Body>
  static int32_t guard(nixl_error* err, Body&& body) noexcept {
    try {
      const int32_t code = body();
      if (code < 0) {
        auto& failure = BackendEngine::lastFailure();
        write(err, code, failure.text.c_str(), failure.native);
        failure = {};
      }
      return code;
    } catch (const BackendFailure& failure) {
      return write(err, static_cast<int32_t>(failure.code()), failure.what(), failure.native());
    } catch (const std::exception& error) {
      return write(err, static_cast<int32_t>(Errc::BACKEND), error.what(), 0);
    } catch (...) {
      return write(err, static_cast<int32_t>(Errc::BACKEND), "unknown exception in the engine", 0);
    }
  }

  static BackendEngine& self(void* engine) { return *static_cast<BackendEngine*>(engine); }
  static std::string_view view(const void* bytes, size_t size) {
    return {static_cast<const char*>(bytes), size};
  }

  static const nixl_engine_ops* ops() {
    static const nixl_engine_ops table = make();
    return &table;
  }

  static nixl_engine_ops make() {
    nixl_engine_ops o{};
    o.struct_size = sizeof o;
    o.facts = [](void* e, nixl_facts* out) {
      nixl_facts facts = self(e).facts();
      const uint32_t room = out->struct_size;
      facts.struct_size = static_cast<uint32_t>(sizeof facts);
      std::memcpy(out, &facts, room < sizeof facts ? room : sizeof facts);
    };
    o.shutdown = [](void* e, uint64_t deadline, nixl_error* err) {
      return guard(err, [&] { return self(e).shutDown(deadline); });
    };
    o.destroy = [](void* e) { delete &self(e); };
    o.after_fork = [](void* e) { guard(nullptr, [&] { return self(e).afterFork(), 0; }); };
    o.local_info = [](void* e, const void** bytes, size_t* size, nixl_error* err) {
      return guard(err, [&] {
        const std::string_view info = self(e).localInfo();
        *bytes = info.data();
        *size = info.size();
        return 0;
      });
    };
    o.connect = [](void* e, const char* name, size_t name_size, const void* info, size_t info_size,
                   void* host_peer, void** peer, nixl_error* err) {
      return guard(err, [&] {
        *peer = self(e).connect({name, name_size}, view(info, info_size), host_peer);
        return 0;
      });
    };
    o.disconnect = [](void* e, void* peer) {
      guard(nullptr, [&] { return self(e).disconnect(peer), 0; });
    };
    o.register_memory = [](void* e, const nixl_region* regions, uint64_t count, void** handles,
                           nixl_error* err) {
      return guard(err, [&] { return self(e).registerMemory(regions, count, handles), 0; });
    };
    o.public_key = [](void* e, void* region, const void** bytes, size_t* size, nixl_error* err) {
      return guard(err, [&] {
        const std::string_view key = self(e).publicKey(region);
        *bytes = key.data();
        *size = key.size();
        return 0;
      });
    };
    o.deregister = [](void* e, void* const* regions, uint64_t count, uint64_t deadline,
                      nixl_error* err) {
      return guard(err, [&] { return self(e).deregister(regions, count, deadline); });
    };
    o.load = [](void* e, void* peer, uint32_t kind, const void* key, size_t key_size, void** remote,
                nixl_error* err) {
      return guard(err, [&] {
        *remote = self(e).load(peer, static_cast<MemType>(kind), view(key, key_size));
        return 0;
      });
    };
    o.unload = [](void* e, void* remote) {
      guard(nullptr, [&] { return self(e).unload(remote), 0; });
    };
    o.allocate = [](void* e, uint32_t kind, uint64_t device, uint64_t size, void** address,
                    nixl_error* err) {
      return guard(err, [&] {
        *address = self(e).allocate(static_cast<MemType>(kind), device, size);
        return 0;
      });
    };
    o.free_memory = [](void* e, void* address) {
      guard(nullptr, [&] { return self(e).freeMemory(address), 0; });
    };
    o.prepare = [](void* e, const nixl_plan* plan, void* host_request, void** request,
                   nixl_error* err) {
      return guard(err, [&] { return *request = self(e).prepare(*plan, host_request), 0; });
    };
    o.post = [](void* e, void* request, const nixl_post* post, nixl_error* err) {
      return guard(err, [&] { return self(e).post(request, *post); });
    };
    o.cancel = [](void* e, void* request, nixl_error* err) {
      return guard(err, [&] { return self(e).cancel(request); });
    };
    o.release = [](void* e, void* request) {
      guard(nullptr, [&] { return self(e).release(request), 0; });
    };
    o.quiesce = [](void* e, void* region, void* peer, uint64_t deadline, nixl_error* err) {
      return guard(err, [&] { return self(e).quiesce(region, peer, deadline); });
    };
    o.notify = [](void* e, void* peer, const void* bytes, size_t size, nixl_error* err) {
      return guard(err, [&] { return self(e).notify(peer, view(bytes, size)); });
    };
    o.storage = [](void* e, uint32_t verb, const nixl_region* regions, uint64_t count,
                   nixl_storage_emit emit, void* context, nixl_error* err) {
      return guard(err, [&] {
        self(e).storage(static_cast<nixl_storage_verb>(verb), regions, count, emit, context);
        return 0;
      });
    };
    o.cost = [](void* e, void* peer, const nixl_plan_summary* plan, nixl_cost* out,
                nixl_error* err) {
      return guard(err, [&] { return self(e).cost(peer, *plan, *out), 0; });
    };
    o.progress = [](void* e, uint64_t budget) {
      int64_t amount = 0;
      guard(nullptr, [&] { return amount = self(e).progress(budget), 0; });
      return amount;
    };
    o.arm = [](void* e) { return guard(nullptr, [&] { return self(e).arm(); }); };
    o.wait_fds = [](void* e, int32_t* fds, uint32_t capacity) {
      uint32_t count = 0;
      guard(nullptr, [&] { return count = self(e).waitFds(fds, capacity), 0; });
      return count;
    };
    o.next_timer = [](void* e) {
      uint64_t timer = NIXL_NEVER;
      guard(nullptr, [&] { return timer = self(e).nextTimer(), 0; });
      return timer;
    };
    o.extension = [](void* e, const char* name) {
      const void* found = nullptr;
      guard(nullptr, [&] { return found = self(e).extension(name), 0; });
      return found;
    };
    return o;
  }

  template <typename Engine>
  static int32_t create(const nixl_engine_args* args, void** engine, const nixl_engine_ops** table,
                        nixl_error* err) {
    return guard(err, [&] {
      BackendArgs given;
      given.host = args->host;
      given.agent.assign(args->agent, args->agent_size);
      for (uint32_t i = 0; i < args->option_count; ++i)
        given.options[args->option_names[i]] = args->option_values[i];
      given.progress_thread = args->progress_thread != 0;
      given.threads_wanted = args->threads_wanted;
      std::unique_ptr<BackendEngine> made = std::make_unique<Engine>(given);
      *table = ops();
      *engine = made.release();
      return 0;
    });
  }
};

// Where an inspect function puts what it finds: tell("library", "/usr/lib/libfoo.so.1 (1.2)").
class Findings {
 public:
  Findings(nixl_inspect_emit emit, void* context) : emit_(emit), context_(context) {}
  void operator()(const std::string& what, const std::string& value) const {
    emit_(context_, what.c_str(), value.c_str());
  }

 private:
  nixl_inspect_emit emit_;
  void* context_;
};

// What a plugin says of itself.
struct BackendDescription {
  const char* name;
  const char* version;
  const char* summary;
  const nixl_option* options;  // ends with {nullptr, nullptr, nullptr}
  nixl_facts facts;
  const nixl_option* variables = nullptr;  // of the environment; ends like `options`
  // Tries out what an engine needs, in a process of its own; throws BackendFailure where an engine
  // could not be made. See nixl_plugin::inspect.
  void (*inspect)(const Findings& tell) = nullptr;
};

}  // namespace nixl

// Engines that are linked into the library get a symbol of their own from the build.
#ifndef NIXL_BACKEND_INIT
#define NIXL_BACKEND_INIT nixl_backend_init
#endif

// Defines the exported symbol. Engine(const nixl::BackendArgs&) makes an engine or throws;
// `description` is a nixl::BackendDescription; `why()` returns "" or why it cannot run here.
#define NIXL_BACKEND(Engine, description, why)                                                    \
  extern "C" __attribute__((visibility("default"))) const nixl_plugin* NIXL_BACKEND_INIT(         \
      uint32_t /*host_abi*/) {                                                                    \
    static const nixl_plugin plugin = [] {                                                        \
      static const ::nixl::BackendDescription d = (description);                                  \
      nixl_plugin p{};                                                                            \
      p.struct_size = sizeof p;                                                                   \
      p.abi_version = NIXL_PLUGIN_ABI_VERSION;                                                    \
      p.name = d.name;                                                                            \
      p.version = d.version;                                                                      \
      p.summary = d.summary;                                                                      \
      p.options = d.options;                                                                      \
      p.facts = &d.facts;                                                                         \
      p.why_unusable = [](nixl_error* err) -> int32_t {                                           \
        return ::nixl::BackendGlue::guard(err, [&]() -> int32_t {                                 \
          const std::string reason = (why)();                                                     \
          if (reason.empty()) return 0;                                                           \
          throw ::nixl::BackendFailure(::nixl::Errc::NOT_FOUND, reason);                          \
        });                                                                                       \
      };                                                                                          \
      p.create = &::nixl::BackendGlue::create<Engine>;                                            \
      p.variables = d.variables;                                                                  \
      if (d.inspect != nullptr)                                                                   \
        p.inspect = [](nixl_inspect_emit emit, void* context, nixl_error* err) -> int32_t {       \
          return ::nixl::BackendGlue::guard(                                                      \
              err, [&]() -> int32_t { return d.inspect(::nixl::Findings(emit, context)), 0; });   \
        };                                                                                        \
      return p;                                                                                   \
    }();                                                                                          \
    return &plugin;                                                                               \
  }
