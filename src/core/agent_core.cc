#include "core/agent_core.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>

#include "base/config.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/random.h"
#include "plugin/error_text.h"
#include "plugin/manager.h"

namespace nixl::core {
namespace {

using std::chrono::milliseconds;

constexpr auto kShutDown = milliseconds(1000);   // all of an agent's end takes no longer
constexpr auto kDeregister = milliseconds(2000);  // what is in flight in a range may take so long

HandleTable<Registration>& registrations() {
  static auto* table = new HandleTable<Registration>;
  return *table;
}

uint64_t unixNow() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// One boot of one machine, whatever its name.
std::string hostIdentity() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

// As engines are told of a range; `range` stays the owner of its info.
nixl_region regionOf(const MemDescriptor& range) {
  nixl_region r{};
  r.struct_size = sizeof r;
  r.kind = static_cast<uint32_t>(range.type);
  r.addr = range.address;
  r.length = range.length;
  r.device = range.device;
  r.info = range.info.data();
  r.info_size = range.info.size();
  r.dmabuf_fd = -1;
  return r;
}

// What engines call. `context` is the Backend, requests and peers are numbers.
void onComplete(void* request, uint64_t attempt, uint64_t first, uint64_t count, int32_t status,
                uint64_t bytes, int32_t native, const char* text) {
  if (auto transfer = Transfer::findAny(reinterpret_cast<uint64_t>(request)))
    transfer->complete(attempt, first, count, status == 0 ? Errc::OK : plugin::errcOf(status),
                       bytes, native, text == nullptr ? nullptr : plugin::readable(text).c_str());
}

void onNotification(void* context, const void* bytes, size_t size) {
  static_cast<Backend*>(context)->agent->received({static_cast<const char*>(bytes), size});
}

// The peer's agent is found through its link, which is gone once it was retired.
void onPeer(void* host_peer, int32_t state, int32_t status, const char* reason) {
  const uint64_t link = reinterpret_cast<uint64_t>(host_peer);
  if (AgentCore* agent = agentOfLink(link))
    agent->peerChanged(link, state, status >= 0 ? Errc::OK : plugin::errcOf(status),
                       plugin::readable(reason == nullptr ? "" : reason));
}

void onWake(void* context) { static_cast<Backend*>(context)->agent->wake(); }

void onLog(void*, int32_t level, const char* file, int32_t line, const char* text) {
  const auto known = static_cast<base::LogLevel>(std::clamp(level, 0, 4));
  if (base::logEnabled(known)) {
    base::detail::logFormatted(known, file == nullptr ? "engine" : file, line, 0, "{}",
                               plugin::readable(text == nullptr ? "" : text));
  }
}

void onCount(void*, const char*, int64_t) {}  // counters: with the telemetry room

const void* onExtension(void*, const char*) { return nullptr; }

}  // namespace

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

AgentCore::AgentCore(std::string name, const AgentConfig& config, uint64_t notification_limit)
    : name_(std::move(name)),
      config_(config),
      identity_(metadata::Identity::create()),
      incarnation_(identity_->incarnation()),
      created_unix_ns_(unixNow()),
      host_id_(hostIdentity()),
      fork_generation_(base::forkGeneration()),
      notifier_(name_, incarnation_, notification_limit),
      progress_(name_, [this](uint64_t now) { return clockwork(now); }) {
  base::randomBytes(secret_.data(), secret_.size());
}

Result<std::unique_ptr<AgentCore>> AgentCore::create(std::string name, const AgentConfig& config) {
  if (name.empty()) return Status(Errc::INVALID_PARAM, "create an agent: the name is empty");
  NIXL_ASSIGN_OR_RETURN(const uint64_t limit, base::configSize("NIXL_NOTIF_LIMIT"));
  std::unique_ptr<AgentCore> agent(new AgentCore(std::move(name), config, limit));
  NIXL_TRY(agent->start().within(fmt::format("create agent \"{}\"", agent->name_)));
  return agent;
}

Status AgentCore::start() {
  NIXL_ASSIGN_OR_RETURN(const int64_t inline_us, base::configInt("NIXL_INLINE_US"));
  inline_ns_ = static_cast<uint64_t>(inline_us) * 1000;
  NIXL_ASSIGN_OR_RETURN(const int64_t stall_ms, base::configInt("NIXL_STALL_MS"));
  stall_ns_ = static_cast<uint64_t>(stall_ms) * 1'000'000;
  NIXL_ASSIGN_OR_RETURN(const int64_t quiesce_ms, base::configInt("NIXL_QUIESCE_MS"));
  quiesce_ns_ = static_cast<uint64_t>(quiesce_ms) * 1'000'000;
  telemetry_ = config_.capture_telemetry;
  if (base::configIsSet("NIXL_TELEMETRY_ENABLE")) {
    NIXL_ASSIGN_OR_RETURN(telemetry_, base::configBool("NIXL_TELEMETRY_ENABLE"));
    if (!telemetry_ && config_.capture_telemetry)
      NIXL_LOG_WARN("agent \"{}\": NIXL_TELEMETRY_ENABLE turns off the telemetry that the "
                    "configuration asks for",
                    name_);
  }
  NIXL_ASSIGN_OR_RETURN(const std::string etcd, base::configEndpoints("NIXL_ETCD_ENDPOINTS"));
  NIXL_ASSIGN_OR_RETURN(const std::string tcp_store,
                        base::configEndpoints("NIXL_TCPSTORE_ENDPOINT"));
  if (!etcd.empty() && !tcp_store.empty())
    return Status(Errc::INVALID_PARAM,
                  "NIXL_ETCD_ENDPOINTS and NIXL_TCPSTORE_ENDPOINT are both set, and metadata can be "
                  "kept in one place only; unset one of them");
  if (config_.use_store.value_or(false))
    return Status(Errc::NOT_SUPPORTED,
                  "a metadata store was asked for, and this version exchanges metadata only with "
                  "listeners (enable_listen) or through the program itself");
  NIXL_TRY(progress_.start(config_.progress_thread));
  const std::vector<std::string> known = plugin::Manager::instance().names();
  for (const std::string& name : config_.backends) {
    auto params = config_.backend_params.find(name);
    const Params none;
    Status created = createBackend(name, params == config_.backend_params.end() ? none
                                                                                : params->second);
    if (created.ok()) continue;
    // Programs list backends that a machine may lack: they go on without.
    if (std::find(known.begin(), known.end(), name) == known.end() &&
        created.code() == Errc::NOT_FOUND) {
      NIXL_LOG_WARN("agent \"{}\" goes on without backend {}: {}", name_, name, created.message());
      continue;
    }
    return created;
  }
  if (config_.listen) {  // now that there is something to tell
    auto exchange = this->exchange();
    if (!exchange.has_value()) return std::move(exchange).error();
  }
  return {};
}

AgentCore::~AgentCore() {
  const auto deadline = base::Deadline::after(kShutDown);
  {
    std::unique_ptr<metadata::Exchange> exchange;
    {
      base::MutexLock lock(exchange_mu_);
      exchange = std::move(exchange_);
    }
    if (exchange) exchange->stop(base::Deadline::after(kShutDown / 2));
  }
  auto transfers = Transfer::ofAgent(this);
  for (auto& transfer : transfers) transfer->release();
  auto quiet = [&] {
    return std::none_of(transfers.begin(), transfers.end(),
                        [](const auto& transfer) { return transfer->inFlight(); });
  };
  waitUntil(quiet, base::Deadline::after(kShutDown / 4));
  for (auto& backend : backends()) {
    bool told = false;
    for (const auto& region : backend->registry.all()) told = told || region->told.load();
    if (told) (void)quiescePeers(*backend, nullptr, kShutDown / 4);
  }
  for (auto& peer : peers_.all()) {
    takeLeaveOf(peer);
    peers_.remove(peer);
    peer->retire();
  }
  {
    std::map<metadata::Incarnation, User> users;  // their connections end outside of the lock
    std::vector<Answer> answers;
    base::MutexLock lock(fences_mu_);
    users.swap(users_);
    answers.swap(answers_);
  }
  waitUntil(quiet, base::Deadline::after(kShutDown / 4));
  progress_.stop();
  {
    base::MutexLock lock(flight_mu_);
    flight_.clear();
  }
  auto owned = [this](const auto& object) { return object.agent == this; };
  for (auto& [id, side] : preparedSides().select(owned)) preparedSides().take(id);
  for (auto& [id, registration] : registrations().select(owned)) registrations().take(id);

  bool clean = true;
  for (auto& backend : backends()) {
    auto regions = backend->registry.removeAll();
    std::vector<void*> handles;
    for (auto& region : regions) handles.push_back(region->handle);
    if (quiet() && !handles.empty()) (void)backend->engine->deregister(handles, deadline);
    const Status down = backend->engine->shutDown(
        std::max(deadline, base::Deadline::after(milliseconds(50))));
    if (!down.ok()) {
      clean = false;
      NIXL_LOG_WARN("agent \"{}\": {}", name_, down.message());
    }
  }
  for (auto& transfer : transfers) {
    transfer->abandon();
    // An engine that would not let go may still read the plan: better lost than reused.
    if (transfer->inFlight() || !clean) new std::shared_ptr<Transfer>(std::move(transfer));
  }
  transfers.clear();
}

bool AgentCore::forked() const { return base::forkGeneration() != fork_generation_; }

// ---- backends ------------------------------------------------------------------------------

Status AgentCore::createBackend(const std::string& name, const Params& params) {
  base::MutexLock one(create_mu_);
  const std::string doing = fmt::format("create backend {} for agent \"{}\"", name, name_);
  size_t count;
  {
    base::ReaderLock lock(backends_mu_);
    count = backends_.size();
    for (auto& backend : backends_)
      if (backend->name == name)
        return Status(Errc::INVALID_PARAM, doing + ": it has been created before");
  }
  if (count >= kMaxBackends)
    return Status(Errc::LIMIT, fmt::format("{}: an agent has at most {}", doing, kMaxBackends));
  auto plugin = plugin::Manager::instance().load(name);
  if (!plugin.has_value()) return std::move(plugin).error().within(doing);
  // A plugin that says why it cannot run here is not there, as far as programs can tell.
  NIXL_TRY(plugin::whyUnusable(**plugin).within(doing));

  auto backend = std::make_unique<Backend>();
  backend->agent = this;
  backend->name = name;
  backend->params = params;
  backend->plugin = *plugin;
  backend->host.struct_size = sizeof(nixl_host);
  backend->host.abi_version = NIXL_PLUGIN_ABI_VERSION;
  backend->host.context = backend.get();
  backend->host.on_complete = onComplete;
  backend->host.on_notification = onNotification;
  backend->host.on_peer = onPeer;
  backend->host.wake = onWake;
  backend->host.log = onLog;
  backend->host.count = onCount;
  backend->host.extension = onExtension;
  plugin::CreateArgs args;
  args.host = &backend->host;
  args.agent = name_;
  args.options = params;
  if (config_.num_threads > 0 && !args.options.contains("num_threads"))
    for (const nixl_option* option = (*plugin)->options; option && option->name; ++option)
      if (std::string_view(option->name) == "num_threads")
        args.options["num_threads"] = std::to_string(config_.num_threads);
  args.progress_thread = config_.progress_thread;
  args.threads_wanted = config_.num_threads;
  auto engine = plugin::Engine::create(*plugin, args);
  if (!engine.has_value())
    return Status(Errc::BACKEND, fmt::format("{}: {}", doing, engine.error().message()));
  backend->engine = *std::move(engine);
  if (backend->has(NIXL_ENGINE_REMOTE)) {
    auto info = backend->engine->localInfo();
    if (!info.has_value())
      return Status(Errc::BACKEND, fmt::format("{}: {}", doing, info.error().message()));
    backend->connection = *info;
  }
  Backend* made = backend.get();
  {
    base::WriterLock lock(backends_mu_);
    backends_.push_back(std::move(backend));
  }
  progress_.add(made);
  NIXL_LOG_INFO("agent \"{}\": backend {} was created", name_, name);
  return {};
}

std::vector<Backend*> AgentCore::backends() const {
  base::ReaderLock lock(backends_mu_);
  std::vector<Backend*> all;
  all.reserve(backends_.size());
  for (auto& backend : backends_) all.push_back(backend.get());
  return all;
}

Result<Backend*> AgentCore::backend(const std::string& name) const {
  std::vector<std::string> names;
  for (Backend* backend : backends()) {
    if (backend->name == name) return backend;
    names.push_back(backend->name);
  }
  return Status(Errc::NOT_FOUND, fmt::format("agent \"{}\" has no backend {}; it has {}", name_,
                                             name, joined(names)));
}

Result<std::vector<Backend*>> AgentCore::candidates(
    const std::vector<std::string>& names, const std::function<bool(Backend&)>& able) const {
  std::vector<Backend*> chosen;
  if (names.empty()) {
    for (Backend* backend : backends())
      if (able(*backend)) chosen.push_back(backend);
    return chosen;
  }
  for (const std::string& name : names) {
    NIXL_ASSIGN_OR_RETURN(Backend * named, backend(name));
    chosen.push_back(named);  // whoever names one means it
  }
  return chosen;
}

// ---- memory --------------------------------------------------------------------------------

Result<std::vector<std::shared_ptr<Region>>> AgentCore::registerWith(
    Backend& backend, const std::vector<MemDescriptor>& ranges) {
  std::vector<std::shared_ptr<Region>> all, fresh;
  std::vector<nixl_region> wanted;
  all.reserve(ranges.size());
  for (const MemDescriptor& range : ranges) {
    if (auto known =
            backend.registry.again(range.type, range.address, range.length, range.device)) {
      all.push_back(std::move(known));
      continue;
    }
    auto region = std::make_shared<Region>();
    region->type = range.type;
    region->address = range.address;
    region->length = range.length;
    region->device = range.device;
    region->info = range.info;
    region->generation = generation_.fetch_add(1) + 1;
    nixl_region& r = wanted.emplace_back(regionOf(range));
    r.info = region->info.data();  // stays as long as the registration
    r.generation = region->generation;
    r.rights = 3;
    fresh.push_back(region);
    all.push_back(std::move(region));
  }
  auto undo = [&](Status why) {
    std::vector<std::shared_ptr<Region>> counted;
    for (auto& region : all)
      if (std::find(fresh.begin(), fresh.end(), region) == fresh.end()) counted.push_back(region);
    (void)deregisterFrom(backend, backend.registry.remove(counted), false);
    return why;
  };
  if (fresh.empty()) return all;
  std::vector<void*> handles(fresh.size());
  Status registered = backend.engine->registerMemory(wanted, handles);
  if (!registered.ok()) return undo(std::move(registered));
  for (size_t i = 0; i < fresh.size(); ++i) {
    fresh[i]->handle = handles[i];
    if (!backend.has(NIXL_ENGINE_REMOTE)) continue;
    auto key = backend.engine->publicKey(handles[i]);
    if (!key.has_value()) {
      (void)backend.engine->deregister(handles, base::Deadline::after(kDeregister));
      return undo(std::move(key).error());
    }
    fresh[i]->key = *key;
  }
  backend.registry.add(fresh);
  return all;
}

Result<uint64_t> AgentCore::registerMemory(const std::vector<MemDescriptor>& ranges,
                                           const std::vector<std::string>& backends) {
  if (ranges.empty())
    return Status(Errc::BACKEND, "register memory: the list of ranges is empty");
  const MemType type = ranges[0].type;
  for (const MemDescriptor& range : ranges) {
    if (range.type != type)
      return Status(Errc::INVALID_PARAM, "register memory: all ranges of a list are of one kind");
    if (range.length > UINT64_MAX - range.address)
      return Status(Errc::INVALID_PARAM,
                    fmt::format("register memory: a range (address {:#x}, {} bytes) wraps past 2^64",
                                range.address, range.length));
  }
  NIXL_ASSIGN_OR_RETURN(auto chosen,
                        candidates(backends, [type](Backend& b) { return b.takes(type); }));
  if (chosen.empty()) {
    std::vector<std::string> names;
    for (Backend* backend : this->backends()) names.push_back(backend->name);
    return Status(Errc::NOT_FOUND, fmt::format("register {} memory: no backend of agent \"{}\" "
                                               "takes that kind; it has {}",
                                               memTypeName(type), name_, joined(names)));
  }
  auto registration = std::make_shared<Registration>();
  registration->agent = this;
  std::string reasons;
  for (Backend* backend : chosen) {
    auto regions = registerWith(*backend, ranges);
    if (regions.has_value()) {
      registration->regions.emplace_back(backend, *std::move(regions));
    } else {
      reasons += (reasons.empty() ? "" : "; ") + regions.error().message();
    }
  }
  if (registration->regions.empty())
    return Status(Errc::BACKEND, fmt::format("register {} {} ranges: {}", ranges.size(),
                                             memTypeName(type), reasons));
  const uint64_t handle = registrations().add(std::move(registration));
  if (handle == 0) return Status(Errc::LIMIT, "16 million registrations are alive");
  return handle;
}

Status AgentCore::deregisterFrom(Backend& backend, std::vector<std::shared_ptr<Region>> regions,
                                 bool require) {
  if (regions.empty()) return {};
  const auto deadline = base::Deadline::after(kDeregister);
  // Nothing of ours may go on using the memory: what is in flight in it is cancelled first.
  std::vector<std::shared_ptr<Transfer>> users = Transfer::activeOf(this);
  std::erase_if(users, [](const auto& transfer) { return !transfer->usesDeadRegion(); });
  Status status;
  if (!users.empty()) {
    for (auto& transfer : users) transfer->cancel();
    const bool quiet = waitUntil(
        [&] {
          return std::none_of(users.begin(), users.end(),
                              [](const auto& transfer) { return transfer->inFlight(); });
        },
        deadline);
    if (!quiet)
      status = Status(Errc::NOT_QUIESCED,
                      fmt::format("deregister memory: backend {} did not end {} transfers in it "
                                  "within {} s; do not reuse the memory",
                                  backend.name, users.size(),
                                  std::chrono::duration_cast<std::chrono::seconds>(kDeregister)
                                      .count()));
  }
  if (!status.ok()) return status;  // the engine keeps the regions: they are still in use
  status = quiescePeers(backend, &regions, std::chrono::nanoseconds(quiesce_ns_));
  std::vector<void*> handles;
  handles.reserve(regions.size());
  for (auto& region : regions) handles.push_back(region->handle);
  auto done = backend.engine->deregister(handles, deadline);
  if (!done.has_value()) return std::move(done).error().within("deregister memory");
  return require ? status : Status();
}

Status AgentCore::deregisterMemory(uint64_t handle, bool require) {
  auto registration = registrations().take(handle);
  if (!registration)
    return Status(Errc::INVALID_PARAM, "deregister memory: the handle was released, or never was");
  Status status;
  for (auto& [backend, regions] : registration->regions) {
    Status one = registration->agent->deregisterFrom(*backend, backend->registry.remove(regions),
                                                     require);
    if (!one.ok()) status = std::move(one);
  }
  return status;
}

Status AgentCore::deregisterMemory(const std::vector<MemDescriptor>& ranges,
                                   const std::vector<std::string>& backends, bool require) {
  if (ranges.empty()) return {};
  const MemType type = ranges[0].type;
  NIXL_ASSIGN_OR_RETURN(
      auto chosen, candidates(backends, [type](Backend& b) { return b.registry.has(type); }));
  if (chosen.empty())
    return Status(Errc::NOT_FOUND, fmt::format("deregister memory: agent \"{}\" has no {} memory "
                                               "registered",
                                               name_, memTypeName(type)));
  Status status;
  for (Backend* backend : chosen) {
    auto gone = backend->registry.remove(ranges);
    Status one = gone.has_value() ? deregisterFrom(*backend, *std::move(gone), require)
                                  : std::move(gone).error().within("deregister memory");
    if (!one.ok()) status = std::move(one);
  }
  return status;
}

Result<std::vector<std::optional<Params>>> AgentCore::queryMemory(
    const std::vector<MemDescriptor>& ranges, const std::string& name) {
  auto found = backend(name);
  if (!found.has_value()) return Status(Errc::INVALID_PARAM, found.error().message());
  if (!(*found)->has(NIXL_ENGINE_QUERY))
    return Status(Errc::NOT_SUPPORTED, fmt::format("backend {} cannot be queried", name));
  std::vector<nixl_region> wanted;
  for (const MemDescriptor& range : ranges) wanted.push_back(regionOf(range));
  std::vector<std::optional<Params>> answers(ranges.size());
  NIXL_TRY((*found)->engine->storage(
      NIXL_STORAGE_STAT, wanted,
      [&](uint64_t index, std::string_view key, std::string_view value) {
        if (index >= answers.size()) return;
        if (!answers[index]) answers[index].emplace();
        if (!key.empty()) (*answers[index])[std::string(key)] = value;
      }));
  return answers;
}

}  // namespace nixl::core
