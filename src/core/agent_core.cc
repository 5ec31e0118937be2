#include "core/agent_core.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <map>
#include <unordered_map>

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
constexpr uint64_t kCheckBudgetNs = 50'000;

HandleTable<PreparedSide>& sides() {
  static auto* table = new HandleTable<PreparedSide>;
  return *table;
}

HandleTable<Registration>& registrations() {
  static auto* table = new HandleTable<Registration>;
  return *table;
}

metadata::Incarnation newIncarnation() {
  metadata::Incarnation incarnation;
  base::randomBytes(incarnation.bytes.data(), incarnation.bytes.size());
  return incarnation;
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

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
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

nixl_plan_summary summaryOf(OpType op, MemType local, MemType remote, uint64_t pieces,
                            uint64_t bytes) {
  nixl_plan_summary summary{};
  summary.struct_size = sizeof summary;
  summary.op = static_cast<uint32_t>(op);
  summary.local_kind = static_cast<uint32_t>(local);
  summary.remote_kind = static_cast<uint32_t>(remote);
  summary.pieces = pieces;
  summary.bytes = bytes;
  return summary;
}

// What an engine predicts for a transfer with a peer (nullptr: the agent itself).
Result<nixl_cost> costOf(Backend& backend, Peer* peer, const nixl_plan_summary& summary) {
  GatePass pass(peer ? &peer->gate : nullptr);
  return backend.engine->cost(peer && pass ? peer->through(backend)->engine_peer : nullptr, summary);
}

double predictedNs(const nixl_cost& cost, const nixl_plan_summary& summary) {
  double ns = cost.ns_fixed + cost.ns_per_piece * static_cast<double>(summary.pieces);
  if (cost.bytes_per_second > 0)
    ns += static_cast<double>(summary.bytes) * 1e9 / cost.bytes_per_second;
  return ns;
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

AgentCore::AgentCore(std::string name, const AgentConfig& config, uint64_t notification_limit)
    : name_(std::move(name)),
      config_(config),
      incarnation_(newIncarnation()),
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
  telemetry_ = config_.capture_telemetry;
  if (base::configIsSet("NIXL_TELEMETRY_ENABLE")) {
    NIXL_ASSIGN_OR_RETURN(telemetry_, base::configBool("NIXL_TELEMETRY_ENABLE"));
    if (!telemetry_ && config_.capture_telemetry)
      NIXL_LOG_WARN("agent \"{}\": NIXL_TELEMETRY_ENABLE turns off the telemetry that the "
                    "configuration asks for",
                    name_);
  }
  if (config_.use_store.value_or(false))
    return Status(Errc::NOT_SUPPORTED,
                  "a metadata store was asked for, and this version exchanges metadata only with "
                  "listeners (enable_listen) or through the program itself");
  NIXL_TRY(progress_.start(config_.progress_thread));
  if (config_.listen) {
    auto exchange = this->exchange();
    if (!exchange.has_value()) return std::move(exchange).error();
  }
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
  for (auto& peer : peers_.all()) {
    peers_.remove(peer);
    peer->retire();
  }
  waitUntil(quiet, base::Deadline::after(kShutDown / 4));
  progress_.stop();
  {
    base::MutexLock lock(flight_mu_);
    flight_.clear();
  }
  auto owned = [this](const auto& object) { return object.agent == this; };
  for (auto& [id, side] : sides().select(owned)) sides().take(id);
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
    (void)deregisterFrom(backend, backend.registry.remove(counted));
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

Status AgentCore::deregisterFrom(Backend& backend, std::vector<std::shared_ptr<Region>> regions) {
  if (regions.empty()) return {};
  const auto deadline = base::Deadline::after(kDeregister);
  // Nothing of ours may go on using the memory: what is in flight in it is cancelled first.
  std::vector<std::shared_ptr<Transfer>> users;
  if (in_flight_.load(std::memory_order_acquire) != 0) {
    base::MutexLock lock(flight_mu_);
    for (const auto& transfer : flight_)
      for (const auto& region : regions)
        if (transfer->usesRegion(region.get())) {
          users.push_back(transfer);
          break;
        }
  }
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
  std::vector<void*> handles;
  handles.reserve(regions.size());
  for (auto& region : regions) handles.push_back(region->handle);
  auto done = backend.engine->deregister(handles, deadline);
  if (!done.has_value()) return std::move(done).error().within("deregister memory");
  return {};
}

Status AgentCore::deregisterMemory(uint64_t handle) {
  auto registration = registrations().take(handle);
  if (!registration)
    return Status(Errc::INVALID_PARAM, "deregister memory: the handle was released, or never was");
  Status status;
  for (auto& [backend, regions] : registration->regions) {
    Status one = registration->agent->deregisterFrom(*backend, backend->registry.remove(regions));
    if (!one.ok()) status = std::move(one);
  }
  return status;
}

Status AgentCore::deregisterMemory(const std::vector<MemDescriptor>& ranges,
                                   const std::vector<std::string>& backends) {
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
    Status one = gone.has_value() ? deregisterFrom(*backend, *std::move(gone))
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

// ---- metadata ------------------------------------------------------------------------------

metadata::Blob AgentCore::emptyBlob(bool partial) const {
  metadata::Blob blob;
  blob.agent = name_;
  blob.incarnation = incarnation_;
  blob.created_unix_ns = created_unix_ns_;
  blob.sequence = sequence_.fetch_add(1) + 1;
  blob.secret = secret_;
  blob.host_id = host_id_;
  blob.features = 0;
  blob.partial = partial;
  return blob;
}

metadata::BackendSection AgentCore::section(
    Backend& backend, bool with_connection,
    const std::vector<std::shared_ptr<Region>>& regions) const {
  metadata::BackendSection section;
  section.backend = backend.name;
  section.has_connection = with_connection;
  if (with_connection) section.connection = backend.connection;
  std::unordered_map<std::string_view, uint32_t> keys;
  section.rows.reserve(regions.size());
  const std::string* last_key = nullptr;
  uint32_t last_number = 0;
  for (const auto& region : regions) {
    if (last_key == nullptr || *last_key != region->key) {
      const auto [where, fresh] =
          keys.try_emplace(region->key, static_cast<uint32_t>(section.keys.size()));
      if (fresh) section.keys.push_back(region->key);
      last_number = where->second;
      last_key = &region->key;
    }
    metadata::RegionRow row;
    row.kind = region->type;
    row.device = region->device;
    row.base = region->address;
    row.length = region->length;
    row.stride = region->length;
    row.count = 1;
    row.key = last_number;
    row.generation = region->generation;
    section.rows.push_back(row);
  }
  metadata::compress(section.rows);
  return section;
}

Result<std::string> AgentCore::metadataBytes() const {
  metadata::Blob blob = emptyBlob(false);
  for (Backend* backend : backends())
    if (backend->has(NIXL_ENGINE_REMOTE))
      blob.sections.push_back(section(*backend, true, backend->registry.all()));
  if (blob.sections.empty())
    return Status(Errc::INVALID_PARAM,
                  fmt::format("metadata of agent \"{}\": it has no backend that peers could use",
                              name_));
  return metadata::encode(blob);
}

Result<std::string> AgentCore::partialMetadata(const std::vector<MemDescriptor>& ranges,
                                               bool with_connections,
                                               const std::vector<std::string>& backends) const {
  metadata::Blob blob = emptyBlob(true);
  if (ranges.empty()) {
    NIXL_ASSIGN_OR_RETURN(auto chosen, candidates(backends, [](Backend&) { return true; }));
    for (Backend* backend : chosen)
      if (backend->has(NIXL_ENGINE_REMOTE)) blob.sections.push_back(section(*backend, true, {}));
    return metadata::encode(blob);
  }
  const MemType type = ranges[0].type;
  NIXL_ASSIGN_OR_RETURN(auto chosen,
                        candidates(backends, [type](Backend& b) { return b.takes(type); }));
  if (chosen.empty())
    return Status(Errc::NOT_FOUND, fmt::format("partial metadata: no backend of agent \"{}\" takes "
                                               "{} memory",
                                               name_, memTypeName(type)));
  bool remote = false;
  for (Backend* backend : chosen) {
    if (!backend->has(NIXL_ENGINE_REMOTE)) continue;
    remote = true;
    if (!backend->registry.has(type)) continue;
    auto regions = backend->registry.find(ranges);
    if (!regions.has_value()) return std::move(regions).error().within("partial metadata");
    blob.sections.push_back(section(*backend, with_connections, *regions));
  }
  if (!remote)
    return Status(Errc::BACKEND, "partial metadata: none of the backends can be used by peers");
  return metadata::encode(blob);
}

Result<std::string> AgentCore::loadMetadata(std::string_view bytes) {
  auto blob = metadata::decode(bytes);
  if (!blob.has_value()) return std::move(blob).error().within("load metadata");
  if (blob->agent == name_)
    return Status(Errc::INVALID_PARAM,
                  fmt::format("load metadata: it is of \"{}\", which is this agent's name", name_));
  const std::string doing = "load metadata";
  auto known = peers_.current(*blob);
  if (!known.has_value()) return std::move(known).error().within(doing);
  std::shared_ptr<Peer> peer = *known;
  if (!peer) {
    // Whoever finds the name may use it at once: it gets its name when it is whole.
    auto fresh = std::make_shared<Peer>(blob->agent, *blob);
    NIXL_TRY(fresh->merge(*blob, backends()).within(doing));
    auto adopted = peers_.adopt(fresh);
    if (!adopted.has_value()) return std::move(adopted).error().within(doing);
    if (adopted->replaced) {
      adopted->replaced->retire();
      Event event{};
      event.kind = Event::Kind::PEER_REPLACED;
      event.peer = blob->agent;
      event.incarnation = blob->incarnation.hex();
      event.text = fmt::format("peer \"{}\" started anew; what was prepared for the former one is "
                               "void",
                               blob->agent);
      notifier_.add(std::move(event));
      progress_.changed();
    }
    if (adopted->peer != fresh) peer = adopted->peer;
  }
  if (peer) NIXL_TRY(peer->merge(*blob, backends()).within(doing));
  wake();
  return blob->agent;
}

Status AgentCore::invalidate(std::string_view agent) {
  Status status = invalidatePeer(std::string(agent));
  if (!status.ok()) return status;
  Event event{};
  event.kind = Event::Kind::PEER_INVALIDATED;
  event.peer = agent;
  event.text = fmt::format("peer \"{}\" withdrew its metadata", agent);
  notifier_.add(std::move(event));
  progress_.changed();
  return {};
}

Status AgentCore::invalidatePeer(const std::string& peer) {
  if (peer == name_)
    return Status(Errc::INVALID_PARAM, "invalidate a peer: the name is this agent's own");
  auto removed = peers_.remove(peer);
  if (!removed)
    return Status(Errc::NOT_FOUND, fmt::format("invalidate peer \"{}\": its metadata is not loaded",
                                               peer));
  removed->retire();
  wake();
  return {};
}

Result<bool> AgentCore::checkPeer(const std::string& name, const Rows& rows) const {
  if (name == name_) {
    for (Backend* backend : backends()) {
      if (!backend->has(NIXL_ENGINE_LOCAL)) continue;
      if (rows.count == 0) {
        for (unsigned type = 0; type < kMemTypes; ++type)
          if (backend->registry.has(static_cast<MemType>(type))) return true;
        continue;
      }
      auto list = DescList::fromRows(rows);
      if (!list.has_value()) return std::move(list).error();
      if (backend->registry.covers(*list)) return true;
    }
    return false;
  }
  auto peer = peers_.find(name);
  if (!peer) return false;
  if (rows.count == 0) return true;
  auto list = DescList::fromRows(rows);
  if (!list.has_value()) return std::move(list).error();
  for (Backend* backend : backends())
    if (peer->covers(*backend, *list)) return true;
  return false;
}

Status AgentCore::connectPeer(const std::string& name, const std::vector<std::string>& names) {
  NIXL_ASSIGN_OR_RETURN(auto chosen, candidates(names, [](Backend&) { return true; }));
  auto peer = peers_.find(name);
  if (!peer)
    return Status(Errc::NOT_FOUND,
                  fmt::format("connect to \"{}\": its metadata is not loaded", name));
  if (!peer->connected())
    return Status(Errc::NOT_FOUND,
                  fmt::format("connect to \"{}\": its metadata holds no connection", name));
  for (Backend* backend : chosen)
    if (peer->through(*backend) != nullptr) return {};  // connecting began when it was loaded
  return Status(Errc::BACKEND, fmt::format("connect to \"{}\": no backend in common", name));
}

Result<metadata::Exchange*> AgentCore::exchange() {
  base::MutexLock lock(exchange_mu_);
  if (!exchange_) {
    metadata::Exchange::Options options;
    options.listen = config_.listen;
    options.port = config_.listen_port;
    options.address = config_.listen_address;
    if (options.address.empty()) {
      NIXL_ASSIGN_OR_RETURN(options.address, base::configString("NIXL_LISTEN_ADDRESS"));
    }
    auto exchange = metadata::Exchange::start(*this, options);
    if (!exchange.has_value()) return std::move(exchange).error();
    exchange_ = *std::move(exchange);
    listen_port_.store(config_.listen ? exchange_->port() : uint16_t{0});
  }
  return exchange_.get();
}

uint16_t AgentCore::listenPort() const { return listen_port_.load(); }

void AgentCore::exchangeFailed(std::string_view what, const Status& status) {
  NIXL_LOG_ERROR("agent \"{}\": {}: {}", name_, what, status.message());
}

// ---- sides and transfers -------------------------------------------------------------------

Status AgentCore::current(const std::shared_ptr<Peer>& peer) const {
  if (peer->gate.open() && peers_.find(peer->name) == peer) return {};
  return Status(Errc::NOT_FOUND,
                fmt::format("peer \"{}\" was invalidated or loaded anew since this was prepared; "
                            "prepare it again",
                            peer->name));
}

Result<PreparedSide> AgentCore::resolveSide(const std::string& peer_name, const Rows& rows,
                                            const std::vector<std::string>& names) {
  PreparedSide side;
  side.agent = this;
  side.role = peer_name.empty()   ? PreparedSide::Role::LOCAL
              : peer_name == name_ ? PreparedSide::Role::SELF
                                   : PreparedSide::Role::REMOTE;
  if (side.role == PreparedSide::Role::REMOTE) {
    side.peer = peers_.find(peer_name);
    if (!side.peer)
      return Status(Errc::NOT_FOUND, fmt::format("peer \"{}\" is not known; load its metadata first",
                                                 peer_name));
  }
  NIXL_ASSIGN_OR_RETURN(side.list, DescList::fromRows(rows));
  auto able = [&](Backend& backend) {
    if (side.role == PreparedSide::Role::REMOTE) return side.peer->has(backend, rows.type);
    if (side.role == PreparedSide::Role::SELF && !backend.has(NIXL_ENGINE_LOCAL)) return false;
    return backend.registry.has(rows.type);
  };
  NIXL_ASSIGN_OR_RETURN(auto chosen, candidates(names, able));
  Status why(Errc::NOT_FOUND,
             side.role == PreparedSide::Role::REMOTE
                 ? fmt::format("no {} memory of \"{}\" is known", memTypeName(rows.type), peer_name)
                 : fmt::format("no {} memory is registered", memTypeName(rows.type)));
  for (Backend* backend : chosen) {
    auto resolution = side.role == PreparedSide::Role::REMOTE
                          ? side.peer->resolve(*backend, side.list)
                          : backend->registry.resolve(side.list);
    if (resolution.has_value()) {
      side.choices.push_back(
          {backend, std::make_shared<const Resolution>(*std::move(resolution))});
    } else {
      why = std::move(resolution).error();
    }
  }
  if (side.choices.empty()) return why;
  return side;
}

Result<uint64_t> AgentCore::prepareSide(const std::string& peer, const Rows& rows,
                                        const std::vector<std::string>& backends) {
  auto side = resolveSide(peer, rows, backends);
  if (!side.has_value())
    return std::move(side).error().within(
        peer.empty() ? std::string("prepare a local list")
                     : fmt::format("prepare a list of \"{}\"", peer));
  const uint64_t handle = sides().add(std::make_shared<PreparedSide>(*std::move(side)));
  if (handle == 0) return Status(Errc::LIMIT, "16 million prepared lists are alive");
  return handle;
}

Status AgentCore::releaseSide(uint64_t handle) {
  if (sides().take(handle)) return {};
  return Status(Errc::INVALID_PARAM, "release a prepared list: it was released before");
}

Result<uint64_t> AgentCore::joinSides(OpType op, const PreparedSide& local,
                                      const int32_t* local_indices, const PreparedSide& remote,
                                      const int32_t* remote_indices, size_t count,
                                      const TransferOptions& options, bool merge) {
  struct Candidate {
    Backend* backend;
    std::shared_ptr<const Resolution> local, remote;
    double ns = 0;
    std::string why;
  };
  const bool notifies = options.notification && !options.notification->empty();
  std::vector<Candidate> able;
  bool mute = false;  // an engine would do, but for the notification
  for (const auto& ours : local.choices)
    for (const auto& theirs : remote.choices) {
      if (ours.backend != theirs.backend) continue;
      if (!options.backends.empty() &&
          std::find(options.backends.begin(), options.backends.end(), ours.backend->name) ==
              options.backends.end())
        continue;
      if (notifies && remote.peer && !ours.backend->has(NIXL_ENGINE_NOTIF)) {
        mute = true;
        continue;
      }
      able.push_back({ours.backend, ours.resolution, theirs.resolution, 0, {}});
    }
  if (able.empty()) {
    if (mute)
      return Status(Errc::BACKEND, "no backend that both sides have can carry a notification");
    auto names = [](const PreparedSide& side) {
      std::vector<std::string> list;
      for (auto& choice : side.choices) list.push_back(choice.backend->name);
      return joined(list);
    };
    return Status(Errc::INVALID_PARAM,
                  fmt::format("no backend has both sides: local {}, remote {}{}", names(local),
                              names(remote),
                              options.backends.empty()
                                  ? std::string()
                                  : ", allowed " + joined(options.backends)));
  }
  Transfer::Setup setup;
  const Candidate* best = &able[0];
  if (able.size() > 1) {
    // The cheapest by its own prediction; the first created where one cannot predict.
    const nixl_plan_summary summary =
        summaryOf(op, local.list.type(), remote.list.type(), count,
                  local.list.size() == 0 ? 0 : local.list.bytes() / local.list.size() * count);
    for (Candidate& candidate : able) {
      auto cost = costOf(*candidate.backend, remote.peer.get(), summary);
      if (!cost.has_value()) {
        candidate.ns = INFINITY;
        candidate.why = cost.error().message();
      } else if (!cost->reachable) {
        candidate.ns = INFINITY;
        candidate.why = cost->why;
      } else {
        candidate.ns = predictedNs(*cost, summary);
        candidate.why = fmt::format("predicted {:.1f} us", candidate.ns / 1000);
      }
      if (candidate.ns < best->ns) best = &candidate;
    }
    for (const Candidate& candidate : able)
      setup.story += fmt::format("  {} {}: {}\n", &candidate == best ? "chosen " : "refused",
                                 candidate.backend->name, candidate.why);
  }
  PlanLimits limits;
  limits.merge = merge;
  limits.max_piece = best->backend->engine->facts().max_piece;
  auto plan = makePlan(op, {&local.list, &best->local->region}, local_indices,
                       {&remote.list, &best->remote->region}, remote_indices, count, limits);
  if (!plan.has_value()) return std::move(plan).error();
  setup.agent = this;
  setup.backend = best->backend;
  setup.peer = remote.peer;
  setup.plan = *std::move(plan);
  setup.local = best->local;
  setup.remote = best->remote;
  setup.notification = options.notification.value_or(std::string());
  setup.custom = options.custom;
  setup.timeout = options.timeout;
  auto transfer = Transfer::create(std::move(setup));
  if (!transfer.has_value()) return std::move(transfer).error();
  return (*transfer)->id();
}

Result<uint64_t> AgentCore::makeTransfer(OpType op, uint64_t local_handle,
                                         const int32_t* local_indices, uint64_t remote_handle,
                                         const int32_t* remote_indices, size_t count,
                                         const TransferOptions& options) {
  auto local = sides().find(local_handle), remote = sides().find(remote_handle);
  const std::string doing = "make a transfer";
  if (!local || !remote)
    return Status(Errc::INVALID_PARAM,
                  doing + ": a prepared list was released, or the handle is not of one");
  if (local->role != PreparedSide::Role::LOCAL)
    return Status(Errc::INVALID_PARAM, doing + ": the local side was prepared as a remote one");
  if (remote->role == PreparedSide::Role::LOCAL)
    return Status(Errc::INVALID_PARAM, doing + ": the remote side was prepared as a local one");
  if (local->agent != remote->agent)
    return Status(Errc::INVALID_PARAM, doing + ": the two sides are of different agents");
  if (count == 0 || local_indices == nullptr || remote_indices == nullptr)
    return Status(Errc::INVALID_PARAM, doing + ": there are no indices");
  if (remote->peer) NIXL_TRY(current(remote->peer).within(doing));
  auto made = joinSides(op, *local, local_indices, *remote, remote_indices, count, options,
                        options.merge);
  if (!made.has_value()) return std::move(made).error().within(doing);
  return made;
}

Result<uint64_t> AgentCore::prepareTransfer(OpType op, const Rows& local, const Rows& remote,
                                            const std::string& peer,
                                            const TransferOptions& options) {
  // Words for failures only: this is called for every transfer of some programs.
  auto doing = [&] {
    return fmt::format("prepare {} \"{}\"", op == OpType::WRITE ? "WRITE to" : "READ from", peer);
  };
  if (local.columns == 3 && remote.columns == 3) {
    if (local.count != remote.count)
      return Status(Errc::INVALID_PARAM,
                    fmt::format("{}: {} local descriptors and {} remote ones", doing(), local.count,
                                remote.count));
    for (size_t i = 0; i < local.count; ++i)
      if (local.data[3 * i + 1] != remote.data[3 * i + 1])
        return Status(Errc::INVALID_PARAM,
                      fmt::format("{}: descriptor {} is {} bytes here and {} bytes there", doing(), i,
                                  local.data[3 * i + 1], remote.data[3 * i + 1]));
  }
  if (peer.empty())
    return Status(Errc::NOT_FOUND, "prepare a transfer: the peer's name is empty");
  auto theirs = resolveSide(peer, remote, options.backends);
  if (!theirs.has_value()) return std::move(theirs).error().within(doing());
  auto ours = resolveSide("", local, options.backends);
  if (!ours.has_value()) return std::move(ours).error().within(doing());
  auto made = joinSides(op, *ours, nullptr, *theirs, nullptr, theirs->list.size(), options, false);
  if (!made.has_value()) return std::move(made).error().within(doing());
  return made;
}

Result<XferState> AgentCore::post(Transfer& transfer, std::optional<std::string> notification) {
  if (transfer.peer()) NIXL_TRY(current(transfer.peer()).within("post a transfer"));
  // One that has just ended without anybody looking is given the chance to be seen as such.
  if (transfer.state() == XferState::POSTED) progress_.tryDrive(kCheckBudgetNs);
  NIXL_TRY(transfer.begin(std::move(notification)));
  const bool all = transfer.drive(base::nowNs() + inline_ns_);
  const XferState state = transfer.state();
  if (state == XferState::POSTED || transfer.inFlight()) {
    {
      base::MutexLock lock(flight_mu_);
      auto self = transfer.shared_from_this();
      if (transfer.inFlight()) {
        flight_.insert(self);
        in_flight_.store(flight_.size(), std::memory_order_release);
      }
    }
    // It may have ended in between: then nobody else would take it off the list.
    if (!transfer.inFlight()) transferEnded(transfer, nullptr);
    progress_.clockChanged();
    if (!all) {
      progress_.queue(transfer.shared_from_this());
    } else {
      progress_.wake();
    }
  }
  return seen(transfer);
}

XferState AgentCore::check(Transfer& transfer) {
  if (transfer.state() == XferState::POSTED) progress_.tryDrive(kCheckBudgetNs);
  return seen(transfer);
}

XferState AgentCore::seen(Transfer& transfer) {
  const XferState state = transfer.state();
  if (state == XferState::FAILED && transfer.peer() &&
      transfer.error().code() == Errc::REMOTE_DISCONNECT)
    seenDisconnect(transfer.peer());
  return state;
}

void AgentCore::seenDisconnect(const std::shared_ptr<Peer>& peer) {
  if (!peers_.remove(peer)) return;
  peer->down.store(true);
  peer->retire();
}

void AgentCore::transferEnded(Transfer& transfer, const Status* failure) {
  if (in_flight_.load(std::memory_order_acquire) != 0) {
    base::MutexLock lock(flight_mu_);
    flight_.erase(transfer.shared_from_this());
    in_flight_.store(flight_.size(), std::memory_order_release);
  }
  if (failure != nullptr) transferFailed(transfer, *failure);
  progress_.changed();
}

void AgentCore::transferFailed(Transfer& transfer, const Status& failure) {
  Event event{};
  event.kind = Event::Kind::TRANSFER_FAILED;
  if (transfer.peer()) {
    event.peer = transfer.peer()->name;
    event.incarnation = transfer.peer()->incarnation.hex();
  }
  event.transfer = transfer.id();
  event.code = failure.code();
  event.text = failure.message();
  notifier_.add(std::move(event));
  progress_.changed();
}

uint64_t AgentCore::clockwork(uint64_t now_ns) {
  std::vector<std::shared_ptr<Transfer>> transfers;
  {
    base::MutexLock lock(flight_mu_);
    transfers.assign(flight_.begin(), flight_.end());
  }
  uint64_t next = UINT64_MAX;
  for (auto& transfer : transfers) {
    transfer->checkTime(now_ns, stall_ns_);
    next = std::min(next, transfer->nextTime(stall_ns_));
  }
  return next;
}

Result<CostEstimate> AgentCore::estimate(const Transfer& transfer) const {
  if (transfer.peer()) NIXL_TRY(current(transfer.peer()).within("estimate a transfer"));
  const Plan& plan = transfer.plan();
  const nixl_plan_summary summary =
      summaryOf(plan.op, plan.local_kind, plan.remote_kind, plan.count, plan.bytes);
  auto cost = costOf(transfer.backend(), transfer.peer().get(), summary);
  if (!cost.has_value()) return std::move(cost).error();
  CostEstimate estimate;
  estimate.known = cost->reachable != 0;
  estimate.microseconds = predictedNs(*cost, summary) / 1000;
  estimate.error_microseconds = estimate.microseconds / 2;
  return estimate;
}

std::string AgentCore::explain(const Transfer& transfer) const {
  const Plan& plan = transfer.plan();
  std::string text = fmt::format(
      "{} {} \"{}\": {} bytes in {} pieces ({} descriptors after merging)\n{}",
      plan.op == OpType::WRITE ? "WRITE" : "READ", plan.op == OpType::WRITE ? "to" : "from",
      transfer.peer() ? transfer.peer()->name : name_, plan.bytes, plan.count, plan.descriptors,
      !transfer.story().empty() ? transfer.story()
                                : fmt::format("  chosen  {}: the only backend that has both sides\n",
                                              transfer.backend().name));
  auto cost = estimate(transfer);
  if (cost.has_value() && cost->known)
    text += fmt::format("  predicted {:.1f} us\n", cost->microseconds);
  const nixl_facts& facts = transfer.backend().engine->facts();
  const char* fences[] = {"none (peers must be asked to stop)", "revoke (the owner refuses)",
                          "lease (the writer checks)"};
  text += fmt::format("  fence   {}\n", facts.fence < 3 ? fences[facts.fence] : "unknown");
  text += fmt::format("  posting up to {} us are spent in the call, the rest by whoever polls or "
                      "the progress thread{}\n",
                      inline_ns_ / 1000, progress_.hasThread() ? "" : " (which is off)");
  text += fmt::format("  state   {}", xferStateName(transfer.state()));
  const Status error = transfer.error();
  if (!error.ok()) text += fmt::format(": {}", error.message());
  return text + "\n";
}

// ---- notifications -------------------------------------------------------------------------

Status AgentCore::sendNotification(const std::string& name, std::string_view message,
                                   const std::string& backend_name) {
  const std::string doing = fmt::format("notify \"{}\"", name);
  std::vector<std::string> names;
  if (!backend_name.empty()) names.push_back(backend_name);
  auto chosen =
      candidates(names, [](Backend& backend) { return backend.has(NIXL_ENGINE_NOTIF); });
  if (!chosen.has_value()) return std::move(chosen).error().within(doing);
  std::erase_if(*chosen, [](Backend* backend) { return !backend->has(NIXL_ENGINE_NOTIF); });
  if (chosen->empty())
    return Status(Errc::BACKEND, doing + ": no backend of this agent can send notifications");
  if (name == name_) {
    for (Backend* backend : *chosen)
      if (backend->has(NIXL_ENGINE_LOCAL))
        return notify(*backend, nullptr, metadata::kEnvelopeNotification, message).within(doing);
    return Status(Errc::NOT_FOUND, doing + ": no backend reaches this agent itself");
  }
  auto peer = peers_.find(name);
  if (!peer)
    return Status(Errc::NOT_FOUND, doing + ": its metadata is not loaded");
  for (Backend* backend : *chosen) {
    if (peer->through(*backend) == nullptr) continue;
    Status sent = notify(*backend, peer, metadata::kEnvelopeNotification, message);
    if (sent.code() == Errc::REMOTE_DISCONNECT) seenDisconnect(peer);
    return std::move(sent).within(doing);
  }
  return Status(Errc::NOT_FOUND, doing + ": its metadata holds no connection for a backend of ours");
}

Status AgentCore::sendFrame(Backend& backend, const std::shared_ptr<Peer>& peer, uint8_t kind,
                            std::string_view message) {
  const std::string frame = notifier_.frame(kind, peer ? peer->name : name_, message);
  if (!peer && !backend.has(NIXL_ENGINE_NOTIF)) {
    received(frame);  // to ourselves: no engine is needed
    return {};
  }
  GatePass pass(peer ? &peer->gate : nullptr);
  if (!pass) return Status(Errc::NOT_FOUND, fmt::format("peer \"{}\" was invalidated", peer->name));
  return backend.engine->notify(peer ? peer->through(backend)->engine_peer : nullptr, frame);
}

Status AgentCore::notify(Backend& backend, const std::shared_ptr<Peer>& peer, uint8_t kind,
                         std::string_view message) {
  Outbox& outbox = peer ? peer->outbox : to_self_;
  {
    base::MutexLock lock(outbox.mu);
    if (outbox.sending) {
      outbox.waiting.push_back({&backend, kind, std::string(message)});
      return {};
    }
    outbox.sending = true;
  }
  const Status status = sendFrame(backend, peer, kind, message);
  while (true) {
    Outbox::Message next;
    {
      base::MutexLock lock(outbox.mu);
      if (outbox.waiting.empty()) {
        outbox.sending = false;
        return status;
      }
      next = std::move(outbox.waiting.front());
      outbox.waiting.pop_front();
    }
    const Status sent = sendFrame(*next.backend, peer, next.kind, next.payload);
    if (!sent.ok())
      NIXL_LOG_WARN_EVERY(10, "agent \"{}\": a notification was not sent: {}", name_,
                          sent.message());
  }
}

Result<std::vector<Notification>> AgentCore::takeNotifications() {
  progress_.tryDrive(kCheckBudgetNs);
  if (notifier_.empty()) return std::vector<Notification>();
  return notifier_.take();
}

void AgentCore::received(std::string_view frame) {
  if (notifier_.receive(frame)) progress_.changed();
}

void AgentCore::peerChanged(uint64_t link, int32_t state, Errc status,
                            const std::string& reason) {
  auto peer = peerOfLink(link);
  if (!peer) return;
  Event event{};
  event.peer = peer->name;
  event.incarnation = peer->incarnation.hex();
  event.code = status;
  event.text = reason;
  switch (state) {
    case NIXL_PEER_UP:
      event.kind = Event::Kind::PEER_UP;
      break;
    case NIXL_PEER_SUSPECT:
      event.kind = Event::Kind::PEER_SUSPECT;
      break;
    case NIXL_PEER_DOWN:
      peer->down.store(true, std::memory_order_release);
      event.kind = Event::Kind::PEER_DOWN;
      NIXL_LOG_INFO("agent \"{}\": peer \"{}\" is down: {}", name_, peer->name, event.text);
      break;
    default:
      return;
  }
  notifier_.add(std::move(event));
  progress_.changed();
}

}  // namespace nixl::core
