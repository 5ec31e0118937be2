// core/backend.h - an engine of one agent, and what is registered with it.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "core/registry.h"
#include "nixl/agent.h"
#include "nixl/plugin_abi.h"
#include "plugin/engine.h"

namespace nixl::core {

class AgentCore;

// Made once, lives as long as the agent. Everything but the registry is constant.
struct Backend {
  AgentCore* agent = nullptr;
  std::string name;
  Params params;
  const nixl_plugin* plugin = nullptr;
  nixl_host host{};  // what the engine calls; its context is this object
  std::shared_ptr<plugin::Engine> engine;
  std::string connection;  // for peers; "" when it has none
  Registry registry;

  bool has(nixl_engine_flags flag) const { return engine->has(flag); }
  bool takes(MemType type) const { return engine->supports(type); }
};

// Engines by position of creation; at most this many in an agent.
inline constexpr size_t kMaxBackends = 32;

}  // namespace nixl::core
