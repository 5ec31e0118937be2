// plugin/engine.h - an engine as the core sees it: typed calls, and errors that are sentences.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "nixl/agent.h"
#include "nixl/plugin_abi.h"

namespace nixl::plugin {

struct CreateArgs {
  const nixl_host* host = nullptr;  // outlives the engine
  std::string agent;
  Params options;
  bool progress_thread = true;
  unsigned threads_wanted = 0;
};

// What a plugin says before an engine exists. Its table may be older, and shorter, than ours: what it
// lacks is zero.
nixl_facts factsOf(const nixl_plugin& plugin);

// One engine of one agent, through the table that its plugin gave. What the calls mean, block and
// report is written at nixl_engine_ops; this adds:
//
// Errors:   "engine NAME: <call>: <its own words>" with the code it returned; BACKEND for numbers
//           that mean nothing. What it cannot do (a null in its table) is NOT_SUPPORTED. An
//           exception out of it is BACKEND, not the end of the process.
// Threads:  as the engine's rules say. The calls into a NIXL_ENGINE_SERIAL engine take turns, on a
//           lock that may be taken again by a host function that one of them called.
// Cost:     one indirect call, and no allocation unless it fails.
// Lifetime: the last owner destroys it, after at most 1 s of shutting it down if nobody has. In a
//           child after fork() it is never destroyed: its threads and connections are not there.
class Engine {
 public:
  // `plugin` is a checked table, as Manager::load() gives it.
  static Result<std::shared_ptr<Engine>> create(const nixl_plugin* plugin, const CreateArgs& args);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const std::string& name() const { return name_; }
  // What an error of that call begins with: "engine NAME: CALL".
  std::string calling(const char* call) const;
  const nixl_plugin& plugin() const { return plugin_; }

  // Asked for once, when it was made.
  const nixl_facts& facts() const { return facts_; }
  bool has(nixl_engine_flags flag) const { return (facts_.flags & flag) != 0; }
  bool local() const { return has(NIXL_ENGINE_LOCAL); }
  bool remote() const { return has(NIXL_ENGINE_REMOTE); }
  bool notifies() const { return has(NIXL_ENGINE_NOTIF) && ops_.notify != nullptr; }
  bool queries() const { return has(NIXL_ENGINE_QUERY) && ops_.storage != nullptr; }
  bool supports(MemType kind) const {
    return (facts_.memory_kinds >> static_cast<unsigned>(kind) & 1u) != 0;
  }

  // Life. The first shutDown() counts; later ones return OK. One in a child after fork() too.
  Status shutDown(base::Deadline deadline);
  void afterFork();

  // Connections. The bytes stay the engine's and valid. connect() never gives a null peer.
  Result<std::string_view> localInfo();
  Result<void*> connect(std::string_view name, std::string_view info, void* host_peer);
  void disconnect(void* peer);

  // Memory. handles[i] belongs to regions[i]; the spans are equally long. deregister(): 0, or 1
  // when it ends later.
  Status registerMemory(std::span<const nixl_region> regions, std::span<void*> handles);
  Result<std::string_view> publicKey(void* region);
  Result<int32_t> deregister(std::span<void* const> regions, base::Deadline deadline);
  Result<void*> load(void* peer, MemType kind, std::string_view key);
  void unload(void* remote);
  Result<void*> allocate(MemType kind, uint64_t device, uint64_t size);
  void freeMemory(void* address);

  // Requests. post(): 0 all done, 1 will be reported. cancel(): 0 nothing in flight, 1 the rest
  // will be reported.
  Result<void*> prepare(const nixl_plan& plan, void* host_request);
  Result<int32_t> post(void* request, const nixl_post& post);
  Result<int32_t> cancel(void* request);
  void release(void* request);

  // Null for any region, any peer.
  Status quiesce(void* region, void* peer, base::Deadline deadline);

  Status notify(void* peer, std::string_view bytes);

  // `emit(index, key, value)` for each fact found; an empty key: it exists, without facts. Keys and
  // values are readable text, valid during the call.
  using Emit = std::function<void(uint64_t index, std::string_view key, std::string_view value)>;
  Status storage(nixl_storage_verb verb, std::span<const nixl_region> regions, const Emit& emit);

  // Finite, non-negative numbers, and a `why` that ends.
  Result<nixl_cost> cost(void* peer, const nixl_plan_summary& plan);

  // Progress. An engine that lacks one of these has nothing to do. arm() is 1 also when the engine
  // fails to arm: who trusts its descriptors then could sleep for ever.
  int64_t progress(uint64_t budget_ns);
  int32_t arm();
  std::vector<int> waitFds();
  uint64_t nextTimer();

  const void* extension(const char* name);

 private:
  Engine(const nixl_plugin& plugin, void* engine, const nixl_engine_ops& ops);

  // The turn of a call into an engine that wants one at a time; otherwise nothing.
  std::unique_lock<std::recursive_mutex> turn();
  bool forked() const;
  // Makes a call that returns a code: that code when it is not negative.
  template <typename Function, typename... Args>
  Result<int32_t> ask(const char* call, Function function, Args... args);
  // Makes a call that returns something else; `fallback` when there is none, or it throws.
  template <typename T, typename Function, typename... Args>
  T tell(const char* call, T fallback, Function function, Args... args);

  const nixl_plugin& plugin_;  // valid for ever
  const std::string name_;
  void* const engine_;
  const nixl_engine_ops ops_;  // null where the engine's table is older and ends before
  nixl_facts facts_{};
  bool serial_ = false;
  const uint64_t fork_generation_;
  std::atomic<bool> shut_down_{false};
  std::recursive_mutex turn_;
};

}  // namespace nixl::plugin
