// plugin/inspect.h - plugins tried out, each in a process of its own: whatever one does there, this
// process goes on.
#pragma once

#include <chrono>
#include <vector>

#include "nixl/agent.h"
#include "plugin/manager.h"

namespace nixl::plugin {

// Every plugin of `manager`, sorted by name: a child process loads it, asks whether it can run
// here, and lets it try out what its engines need. One that crashes, or has not answered after
// `each`, is not usable, and the sentence says so. All are tried at once.
//
// Threads: any. The children are made by fork() and call no code but the plugin's and ours.
std::vector<PluginReport> inspectAll(Manager& manager, std::chrono::milliseconds each);

}  // namespace nixl::plugin
