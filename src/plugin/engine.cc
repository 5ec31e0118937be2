#include "plugin/engine.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <utility>

#include "base/fork.h"
#include "base/log.h"
#include "plugin/error_text.h"

namespace nixl::plugin {

namespace {

constexpr std::chrono::seconds kLastShutDown{1};
constexpr uint32_t kMostWaitFds = 1024;  // an engine that claims more is not believed

// The table as we know it: what an older one lacks is null, what a newer one adds is left out.
nixl_engine_ops copyOf(const nixl_engine_ops& theirs) {
  nixl_engine_ops ours{};
  std::memcpy(&ours, &theirs, std::min<size_t>(theirs.struct_size, sizeof ours));
  return ours;
}

nixl_facts copyOf(const nixl_facts& theirs) {
  nixl_facts ours{};
  std::memcpy(&ours, &theirs, std::min<size_t>(theirs.struct_size, sizeof ours));
  return ours;
}

std::string_view view(const void* bytes, size_t size) {
  return {static_cast<const char*>(bytes), size};
}

Status onlyStatus(Result<int32_t> result) { return result.status(); }

}  // namespace

nixl_facts factsOf(const nixl_plugin& plugin) {
  return plugin.facts != nullptr ? copyOf(*plugin.facts) : nixl_facts{};
}

// ---- calling ------------------------------------------------------------------------------------

std::unique_lock<std::recursive_mutex> Engine::turn() {
  return serial_ ? std::unique_lock(turn_) : std::unique_lock<std::recursive_mutex>();
}

bool Engine::forked() const { return base::forkGeneration() != fork_generation_; }

std::string Engine::calling(const char* call) const { return "engine " + name_ + ": " + call; }

template <typename Function, typename... Args>
Result<int32_t> Engine::ask(const char* call, Function function, Args... args) {
  if (function == nullptr)
    return Status(Errc::NOT_SUPPORTED, "this engine cannot do that").within(calling(call));
  ErrorText error;
  auto lock = turn();
  try {
    const int32_t code = function(engine_, args..., error.raw());
    if (code >= 0) return code;
    return error.status(calling(call), code);
  } catch (...) {
    return thrownStatus(calling(call));
  }
}

template <typename T, typename Function, typename... Args>
T Engine::tell(const char* call, T fallback, Function function, Args... args) {
  if (function == nullptr) return fallback;
  auto lock = turn();
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<Function, void*, Args...>>)
      function(engine_, args...);
    else
      return function(engine_, args...);
  } catch (...) {
    NIXL_LOG_ERROR_EVERY(10, "{}", thrownStatus(calling(call)).message());
  }
  return fallback;
}

// ---- life ---------------------------------------------------------------------------------------

Result<std::shared_ptr<Engine>> Engine::create(const nixl_plugin* plugin, const CreateArgs& args) {
  const std::string what = "engine " + std::string(plugin->name) + ": create";
  std::vector<const char*> names;
  std::vector<const char*> values;
  for (const auto& [name, value] : args.options) {
    names.push_back(name.c_str());
    values.push_back(value.c_str());
  }
  nixl_engine_args raw{};
  raw.struct_size = sizeof raw;
  raw.option_count = static_cast<uint32_t>(names.size());
  raw.host = args.host;
  raw.agent = args.agent.data();
  raw.agent_size = args.agent.size();
  raw.option_names = names.data();
  raw.option_values = values.data();
  raw.progress_thread = args.progress_thread ? 1 : 0;
  raw.threads_wanted = args.threads_wanted;

  void* engine = nullptr;
  const nixl_engine_ops* ops = nullptr;
  ErrorText error;
  try {
    const int32_t code = plugin->create(&raw, &engine, &ops, error.raw());
    if (code < 0) return error.status(what, code);
  } catch (...) {
    return thrownStatus(what);
  }
  if (engine == nullptr || ops == nullptr || !NIXL_ABI_HAS(ops, nixl_engine_ops, destroy) ||
      ops->destroy == nullptr)
    return Status(Errc::BACKEND, "it gave no engine, or a table without destroy()").within(what);

  std::shared_ptr<Engine> made(new Engine(*plugin, engine, copyOf(*ops)));
  if (made->ops_.facts != nullptr) {
    nixl_facts facts{};
    facts.struct_size = sizeof facts;
    try {
      made->ops_.facts(engine, &facts);
    } catch (...) {
      return thrownStatus(made->calling("facts"));
    }
    made->facts_ = copyOf(facts);
  }
  made->facts_.alignment = std::max<uint64_t>(made->facts_.alignment, 1);
  made->serial_ = made->has(NIXL_ENGINE_SERIAL);
  return made;
}

Engine::Engine(const nixl_plugin& plugin, void* engine, const nixl_engine_ops& ops)
    : plugin_(plugin),
      name_(plugin.name),
      engine_(engine),
      ops_(ops),
      facts_(factsOf(plugin)),
      fork_generation_(base::forkGeneration()) {}

Engine::~Engine() {
  if (forked()) return;
  const Status ended = shutDown(base::Deadline::after(kLastShutDown));
  if (!ended.ok()) NIXL_LOG_WARN("{}", ended.message());
  tell("destroy", 0, ops_.destroy);
}

Status Engine::shutDown(base::Deadline deadline) {
  if (forked() || shut_down_.exchange(true) || ops_.shutdown == nullptr) return {};
  return onlyStatus(ask("shutdown", ops_.shutdown, deadline.ns()));
}

void Engine::afterFork() {
  // Without a turn: the thread that has it may not exist any more.
  if (ops_.after_fork == nullptr) return;
  try {
    ops_.after_fork(engine_);
  } catch (...) {
    NIXL_LOG_ERROR("{}", thrownStatus(calling("after_fork")).message());
  }
}

// ---- connections --------------------------------------------------------------------------------

Result<std::string_view> Engine::localInfo() {
  const void* bytes = nullptr;
  size_t size = 0;
  if (ops_.local_info == nullptr) return std::string_view();
  NIXL_TRY(onlyStatus(ask("local_info", ops_.local_info, &bytes, &size)));
  return bytes == nullptr ? std::string_view() : view(bytes, size);
}

Result<void*> Engine::connect(std::string_view name, std::string_view info, void* host_peer) {
  void* peer = nullptr;
  NIXL_TRY(onlyStatus(ask("connect", ops_.connect, name.data(), name.size(), info.data(),
                          info.size(), host_peer, &peer)));
  // A null peer stands for the agent itself everywhere else.
  if (peer == nullptr) return Status(Errc::BACKEND, "it gave no peer").within(calling("connect"));
  return peer;
}

void Engine::disconnect(void* peer) { tell("disconnect", 0, ops_.disconnect, peer); }

// ---- memory -------------------------------------------------------------------------------------

Status Engine::registerMemory(std::span<const nixl_region> regions, std::span<void*> handles) {
  assert(regions.size() == handles.size());
  return onlyStatus(ask("register_memory", ops_.register_memory, regions.data(),
                        uint64_t{regions.size()}, handles.data()));
}

Result<std::string_view> Engine::publicKey(void* region) {
  const void* bytes = nullptr;
  size_t size = 0;
  if (ops_.public_key == nullptr) return std::string_view();
  NIXL_TRY(onlyStatus(ask("public_key", ops_.public_key, region, &bytes, &size)));
  return bytes == nullptr ? std::string_view() : view(bytes, size);
}

Result<int32_t> Engine::deregister(std::span<void* const> regions, base::Deadline deadline) {
  return ask("deregister", ops_.deregister, regions.data(), uint64_t{regions.size()},
             deadline.ns());
}

Result<void*> Engine::load(void* peer, MemType kind, std::string_view key) {
  void* remote = nullptr;
  NIXL_TRY(onlyStatus(ask("load", ops_.load, peer, static_cast<uint32_t>(kind),
                          static_cast<const void*>(key.data()), key.size(), &remote)));
  return remote;
}

void Engine::unload(void* remote) { tell("unload", 0, ops_.unload, remote); }

Result<void*> Engine::allocate(MemType kind, uint64_t device, uint64_t size) {
  void* address = nullptr;
  NIXL_TRY(onlyStatus(
      ask("allocate", ops_.allocate, static_cast<uint32_t>(kind), device, size, &address)));
  if (address == nullptr)
    return Status(Errc::BACKEND, "it gave no memory").within(calling("allocate"));
  return address;
}

void Engine::freeMemory(void* address) { tell("free_memory", 0, ops_.free_memory, address); }

// ---- requests -----------------------------------------------------------------------------------

Result<void*> Engine::prepare(const nixl_plan& plan, void* host_request) {
  void* request = nullptr;
  NIXL_TRY(onlyStatus(ask("prepare", ops_.prepare, &plan, host_request, &request)));
  return request;
}

Result<int32_t> Engine::post(void* request, const nixl_post& post) {
  return ask("post", ops_.post, request, &post);
}

Result<int32_t> Engine::cancel(void* request) {
  // Who cannot cancel lets it run to its end, which is reported.
  if (ops_.cancel == nullptr) return 1;
  return ask("cancel", ops_.cancel, request);
}

void Engine::release(void* request) { tell("release", 0, ops_.release, request); }

Status Engine::quiesce(void* region, void* peer, base::Deadline deadline) {
  return onlyStatus(ask("quiesce", ops_.quiesce, region, peer, deadline.ns()));
}

Status Engine::notify(void* peer, std::string_view bytes) {
  return onlyStatus(
      ask("notify", ops_.notify, peer, static_cast<const void*>(bytes.data()), bytes.size()));
}

// ---- storage, costs -----------------------------------------------------------------------------

Status Engine::storage(nixl_storage_verb verb, std::span<const nixl_region> regions,
                       const Emit& emit) {
  struct Context {
    const Emit& emit;
    uint64_t count;
    bool out_of_range = false;
    std::exception_ptr thrown;  // by emit: carried past the engine, which is plain C
  } context{emit, regions.size(), false, nullptr};
  const nixl_storage_emit trampoline = [](void* raw, uint64_t index, const char* key,
                                          const char* value) {
    auto& c = *static_cast<Context*>(raw);
    if (index >= c.count) {
      c.out_of_range = true;
      return;
    }
    try {
      if (!c.thrown)
        c.emit(index, key ? readable(key) : std::string(), value ? readable(value) : std::string());
    } catch (...) {
      c.thrown = std::current_exception();
    }
  };
  const Status status =
      onlyStatus(ask("storage", ops_.storage, static_cast<uint32_t>(verb), regions.data(),
                     uint64_t{regions.size()}, trampoline, static_cast<void*>(&context)));
  if (context.thrown) std::rethrow_exception(context.thrown);
  if (status.ok() && context.out_of_range)
    return Status(Errc::BACKEND, "it answered for something that was not asked")
        .within(calling("storage"));
  return status;
}

Result<nixl_cost> Engine::cost(void* peer, const nixl_plan_summary& plan) {
  nixl_cost cost{};
  cost.struct_size = sizeof cost;
  NIXL_TRY(onlyStatus(ask("cost", ops_.cost, peer, &plan, &cost)));
  for (double number : {cost.ns_fixed, cost.ns_per_piece, cost.bytes_per_second})
    if (!std::isfinite(number) || number < 0)
      return Status(Errc::BACKEND, "it gave a number that is none").within(calling("cost"));
  cost.why[sizeof cost.why - 1] = '\0';
  return cost;
}

// ---- progress -----------------------------------------------------------------------------------

int64_t Engine::progress(uint64_t budget_ns) {
  return std::max<int64_t>(tell("progress", int64_t{0}, ops_.progress, budget_ns), 0);
}

int32_t Engine::arm() {
  if (ops_.arm == nullptr) return 0;
  return tell("arm", 1, ops_.arm) == 0 ? 0 : 1;
}

std::vector<int> Engine::waitFds() {
  std::vector<int> fds(4);
  while (true) {
    const auto capacity = static_cast<uint32_t>(fds.size());
    const uint32_t count =
        std::min(tell("wait_fds", uint32_t{0}, ops_.wait_fds, fds.data(), capacity), kMostWaitFds);
    fds.resize(count);
    if (count <= capacity) return fds;
  }
}

uint64_t Engine::nextTimer() { return tell("next_timer", NIXL_NEVER, ops_.next_timer); }

const void* Engine::extension(const char* name) {
  return tell("extension", static_cast<const void*>(nullptr), ops_.extension, name);
}

}  // namespace nixl::plugin
