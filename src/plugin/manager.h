// plugin/manager.h - finds plugins, loads them when they are needed, and says why one cannot be.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "nixl/agent.h"
#include "nixl/plugin_abi.h"
#include "plugin/static_plugins.h"

namespace nixl::plugin {

// Where plugins are looked for.
struct PluginFolder {
  std::string path;
  bool chosen = false;  // by the user, with NIXL_PLUGIN_DIR
};

// All plugins of a process: those linked in, and files libplugin_NAME.so in one folder. The folder
// is read once, by the constructor, and by names alone: nothing is opened before it is asked for.
// What was loaded stays loaded. One linked in hides a file of the same name.
//
// Threads: any. Two threads that ask for one plugin load it once; the second waits.
// Errors:  whatever is wrong with a plugin is a sentence that names it and its file. NOT_FOUND:
//          there is none, or it cannot be loaded; MISMATCH: it is not for this library.
class Manager {
 public:
  // The process's own. Never destroyed: agents of static lifetime outlive everything else.
  static Manager& instance();

  Manager(PluginFolder folder, std::span<const StaticPlugin> linked_in);
  ~Manager();
  Manager(const Manager&) = delete;
  Manager& operator=(const Manager&) = delete;

  // Sorted; without those that are not meant to be listed. Loads nothing.
  std::vector<std::string> names() const;

  // The table of a plugin, checked: its struct reaches to `create`, which is not null, and ABI and
  // name are right. Valid for ever. Names are case-sensitive.
  Result<const nixl_plugin*> load(const std::string& name);

  // The plugin as people see it; `params` are the defaults of its options.
  Result<BackendInfo> info(const std::string& name);

  // Every plugin there is, unlisted ones included, sorted. Loads each and asks whether it can run.
  std::vector<PluginState> states();

  // The same, but nothing is loaded: only names and files are known.
  std::vector<PluginState> found() const;

  // Where it looked, and what it looked for in vain.
  PluginSearch search() const;

 private:
  struct Entry;

  Entry* find(const std::string& name) const;
  Status notFound(const std::string& name) const;

  // Both constant after construction; each entry has a lock of its own.
  PluginFolder folder_;
  std::vector<std::unique_ptr<Entry>> entries_;  // sorted by name
};

// OK, or NOT_FOUND with the plugin's sentence about why it cannot run on this machine.
Status whyUnusable(const nixl_plugin& plugin);

// NIXL_PLUGIN_DIR, or plugins/ beside the library (or program) that contains this function.
PluginFolder pluginFolder();

}  // namespace nixl::plugin
