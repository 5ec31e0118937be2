// The engine UCX: RDMA, GPU memory, TCP and shared memory through libucp, which is opened at run
// time. See README.md.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "connection_info.h"
#include "inspect.h"
#include "nixl/backend.h"
#include "options.h"
#include "ucp_abi.h"
#include "ucx_library.h"
#include "worker.h"

namespace nixl::ucx {

using Clock = std::chrono::steady_clock;

// A prepared request. Its peer lives as long.
struct Request {
  nixl_plan plan;
  void* host_request;
  std::shared_ptr<Peer> peer;
  unsigned worker = 0;
  bool spread = false;  // its slices go to all workers in turn
  std::atomic<uint32_t> slices{0};  // not yet reported
};

namespace {

constexpr uint64_t kMaxSlice = 256;     // pieces
constexpr size_t kMaxKey = 4096;        // bytes
constexpr auto kInlineTime = std::chrono::microseconds(40);
constexpr unsigned kRoundsPerLook = 16;  // rounds of progress between looks at the clock

constexpr nixl_option kOptions[] = {
    {"ucx_devices", "", "shown for programs that look for it; device_list is the one that is read"},
    {"device_list", "", "devices to use, such as mlx5_0,mlx5_1:1 or eth0; empty: all"},
    {"num_workers", "1", "UCX workers; requests are spread over them"},
    {"ucx_error_handling_mode", "peer",
     "peer: notice peers that die; none: also use shared memory"},
    {"num_threads", "0",
     "more than 0: at least one worker more than that, and large requests use all"},
    {"split_batch_size", "1024", "with num_threads: pieces from which a request is spread"},
    {"engine_config", "", "UCX options as KEY=VALUE,KEY=VALUE; UCX_KEY in the environment wins"},
    {"ucx_num_device_channels", "4", "GPU device channels, UCX 1.21 and newer"},
    {"ucx_ep_close_force", "false", "close connections without flushing them"},
    {"ucx_path", "", "libucp.so.0 to open, or its folder; empty: NIXL_UCX_PATH, then search"},
    {nullptr, nullptr, nullptr},
};

const char* memTypeWord(uint32_t kind) {
  return kind == static_cast<uint32_t>(MemType::VRAM) ? "VRAM" : "DRAM";
}

nixl_facts ucxFacts() {
  nixl_facts facts =
      backendFacts({MemType::DRAM, MemType::VRAM},
                   NIXL_ENGINE_LOCAL | NIXL_ENGINE_REMOTE | NIXL_ENGINE_NOTIF, NIXL_FENCE_NONE);
  facts.max_slice = kMaxSlice;
  return facts;
}

Errc errcOf(abi::Status status) {
  switch (status) {
    case abi::kOk:
      return Errc::OK;
    case abi::kNotConnected:
    case abi::kConnectionReset:
    case abi::kEndpointTimeout:
    case abi::kCanceled:
      return Errc::REMOTE_DISCONNECT;
    case abi::kInvalidParam:
      return Errc::INVALID_PARAM;
    default:
      // The transports' own ways to say that the other side is gone.
      return status <= abi::kFirstLinkFailure && status >= abi::kLastEndpointFailure
                 ? Errc::REMOTE_DISCONNECT
                 : Errc::BACKEND;
  }
}

// The peer is a process of this host that has ended, though its parent may not have noticed.
bool hasEnded(const Peer& peer) {
  if (peer.self || peer.info.pid == 0 || peer.info.host != bootId()) return false;
  const std::string path = "/proc/" + std::to_string(peer.info.pid) + "/stat";
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return errno == ENOENT;
  char text[512];
  text[std::fread(text, 1, sizeof text - 1, file)] = '\0';
  std::fclose(file);
  const char* name_end = std::strrchr(text, ')');  // the name may hold anything
  return name_end != nullptr && name_end[1] == ' ' && (name_end[2] == 'Z' || name_end[2] == 'X');
}

// Shared-memory transports say "input/output error" when they touch the memory of a process that is
// gone, and the connection notices only later.
Errc errcOf(const Peer& peer, abi::Status status) {
  if (status == abi::kIoError && hasEnded(peer)) return Errc::REMOTE_DISCONNECT;
  return errcOf(status);
}

uint64_t nanosecondsNow() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
          .count());
}

}  // namespace

// A registration of ours.
struct Region : KeyHolder {
  abi::Mem mem = nullptr;
};

// Threads: any; see worker.h for the locks. A worker's lock is never held while the host is called,
// and no two of them are held at once.
class Ucx final : public BackendEngine {
 public:
  explicit Ucx(const BackendArgs& args);
  ~Ucx() override;

  int32_t shutDown(uint64_t deadline_ns) override;
  void afterFork() override { forked_ = true; }

  std::string_view localInfo() override { return local_info_; }
  void* connect(std::string_view name, std::string_view info, void* host_peer) override;
  void disconnect(void* peer) override;

  void registerMemory(const nixl_region* regions, uint64_t count, void** handles) override;
  std::string_view publicKey(void* region) override {
    return static_cast<Region*>(static_cast<KeyHolder*>(region))->bytes;
  }
  int32_t deregister(void* const* regions, uint64_t count, uint64_t deadline_ns) override;
  void* load(void* peer, MemType kind, std::string_view key) override;
  void unload(void* remote) override;

  void* prepare(const nixl_plan& plan, void* host_request) override;
  int32_t post(void* request, const nixl_post& post) override;
  int32_t cancel(void* request) override {
    return static_cast<Request*>(request)->slices.load(std::memory_order_acquire) == 0 ? 0 : 1;
  }
  void release(void* request) override { delete static_cast<Request*>(request); }
  int32_t notify(void* peer, std::string_view bytes) override;
  void cost(void* peer, const nixl_plan_summary& plan, nixl_cost& out) override;

  int64_t progress(uint64_t budget_ns) override;
  int32_t arm() override;
  uint32_t waitFds(int32_t* fds, uint32_t capacity) override;

 private:
  using WorkerLock = std::unique_lock<PoliteMutex>;

  std::shared_ptr<Peer> newPeer(std::string name, ConnectionInfo info, void* host_peer);
  template <bool kWrite>
  uint64_t postPieces(Worker& worker, abi::Ep ep, Slice& slice, const nixl_plan& plan);
  size_t tell(Worker& worker, WorkerLock& lock);
  void tellSlice(Slice& slice);
  void tellPeer(const PeerReport& report);
  void wakeIfAsleep();
  void passLogOn();
  void configure(abi::Config config);
  void link(KeyHolder& key);
  void unlink(KeyHolder& key);
  void unmap(Region* region);
  bool drained();
  bool settle(uint64_t deadline_ns);
  std::string transports(abi::Ep ep) const;

  const Options options_;
  const Library& library_;
  const abi::Functions& ucp_;
  abi::Context context_ = nullptr;
  std::string local_info_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::shared_ptr<Peer> self_;
  bool wakeup_ = true;
  std::atomic<unsigned> next_worker_{0};
  // arm() succeeded, and the host was not woken since. Progress by another thread does not clear
  // it: the one that sleeps sleeps on.
  std::atomic<bool> asleep_{false};
  std::atomic<bool> closing_{false};
  bool forked_ = false;

  PluginMutex peers_mutex_;  // leaf
  std::vector<std::shared_ptr<Peer>> peers_ NIXL_PLUGIN_GUARDED_BY(peers_mutex_);
  PluginMutex keys_mutex_;  // leaf; also of the links in each
  KeyHolder* keys_ NIXL_PLUGIN_GUARDED_BY(keys_mutex_) = nullptr;
};

// ---- life ---------------------------------------------------------------------------------------

Ucx::Ucx(const BackendArgs& args)
    : BackendEngine(args, ucxFacts()),
      options_(parseOptions(args.options)),
      library_(Library::open(options_.library)),
      ucp_(library_.ucp()) {
  for (const std::string& name : options_.unknown)
    log(NIXL_LEVEL_INFO, __FILE__, __LINE__, "UCX: option %s is not known and has no effect",
        name.c_str());

  LogCapture said;
  const auto check = [&](abi::Status status, const char* what) {
    if (status != abi::kOk)
      throw BackendFailure(
          Errc::BACKEND,
          said.explain(std::string(what) + ": " + ucp_.status_string(status)) + startAdvice(),
          status);
  };
  abi::Config raw = nullptr;
  check(ucp_.config_read(nullptr, nullptr, &raw), "read the configuration");
  const std::unique_ptr<abi::ConfigObject, void (*)(abi::Config)> config(raw, ucp_.config_release);
  configure(raw);

  abi::Params params{};
  params.field_mask = abi::kParamFeatures | abi::kParamRequestSize | abi::kParamMtWorkersShared |
                      abi::kParamName;
  params.features = abi::kFeatureRma | abi::kFeatureAm | abi::kFeatureWakeup;
  params.request_size = sizeof(RequestArea);
  // Memory is registered from any thread, beside the workers.
  params.mt_workers_shared = 1;
  params.name = agent_.c_str();
  check(ucp_.init_version(1, 13, &params, raw, &context_), "start with these settings");

  try {
    for (unsigned i = 0; i < options_.workers; ++i)
      workers_.push_back(std::make_unique<Worker>(library_, context_, i, wakeup_, i == 0));
    self_ = newPeer("itself", {}, nullptr);
    self_->self = true;
  } catch (...) {
    workers_.clear();
    ucp_.cleanup(context_);
    throw;
  }

  ConnectionInfo info;
  info.version = library_.version();
  info.peer_errors = options_.peer_errors;
  info.host = bootId();
  info.pid = static_cast<uint32_t>(::getpid());
  info.address = workers_[0]->address();
  local_info_ = encode(info);

  if (!said.text().empty())
    log(NIXL_LEVEL_WARN, __FILE__, __LINE__, "UCX says: %s", said.text().c_str());
  static std::atomic<bool> told{false};
  if (options_.peer_errors && library_.version() < Version{1, 14, 0} && !told.exchange(true))
    log(NIXL_LEVEL_WARN, __FILE__, __LINE__,
        "UCX %s (%s) sends what stays on this host through TCP, since its other transports do not "
        "notice lost peers; newer ones are more than ten times faster: pip install libucx-cu12, or "
        "name a newer library in NIXL_UCX_PATH",
        library_.version().text().c_str(), library_.path().c_str());
  log(NIXL_LEVEL_DEBUG, __FILE__, __LINE__, "UCX %s from %s, %u workers, error handling %s",
      library_.version().text().c_str(), library_.path().c_str(), options_.workers,
      options_.peer_errors ? "peer" : "none");
}

void Ucx::configure(abi::Config config) {
  const auto inEnvironment = [](const std::string& key) {
    return ::getenv(("UCX_" + key).c_str()) != nullptr;
  };
  const auto set = [&](const Setting& setting, const char* where) {
    const abi::Status status =
        ucp_.config_modify(config, setting.key.c_str(), setting.value.c_str());
    if (status == abi::kOk) return;
    if (status == abi::kNoElement) {
      log(NIXL_LEVEL_INFO, __FILE__, __LINE__, "UCX %s has no option %s; it has no effect",
          library_.version().text().c_str(), setting.key.c_str());
      return;
    }
    throw BackendFailure(Errc::BACKEND,
                         std::string(where) + ": " + setting.key + "=" + setting.value +
                             ": " + ucp_.status_string(status),
                         status);
  };
  for (const Setting& setting : defaultSettings(library_.version(), options_))
    if (!inEnvironment(setting.key))  // not every build has every option
      ucp_.config_modify(config, setting.key.c_str(), setting.value.c_str());
  for (const Setting& setting : options_.wished)
    if (!inEnvironment(setting.key)) set(setting, "option engine_config");
  for (const Setting& setting : options_.forced) set(setting, "options");
}

Ucx::~Ucx() {
  if (forked_) {  // all of it is the parent's
    for (auto& worker : workers_) (void)worker.release();
    return;
  }
  if (!closing_.load()) shutDown(nanosecondsNow() + 1'000'000'000);
  // What the host did not give back.
  while (keys_ != nullptr) {
    KeyHolder* key = keys_;
    keys_ = key->next;
    for (auto& worker : workers_) worker->destroyKey(*key);
    if (key->region)
      unmap(static_cast<Region*>(key));
    else
      delete key;
  }
  if (!drained()) {  // UCX still holds pointers into it
    for (auto& worker : workers_) (void)worker.release();
    return;
  }
  workers_.clear();
  ucp_.cleanup(context_);
}

// True when UCX has nothing of ours left.
bool Ucx::drained() {
  for (auto& worker : workers_) {
    const WorkerLock lock(worker->mutex);
    if (worker->endpoints() > 0 || worker->inFlight() != nullptr ||
        worker->messagesInFlight() > 0 || worker->reporting || !worker->reports.empty())
      return false;
  }
  return true;
}

// UCX still has things to put away after it reported an endpoint as closed, and aborts the process
// when a worker is destroyed before it did: hence the quiet rounds at the end.
bool Ucx::settle(uint64_t deadline_ns) {
  for (unsigned idle = 0, quiet = 0; quiet < kQuietRounds;) {
    quiet = drained() ? quiet + 1 : 0;
    if (progress(100'000) > 0)
      idle = 0;
    else if (nanosecondsNow() >= deadline_ns)
      return false;
    else if (++idle > 1000)
      std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

int32_t Ucx::shutDown(uint64_t deadline_ns) {
  closing_.store(true);
  std::vector<std::shared_ptr<Peer>> peers;
  {
    const PluginLock lock(peers_mutex_);
    peers = std::move(peers_);
    peers_.clear();
  }
  const auto closeAll = [&](bool force) {
    for (auto& worker : workers_) {
      const WorkerLock lock(worker->mutex);
      worker->closeAll(force);
    }
  };
  for (const auto& peer : peers) {
    const std::lock_guard told(peer->reporting);
    peer->host_peer = nullptr;
    peer->force.store(options_.force_close);
  }
  self_->force.store(options_.force_close);
  // First politely, so that messages just sent arrive; then by force.
  const uint64_t now = nanosecondsNow();
  const uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
  if (!options_.force_close) {
    closeAll(false);
    if (settle(now + std::min<uint64_t>(left / 2, 500'000'000))) return 0;
  }
  closeAll(true);
  if (settle(deadline_ns)) return 0;

  for (auto& worker : workers_) {
    WorkerLock lock(worker->mutex);
    worker->abandon();
    tell(*worker, lock);
  }
  return fail(Errc::NOT_QUIESCED, "operations were still in flight at the deadline");
}

// ---- peers --------------------------------------------------------------------------------------

std::shared_ptr<Peer> Ucx::newPeer(std::string name, ConnectionInfo info, void* host_peer) {
  auto peer = std::make_shared<Peer>();
  peer->name = std::move(name);
  peer->info = std::move(info);
  peer->host_peer = host_peer;
  peer->endpoints.resize(workers_.size());
  for (size_t i = 0; i < workers_.size(); ++i) {
    peer->endpoints[i].worker = workers_[i].get();
    peer->endpoints[i].peer = peer.get();
  }
  return peer;
}

void* Ucx::connect(std::string_view name, std::string_view info, void* host_peer) {
  if (closing_.load()) throw BackendFailure(Errc::SHUT_DOWN, "the engine is being shut down");
  auto peer = newPeer(std::string(name), decode(info), host_peer);
  if (peer->info.peer_errors != options_.peer_errors)
    log(NIXL_LEVEL_INFO, __FILE__, __LINE__,
        "UCX: \"%s\" has another ucx_error_handling_mode than this agent", peer->name.c_str());
  const Version mine = library_.version(), theirs = peer->info.version;
  if (mine.major != theirs.major || mine.minor != theirs.minor)
    log(NIXL_LEVEL_WARN, __FILE__, __LINE__,
        "UCX: \"%s\" has UCX %s and this agent %s; different versions do not always understand "
        "each other, transfers may fail or stall",
        peer->name.c_str(), theirs.text().c_str(), mine.text().c_str());
  {
    LogCapture said;
    Worker& worker = *workers_[0];
    const WorkerLock lock(worker.mutex);
    abi::Status status = abi::kOk;
    const abi::Ep ep = worker.endpoint(*peer, options_.peer_errors, &status);
    if (ep == nullptr)
      throw BackendFailure(Errc::BACKEND,
                           said.explain("to \"" + peer->name +
                                        "\": " + ucp_.status_string(status)),
                           status);
    log(NIXL_LEVEL_DEBUG, __FILE__, __LINE__, "UCX: \"%s\" (UCX %s) over %s", peer->name.c_str(),
        peer->info.version.text().c_str(), transports(ep).c_str());
    // UCX connects with the first bytes sent; what it cannot reach shows then.
    worker.reports.peers.push_back({peer, true, abi::kOk});
  }
  {
    const PluginLock lock(peers_mutex_);
    peers_.push_back(peer);
  }
  wake();
  return peer.get();
}

void Ucx::disconnect(void* handle) {
  if (forked_) return;
  const std::shared_ptr<Peer> peer = static_cast<Peer*>(handle)->shared_from_this();
  {
    const std::lock_guard told(peer->reporting);
    peer->host_peer = nullptr;
  }
  {
    const PluginLock lock(peers_mutex_);
    peers_.erase(std::remove(peers_.begin(), peers_.end(), peer), peers_.end());
  }
  abi::Status none = abi::kOk;
  const bool was_lost = !peer->lost.compare_exchange_strong(none, abi::kCanceled);
  // With nothing in flight the connection may end politely: what was sent last still arrives.
  peer->force = was_lost || options_.force_close || peer->slices.load() > 0;
  for (auto& worker : workers_) worker->wantClose(peer);
  progress(0);
  wake();
}

void Ucx::tellPeer(const PeerReport& report) {
  Peer& peer = *report.peer;
  const std::lock_guard told(peer.reporting);
  if (peer.host_peer == nullptr) return;
  if (report.up)
    peerState(peer.host_peer, NIXL_PEER_UP, Errc::OK, nullptr);
  else
    peerState(peer.host_peer, NIXL_PEER_DOWN, Errc::REMOTE_DISCONNECT,
              ucp_.status_string(report.status));
}

std::string Ucx::transports(abi::Ep ep) const {
  if (ucp_.ep_query == nullptr || library_.version() < Version{1, 15, 0}) return "unknown";
  abi::TransportEntry entries[16]{};
  abi::EpAttr attr{};
  attr.field_mask = abi::kEpAttrTransports;
  attr.transports = {entries, 16, sizeof entries[0]};
  if (ucp_.ep_query(ep, &attr) != abi::kOk) return "unknown";
  std::string text;
  for (unsigned i = 0; i < attr.transports.num_entries; ++i)
    text += (text.empty() ? "" : " ") + std::string(entries[i].transport_name) + "/" +
            entries[i].device_name;
  return text;
}

// ---- memory -------------------------------------------------------------------------------------

void Ucx::link(KeyHolder& key) {
  if (workers_.size() > 1) key.more.reset(new abi::Rkey[workers_.size() - 1]());
  const PluginLock lock(keys_mutex_);
  key.next = keys_;
  if (keys_ != nullptr) keys_->previous = &key;
  keys_ = &key;
}

void Ucx::unlink(KeyHolder& key) {
  {
    const PluginLock lock(keys_mutex_);
    (key.previous != nullptr ? key.previous->next : keys_) = key.next;
    if (key.next != nullptr) key.next->previous = key.previous;
  }
  for (auto& worker : workers_) {
    if (worker->index() == 0 ? key.rkey == nullptr : key.more[worker->index() - 1] == nullptr)
      continue;
    const WorkerLock lock(worker->mutex);
    worker->destroyKey(key);
  }
}

void Ucx::registerMemory(const nixl_region* regions, uint64_t count, void** handles) {
  std::vector<std::unique_ptr<Region>> made;
  made.reserve(count);
  const auto refuse = [&](const nixl_region& region, const std::string& why, abi::Status status) {
    for (auto& each : made)
      if (each->mem != nullptr) ucp_.mem_unmap(context_, each->mem);
    char where[96];
    std::snprintf(where, sizeof where, "%s at 0x%llx, %llu bytes: ",
                  memTypeWord(region.kind), static_cast<unsigned long long>(region.addr),
                  static_cast<unsigned long long>(region.length));
    throw BackendFailure(Errc::BACKEND, where + why, status);
  };
  for (uint64_t i = 0; i < count; ++i) {
    const nixl_region& given = regions[i];
    abi::MemMapParams params{};
    params.field_mask = abi::kMemMapAddress | abi::kMemMapLength;
    params.address = reinterpret_cast<void*>(given.addr);
    params.length = given.length;
    if ((given.rights & 3u) != 3u) {
      params.field_mask |= abi::kMemMapProt;
      params.prot = abi::kProtLocalRead | abi::kProtLocalWrite |
                    (given.rights & 1u ? abi::kProtRemoteRead : 0) |
                    (given.rights & 2u ? abi::kProtRemoteWrite : 0);
    }
    auto& region = made.emplace_back(std::make_unique<Region>());
    region->region = true;
    if (const abi::Status status = ucp_.mem_map(context_, &params, &region->mem);
        status != abi::kOk) {
      region->mem = nullptr;
      refuse(given, ucp_.status_string(status), status);
    }
    if (given.kind == static_cast<uint32_t>(MemType::VRAM)) {
      abi::MemAttr attr{};
      attr.field_mask = abi::kMemAttrType;
      if (ucp_.mem_query(region->mem, &attr) == abi::kOk && attr.mem_type == abi::kMemoryHost)
        refuse(given, "UCX finds host memory there; its build may lack support for this GPU", 0);
    }
    void* packed = nullptr;
    size_t size = 0;
    if (const abi::Status status = ucp_.rkey_pack(context_, region->mem, &packed, &size);
        status != abi::kOk)
      refuse(given, std::string("pack its key: ") + ucp_.status_string(status), status);
    region->bytes.assign(static_cast<const char*>(packed), size);
    ucp_.rkey_buffer_release(packed);
  }
  for (uint64_t i = 0; i < count; ++i) {
    link(*made[i]);
    handles[i] = static_cast<KeyHolder*>(made[i].release());
  }
}

void Ucx::unmap(Region* region) {
  ucp_.mem_unmap(context_, region->mem);
  delete region;
}

int32_t Ucx::deregister(void* const* regions, uint64_t count, uint64_t) {
  if (forked_) return 0;
  for (uint64_t i = 0; i < count; ++i) {
    auto* region = static_cast<Region*>(static_cast<KeyHolder*>(regions[i]));
    unlink(*region);
    unmap(region);
  }
  return 0;
}

void* Ucx::load(void*, MemType, std::string_view key) {
  if (key.empty() || key.size() > kMaxKey)
    throw BackendFailure(Errc::BACKEND, "a peer's memory key has " +
                                            std::to_string(key.size()) + " bytes; 1 to " +
                                            std::to_string(kMaxKey) + " are possible");
  auto holder = std::make_unique<KeyHolder>();
  holder->bytes = key;
  link(*holder);
  return holder.release();
}

void Ucx::unload(void* remote) {
  if (forked_) return;
  auto* key = static_cast<KeyHolder*>(remote);
  unlink(*key);
  delete key;
}

// ---- transfers ----------------------------------------------------------------------------------

void* Ucx::prepare(const nixl_plan& plan, void* host_request) {
  auto request = std::make_unique<Request>();
  request->plan = plan;
  request->host_request = host_request;
  request->peer =
      plan.peer == nullptr ? self_ : static_cast<Peer*>(plan.peer)->shared_from_this();
  request->worker = 0;
  if (workers_.size() > 1) {
    request->worker = next_worker_.fetch_add(1, std::memory_order_relaxed) %
                      static_cast<unsigned>(workers_.size());
    request->spread = options_.threads > 0 && plan.count >= options_.split_batch_size;
  }
  if (plan.custom_size > 0) {
    const std::string custom(plan.custom, plan.custom_size);
    if (const size_t at = custom.find("worker_id="); at != std::string::npos) {
      const char* digits = custom.c_str() + at + 10;
      char* end = nullptr;
      const unsigned long id = std::strtoul(digits, &end, 10);
      if (end != digits && *digits != '-' && id < workers_.size()) {
        request->worker = static_cast<unsigned>(id);
        request->spread = false;
      } else {
        log(NIXL_LEVEL_WARN, __FILE__, __LINE__,
            "UCX: \"%s\" names no worker; there are %zu, counted from 0", custom.c_str(),
            workers_.size());
      }
    }
  }
  return request.release();
}

template <bool kWrite>
uint64_t Ucx::postPieces(Worker& worker, abi::Ep ep, Slice& slice, const nixl_plan& plan) {
  abi::RequestParam param{};
  param.op_attr_mask = abi::kOpCallback | abi::kOpUserData | abi::kOpMemh |
                       (slice.count > 1 ? abi::kOpMultiSend : 0);
  param.cb.send = &Worker::pieceEnded;
  param.user_data = &slice;
  const unsigned index = worker.index();
  uint64_t accepted = 0;
  for (uint64_t i = slice.first, end = slice.first + slice.count; i < end; ++i) {
    const uint64_t length = plan.length[i];
    if (length == 0) continue;
    auto* local = static_cast<Region*>(static_cast<KeyHolder*>(
        plan.local_regions[plan.local_region != nullptr ? plan.local_region[i] : 0]));
    auto* remote = static_cast<KeyHolder*>(
        plan.remote_regions[plan.remote_region != nullptr ? plan.remote_region[i] : 0]);
    abi::Rkey rkey = index == 0 ? remote->rkey : remote->more[index - 1];
    if (rkey == nullptr) {
      abi::Status status = abi::kOk;
      rkey = worker.unpack(*remote, ep, &status);
      if (rkey == nullptr) {
        slice.failures.push_back({i, status});
        continue;
      }
    }
    param.memh = local->mem;
    auto* address = reinterpret_cast<void*>(plan.local_addr[i]);
    abi::StatusPointer started;
    if constexpr (kWrite)
      started = ucp_.put_nbx(ep, address, length, plan.remote_addr[i], rkey, &param);
    else
      started = ucp_.get_nbx(ep, address, length, plan.remote_addr[i], rkey, &param);
    if (abi::isError(started)) {
      slice.failures.push_back({i, abi::errorOf(started)});
      continue;
    }
    ++accepted;
    slice.bytes += length;
    if (started != nullptr) {
      static_cast<RequestArea*>(started)->piece = i;
      ++slice.outstanding;
    }
  }
  return accepted;
}

int32_t Ucx::post(void* handle, const nixl_post& post) {
  auto& request = *static_cast<Request*>(handle);
  Peer& peer = *request.peer;
  const nixl_plan& plan = request.plan;
  const bool write = plan.op == static_cast<uint32_t>(OpType::WRITE);
  if (closing_.load(std::memory_order_relaxed))
    return fail(Errc::SHUT_DOWN, "the engine is being shut down");
  if (const abi::Status lost = peer.lost.load(std::memory_order_relaxed); lost != abi::kOk)
    return fail(Errc::REMOTE_DISCONNECT, ucp_.status_string(lost), lost);

  const size_t turn = request.worker + (request.spread ? post.first / kMaxSlice : 0);
  Worker& worker = *workers_[turn % workers_.size()];
  WorkerLock lock(worker.mutex);
  abi::Status status = abi::kOk;
  const abi::Ep ep = worker.endpoint(peer, options_.peer_errors, &status);
  if (ep == nullptr) return fail(errcOf(peer, status), ucp_.status_string(status), status);

  Slice* slice = worker.newSlice();
  slice->worker = &worker;
  slice->request = &request;
  slice->attempt = post.attempt;
  slice->first = post.first;
  slice->count = post.count;
  slice->bytes = 0;
  slice->outstanding = 1;  // ours
  const uint64_t accepted = write ? postPieces<true>(worker, ep, *slice, plan)
                                  : postPieces<false>(worker, ep, *slice, plan);
  if (accepted == 0 && !slice->failures.empty() && slice->failures.size() == slice->count) {
    status = slice->failures[0].status;
    worker.recycle(slice);
    tell(worker, lock);
    return fail(errcOf(peer, status), ucp_.status_string(status), status);
  }
  request.slices.fetch_add(1, std::memory_order_relaxed);
  peer.slices.fetch_add(1, std::memory_order_relaxed);
  worker.startSlice(slice);
  if (write && accepted > 0) {
    // A put is done when its source may change; the flush is done when the target has it all.
    abi::RequestParam param{};
    param.op_attr_mask = abi::kOpCallback | abi::kOpUserData;
    param.cb.send = &Worker::flushEnded;
    param.user_data = slice;
    const abi::StatusPointer flushing = ucp_.ep_flush_nbx(ep, &param);
    if (abi::isError(flushing))
      slice->flush = abi::errorOf(flushing);
    else if (flushing != nullptr)
      ++slice->outstanding;
  }
  if (slice->outstanding > 1) {
    const auto end = Clock::now() + kInlineTime;
    unsigned idle = 0;
    for (unsigned round = 1; slice->outstanding > 1 && idle < 3; ++round) {
      idle = worker.advance() == 0 ? idle + 1 : 0;
      if (round % kRoundsPerLook == 0 && (worker.mutex.wanted() || Clock::now() >= end)) break;
    }
  }
  bool in_flight = --slice->outstanding > 0;
  if (!in_flight) {
    if (slice->failures.empty() && slice->flush == abi::kOk) {
      worker.takeSlice(slice);
      worker.recycle(slice);
      request.slices.fetch_sub(1, std::memory_order_release);
      peer.slices.fetch_sub(1, std::memory_order_relaxed);
      tell(worker, lock);
      return 0;
    }
    worker.sliceEnded(slice);
    in_flight = true;
  }
  tell(worker, lock);
  lock.unlock();
  if (in_flight) wakeIfAsleep();
  return 1;
}

// Reports a slice that ended, in as few ranges as its failures allow.
void Ucx::tellSlice(Slice& slice) {
  Request& request = *slice.request;
  Peer& peer = *request.peer;
  const nixl_plan& plan = request.plan;
  void* const host_request = request.host_request;
  const uint64_t end = slice.first + slice.count;
  struct Range {
    uint64_t first, count, bytes;
    abi::Status status;
  };
  std::vector<Range> ranges;
  if (slice.failures.empty() && slice.flush == abi::kOk) {
    // the usual case, without a list
  } else {
    std::sort(slice.failures.begin(), slice.failures.end(),
              [](const PieceFailure& a, const PieceFailure& b) { return a.piece < b.piece; });
    size_t next = 0;
    for (uint64_t i = slice.first; i < end; ++i) {
      abi::Status status = slice.flush;
      if (next < slice.failures.size() && slice.failures[next].piece == i)
        status = slice.failures[next++].status;
      const uint64_t bytes = status == abi::kOk ? plan.length[i] : 0;
      if (!ranges.empty() && ranges.back().status == status) {
        ++ranges.back().count;
        ranges.back().bytes += bytes;
      } else {
        ranges.push_back({i, 1, bytes, status});
      }
    }
  }
  std::vector<std::string> texts;
  std::vector<Errc> codes;
  for (const Range& range : ranges) {
    texts.push_back(range.status == abi::kOk ? "" : ucp_.status_string(range.status));
    codes.push_back(slice.abandoned ? Errc::CANCELED : errcOf(peer, range.status));
  }
  // With the last report the request may be released: nothing of it is touched after this.
  request.slices.fetch_sub(1, std::memory_order_release);
  peer.slices.fetch_sub(1, std::memory_order_relaxed);
  if (ranges.empty()) {
    complete(host_request, slice.attempt, slice.first, slice.count, Errc::OK, slice.bytes);
    return;
  }
  for (size_t i = 0; i < ranges.size(); ++i) {
    const Range& range = ranges[i];
    complete(host_request, slice.attempt, range.first, range.count,
             codes[i], range.bytes, range.status, range.status == abi::kOk ? nullptr : texts[i].c_str());
  }
}

// Tells the host what the worker learnt. `lock` is given up meanwhile.
size_t Ucx::tell(Worker& worker, WorkerLock& lock) {
  if (worker.reporting || worker.reports.empty()) return 0;
  size_t told = 0;
  worker.reporting = true;
  while (!worker.reports.empty()) {
    std::swap(worker.reports, worker.telling);
    lock.unlock();
    for (Slice* slice : worker.telling.ended) tellSlice(*slice);
    for (const std::string& message : worker.telling.messages) deliver(message);
    for (const PeerReport& report : worker.telling.peers) tellPeer(report);
    lock.lock();
    told += worker.telling.size();
    for (Slice* slice : worker.telling.ended)
      if (!slice->abandoned) worker.recycle(slice);
    worker.telling.clear();
  }
  worker.reporting = false;
  return told;
}

// ---- notifications ------------------------------------------------------------------------------

int32_t Ucx::notify(void* handle, std::string_view bytes) {
  if (closing_.load(std::memory_order_relaxed))
    return fail(Errc::SHUT_DOWN, "the engine is being shut down");
  Worker& worker = *workers_[0];
  WorkerLock lock(worker.mutex);
  if (handle == nullptr) {
    worker.reports.messages.emplace_back(bytes);
    lock.unlock();
    wakeIfAsleep();
    return 1;
  }
  Peer& peer = *static_cast<Peer*>(handle);
  abi::Status status = abi::kOk;
  const abi::Ep ep = worker.endpoint(peer, options_.peer_errors, &status);
  if (ep != nullptr) status = worker.send(ep, bytes);
  if (status < 0)
    return fail(errcOf(peer, status),
                "to \"" + peer.name + "\": " + ucp_.status_string(status), status);
  if (status == abi::kInProgress) {
    worker.advance();
    tell(worker, lock);
    lock.unlock();
    wakeIfAsleep();
    return 1;
  }
  return 0;
}

// ---- progress -----------------------------------------------------------------------------------

int64_t Ucx::progress(uint64_t budget_ns) {
  if (forked_) return 0;
  const auto end = Clock::now() + std::chrono::nanoseconds(budget_ns);
  int64_t total = 0;
  for (auto& worker : workers_) {
    WorkerLock lock(worker->mutex, std::try_to_lock);
    if (!lock) continue;  // a poster is at it, and moves things itself
    for (unsigned round = 1;; ++round) {
      const unsigned moved = worker->advance();
      total += moved;
      if (moved == 0 || worker->mutex.wanted()) break;
      if (round % kRoundsPerLook == 0 && Clock::now() >= end) break;
    }
    total += static_cast<int64_t>(tell(*worker, lock));
  }
  if (anyLogLines()) passLogOn();
  return total;
}

// What is an error to UCX, such as a connection that broke, is told to the user by other means.
void Ucx::passLogOn() {
  for (const LogLine& line : takeLogLines())
    log(line.level <= abi::kLogError ? NIXL_LEVEL_WARN : NIXL_LEVEL_INFO, __FILE__, __LINE__,
        "UCX says: %s", line.text.c_str());
}

int32_t Ucx::arm() {
  for (auto& worker : workers_) {
    const WorkerLock lock(worker->mutex, std::try_to_lock);
    if (!lock) return 1;
    const abi::Status status = worker->arm();
    if (status == abi::kBusy) return 1;
    if (status != abi::kOk)
      return fail(Errc::BACKEND,
                  std::string("arm a worker: ") + ucp_.status_string(status), status);
    asleep_.store(true);
  }
  return 0;
}

uint32_t Ucx::waitFds(int32_t* fds, uint32_t capacity) {
  uint32_t count = 0;
  for (auto& worker : workers_)
    if (worker->eventFd() >= 0) {
      if (count < capacity) fds[count] = worker->eventFd();
      ++count;
    }
  return count;
}

void Ucx::wakeIfAsleep() {
  if (asleep_.exchange(false)) wake();
}

// ---- prediction ---------------------------------------------------------------------------------

void Ucx::cost(void* handle, const nixl_plan_summary&, nixl_cost& out) {
  // Without an answer from UCX: roughly what process_vm_writev() on one host gives.
  out.ns_fixed = 1500;
  out.ns_per_piece = 500;
  out.bytes_per_second = 6e9;
  out.reachable = 1;
  Peer& peer = handle == nullptr ? *self_ : *static_cast<Peer*>(handle);
  Worker& worker = *workers_[0];
  const WorkerLock lock(worker.mutex);
  abi::Status status = abi::kOk;
  const abi::Ep ep = worker.endpoint(peer, options_.peer_errors, &status);
  if (ep == nullptr) {
    out.reachable = 0;
    std::snprintf(out.why, sizeof out.why, "%s",
                  ucp_.status_string(status));
    return;
  }
  const auto seconds = [&](size_t size) {
    abi::EpPerfParam param{abi::kEpPerfParamMessageSize, size};
    abi::EpPerfAttr attr{abi::kEpPerfAttrEstimatedTime, 0};
    return ucp_.ep_evaluate_perf != nullptr && ucp_.ep_evaluate_perf(ep, &param, &attr) == abi::kOk
               ? attr.estimated_time
               : 0.0;
  };
  constexpr size_t kLarge = 16 << 20;
  const double small = seconds(8), large = seconds(kLarge);
  if (small > 0 && large > small) {
    out.ns_fixed = small * 1e9;
    out.bytes_per_second = kLarge / (large - small);
  }
  std::snprintf(out.why, sizeof out.why, "%s", transports(ep).c_str());
}

BackendDescription describeUcx() {
  return {"UCX",      "2.0.0",   "RDMA, GPU memory, TCP and shared memory through UCX",
          kOptions,   ucxFacts(), kVariables,
          inspect};
}

}  // namespace nixl::ucx

NIXL_BACKEND(nixl::ucx::Ucx, nixl::ucx::describeUcx(), nixl::ucx::whyNoLibrary)
