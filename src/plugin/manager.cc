#include "plugin/manager.h"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "base/config.h"
#include "base/dlopen.h"
#include "base/log.h"
#include "plugin/engine.h"
#include "plugin/error_text.h"

namespace nixl::plugin {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPrefix = "libplugin_";
constexpr std::string_view kSuffix = ".so";

// The NAME of libplugin_NAME.so.
std::optional<std::string> nameOfFile(std::string_view file) {
  if (file.size() <= kPrefix.size() + kSuffix.size() || !file.starts_with(kPrefix) ||
      !file.ends_with(kSuffix))
    return std::nullopt;
  file.remove_prefix(kPrefix.size());
  file.remove_suffix(kSuffix.size());
  return std::string(file);
}

bool sameButCase(std::string_view a, std::string_view b) {
  return std::ranges::equal(
      a, b, [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const char* orEmpty(const char* text) { return text != nullptr ? text : ""; }

// The plugin's own table, or why it is not one that we can work with.
Result<const nixl_plugin*> tableOf(nixl_backend_init_function init, const std::string& name) {
  const nixl_plugin* plugin = nullptr;
  try {
    plugin = init(NIXL_PLUGIN_ABI_VERSION);
  } catch (...) {
    return thrownStatus(NIXL_PLUGIN_SYMBOL);
  }

  const std::string needed = std::to_string(NIXL_PLUGIN_ABI_VERSION);
  if (plugin == nullptr)
    return {Errc::MISMATCH,
            "it does not work with ABI " + needed + "; rebuild it against nixl/backend.h"};
  // The version first: in another one, nothing else needs to be where we look for it.
  if (!NIXL_ABI_HAS(plugin, nixl_plugin, abi_version) ||
      plugin->abi_version != NIXL_PLUGIN_ABI_VERSION)
    return {Errc::MISMATCH, "ABI " + std::to_string(plugin->abi_version) + ", this library needs " +
                                needed + "; rebuild it against nixl/backend.h"};
  if (!NIXL_ABI_HAS(plugin, nixl_plugin, create))
    return {Errc::MISMATCH,
            "its table is " + std::to_string(plugin->struct_size) + " bytes, at least " +
                std::to_string(offsetof(nixl_plugin, create) + sizeof plugin->create) +
                " are needed; rebuild it against nixl/backend.h"};
  if (plugin->create == nullptr) return {Errc::MISMATCH, "its table has no create()"};
  if (plugin->name == nullptr || plugin->name != name)
    return {Errc::MISMATCH, "it calls itself \"" + readable(orEmpty(plugin->name)) + "\""};
  return plugin;
}

// What the loader says of a library that it cannot open, and what to do about it.
std::string withAdvice(std::string text, const std::string& path) {
  const auto has = [&](std::string_view words) { return text.find(words) != std::string::npos; };
  constexpr std::string_view kMissing = ": cannot open shared object file: No such file";
  if (const size_t end = text.find(kMissing); end != std::string::npos) {
    const size_t begin = text.rfind(' ', end) + 1;
    const std::string needed = text.substr(begin, end - begin);
    if (needed != path)
      return text + "; install what brings " + needed +
             ", or add the folder that holds it to LD_LIBRARY_PATH";
  }
  if (has("undefined symbol"))
    return text + "; it was built for another version of what it uses: rebuild it here";
  if (has("' not found") || has("invalid ELF header") || has("wrong ELF class") ||
      has("file too short"))
    return text +
           "; it was built for another system, or is damaged: install or build it for this one";
  return text;
}

// What the plugin reads of the environment becomes part of the table that tools show.
void registerVariablesOf(const nixl_plugin& plugin) {
  if (!NIXL_ABI_HAS(&plugin, nixl_plugin, variables)) return;
  std::vector<base::Variable> variables;
  for (const nixl_option* v = plugin.variables; v != nullptr && v->name != nullptr; ++v) {
    base::Variable variable;
    variable.name = v->name;
    variable.default_text = orEmpty(v->default_value);
    variable.help = readable(orEmpty(v->help));
    variable.owner = plugin.name;
    variables.push_back(std::move(variable));
  }
  base::registerVariables(variables);
}

}  // namespace

struct Manager::Entry {
  std::string name;
  std::string path;                 // of the file; "": linked in
  nixl_backend_init_function init;  // null: the file has it
  bool listed;

  // Held while the plugin is loaded, and so across its own code: a plugin that asks, while it is
  // being loaded, to be loaded waits for itself. Nothing else is locked by who holds it.
  base::Mutex loading;
  const nixl_plugin* plugin NIXL_GUARDED_BY(loading) = nullptr;

  Entry(std::string n, std::string p, nixl_backend_init_function i, bool l)
      : name(std::move(n)), path(std::move(p)), init(i), listed(l) {}

  Result<const nixl_plugin*> load() NIXL_EXCLUDES(loading) {
    base::MutexLock lock(loading);
    if (plugin != nullptr) return plugin;
    nixl_backend_init_function entrance = init;
    if (entrance == nullptr) {
      // Never unloaded: engines leave threads, handlers and thread-local data behind.
      auto library = base::SharedLibrary::open(path, {.nodelete = true});
      if (!library.has_value())
        return Status(library.error().code(),
                      "plugin " + name + ": " + withAdvice(library.error().message(), path));
      auto symbol = library->symbol(NIXL_PLUGIN_SYMBOL);
      if (!symbol.has_value())
        return {Errc::MISMATCH, title() + ": it exports no " NIXL_PLUGIN_SYMBOL};
      entrance = reinterpret_cast<nixl_backend_init_function>(*symbol);
    }
    auto table = tableOf(entrance, name);
    if (!table.has_value()) return std::move(table).error().within(title());
    plugin = *table;
    registerVariablesOf(*plugin);
    return plugin;
  }

  std::string title() const {
    return "plugin " + name + " (" + (path.empty() ? "linked in" : path) + ")";
  }
};

Manager& Manager::instance() {
  static Manager& manager = *new Manager(pluginFolder(), staticPlugins());
  return manager;
}

Manager::Manager(PluginFolder folder, std::span<const StaticPlugin> linked_in)
    : folder_(std::move(folder)) {
  for (const StaticPlugin& p : linked_in)
    entries_.push_back(std::make_unique<Entry>(p.name, "", p.init, p.listed));

  // Steps by hand, because the loop's ++ throws where a folder cannot be read on.
  std::error_code failure;
  for (fs::directory_iterator file(folder_.path, failure), end; !failure && file != end;
       file.increment(failure)) {
    const auto name = nameOfFile(file->path().filename().native());
    std::error_code ignored;
    if (!name || !file->is_regular_file(ignored)) continue;
    if (find(*name) != nullptr)
      NIXL_LOG_DEBUG("\"{}\" is not used: {} is linked in", file->path().native(), *name);
    else
      entries_.push_back(std::make_unique<Entry>(*name, file->path().native(), nullptr, true));
  }
  if (failure) NIXL_LOG_DEBUG("look for plugins in \"{}\": {}", folder_.path, failure.message());

  std::ranges::sort(entries_, {},
                    [](const auto& entry) -> const std::string& { return entry->name; });
}

Manager::~Manager() = default;

std::vector<std::string> Manager::names() const {
  std::vector<std::string> names;
  for (const auto& entry : entries_)
    if (entry->listed) names.push_back(entry->name);
  return names;
}

Result<const nixl_plugin*> Manager::load(const std::string& name) {
  Entry* entry = find(name);
  if (entry == nullptr) return notFound(name);
  return entry->load();
}

Result<BackendInfo> Manager::info(const std::string& name) {
  NIXL_ASSIGN_OR_RETURN(const nixl_plugin* plugin, load(name));
  BackendInfo info;
  info.name = name;
  info.version = orEmpty(plugin->version);
  info.summary = orEmpty(plugin->summary);
  info.path = find(name)->path;
  const nixl_facts facts = factsOf(*plugin);
  for (unsigned i = 0; i < kMemTypes; ++i)
    if (facts.memory_kinds >> i & 1u) info.mems.push_back(static_cast<MemType>(i));
  for (const nixl_option* o = plugin->options; o != nullptr && o->name != nullptr; ++o) {
    info.params[o->name] = orEmpty(o->default_value);
    info.help[o->name] = orEmpty(o->help);
  }
  info.local = facts.flags & NIXL_ENGINE_LOCAL;
  info.remote = facts.flags & NIXL_ENGINE_REMOTE;
  info.notifications = facts.flags & NIXL_ENGINE_NOTIF;
  return info;
}

std::vector<PluginState> Manager::states() {
  std::vector<PluginState> states;
  for (const auto& entry : entries_) {
    const auto plugin = entry->load();
    const Status status = plugin.has_value() ? whyUnusable(**plugin) : plugin.error();
    states.push_back({.name = entry->name,
                      .path = entry->path,
                      .usable = status.ok(),
                      .why_unusable = status.message()});
  }
  return states;
}

std::vector<PluginState> Manager::found() const {
  std::vector<PluginState> states;
  for (const auto& entry : entries_)
    states.push_back(
        {.name = entry->name, .path = entry->path, .usable = false, .why_unusable = ""});
  return states;
}

PluginSearch Manager::search() const {
  PluginSearch search;
  search.folder = folder_.path;
  search.chosen = folder_.chosen;
  std::error_code failure;
  const fs::directory_iterator readable_folder(folder_.path, failure);
  if (failure)
    search.problem = "\"" + folder_.path + "\": " + failure.message() +
                     (folder_.chosen ? "; NIXL_PLUGIN_DIR names it, unset it or name the folder of "
                                       "the files libplugin_*.so"
                                     : "; reinstall nixl, or name the folder of the files "
                                       "libplugin_*.so in NIXL_PLUGIN_DIR");
  for (const char* name : builtPlugins())
    if (find(name) == nullptr)
      search.missing.push_back({.name = name,
                                .path = (fs::path(folder_.path) /
                                         (std::string(kPrefix) + name + std::string(kSuffix)))
                                            .native(),
                                .usable = false,
                                .why_unusable = "there is no such file"});
  return search;
}

Manager::Entry* Manager::find(const std::string& name) const {
  const auto found = std::ranges::find(
      entries_, name, [](const auto& entry) -> const auto& { return entry->name; });
  return found == entries_.end() ? nullptr : found->get();
}

Status Manager::notFound(const std::string& name) const {
  std::string sentence = "no plugin \"" + readable(name) + "\"";
  for (const auto& entry : entries_)
    if (sameButCase(entry->name, name))
      return {Errc::NOT_FOUND, sentence + "; did you mean \"" + entry->name + "\"?"};
  std::error_code ignored;
  if (!fs::is_directory(folder_.path, ignored))
    sentence += "; \"" + folder_.path + "\" is not there";
  else
    sentence += "; found " + (names().empty() ? "none" : joined(names())) + " in " + folder_.path;
  sentence += folder_.chosen ? " (NIXL_PLUGIN_DIR)" : ". NIXL_PLUGIN_DIR is not set";
  for (const char* built : builtPlugins())
    if (name == built) {
      const std::string file = std::string(kPrefix) + name + std::string(kSuffix);
      sentence += folder_.chosen ? "; unset it, or let it name the folder that has " + file
                                 : "; reinstall nixl, " + file + " was made with it";
    }
  return {Errc::NOT_FOUND, std::move(sentence)};
}

Status whyUnusable(const nixl_plugin& plugin) {
  if (plugin.why_unusable == nullptr) return {};
  ErrorText error;
  try {
    if (plugin.why_unusable(error.raw()) >= 0) return {};
  } catch (...) {
    return thrownStatus(std::string(plugin.name) + " cannot run here");
  }
  return Status(Errc::NOT_FOUND, error.words());
}

PluginFolder pluginFolder() {
  auto chosen = base::configPath("NIXL_PLUGIN_DIR");
  std::error_code ignored;  // then the path stays as it is
  if (chosen.has_value() && !chosen->empty())
    return {fs::absolute(*chosen, ignored).native(), true};

  Dl_info self{};
  fs::path library;
  if (dladdr(reinterpret_cast<const void*>(&pluginFolder), &self) != 0 && self.dli_fname != nullptr)
    library = fs::absolute(self.dli_fname, ignored);
  return {(library.parent_path() / "plugins").native(), false};
}

}  // namespace nixl::plugin
