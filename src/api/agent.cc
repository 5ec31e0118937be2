// The C++ agent face: checks handles, converts, and turns failures into exceptions.

#include "nixl/agent.h"

#include <fmt/format.h>

#include "base/config.h"
#include "core/agent_core.h"
#include "plugin/inspect.h"
#include "plugin/manager.h"

namespace nixl {
namespace {

// Names may hold any bytes, and what() ends at a NUL: control characters become visible.
std::string printable(const std::string& text) {
  std::string shown;
  shown.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      shown += c;
    } else {
      shown += fmt::format("\\x{:02x}", byte);
    }
  }
  return shown;
}

[[noreturn]] void raise(const Status& status) {
  throw Error(status.code(), printable(status.message()));
}

void orThrow(const Status& status) {
  if (!status.ok()) raise(status);
}

template <typename T>
T orThrow(Result<T> result) {
  if (!result.has_value()) raise(result.error());
  return *std::move(result);
}

std::shared_ptr<core::Transfer> known(Transfer transfer) {
  auto found = core::Transfer::find(transfer.id);
  if (!found) throw Error(Errc::INVALID_PARAM, "the transfer was released, or the handle is not of "
                                               "a transfer");
  return found;
}

std::vector<uint64_t> rowsOf(const std::vector<MemDescriptor>& ranges, MemType* type) {
  std::vector<uint64_t> rows;
  rows.reserve(ranges.size() * 3);
  for (const MemDescriptor& range : ranges) {
    if (range.type != ranges[0].type)
      throw Error(Errc::INVALID_PARAM, "all descriptors of one side are of one kind of memory");
    rows.insert(rows.end(), {range.address, range.length, range.device});
  }
  *type = ranges.empty() ? MemType::DRAM : ranges[0].type;
  return rows;
}

// What the caller's header knew of an options struct; the rest stays at our defaults.
template <typename T>
const T& checked(const T& options) {
  // Only one layout exists so far. A smaller one cannot be of this library.
  if (options.struct_size < sizeof(T))
    throw Error(Errc::INVALID_PARAM, "an options struct of a version that never was");
  return options;
}

}  // namespace

std::vector<std::string> pluginNames() { return plugin::Manager::instance().names(); }
BackendInfo pluginInfo(const std::string& name) {
  return orThrow(plugin::Manager::instance().info(name));
}
std::vector<PluginState> pluginStates() { return plugin::Manager::instance().states(); }
std::vector<PluginReport> inspectPlugins(std::chrono::milliseconds each) {
  return plugin::inspectAll(plugin::Manager::instance(), each);
}
PluginSearch pluginSearch() { return plugin::Manager::instance().search(); }
std::vector<ConfigState> configStates() {
  std::vector<ConfigState> states;
  for (base::VariableState& v : base::configStates())
    states.push_back({std::move(v.name), std::move(v.type), std::move(v.default_value),
                      std::move(v.value), std::move(v.source), std::move(v.help),
                      std::move(v.aliases), std::move(v.accepted), std::move(v.problem),
                      std::move(v.owner), v.secret});
  return states;
}
const char* versionText() noexcept { return NIXL_VERSION; }

struct Agent::Impl {
  explicit Impl(std::unique_ptr<core::AgentCore> made) : core(std::move(made)) {}

  // Every call comes through here: in a child process nothing of the parent's may be touched.
  core::AgentCore& use() const {
    if (core->forked())
      throw Error(Errc::FORKED, fmt::format("agent \"{}\" belongs to the parent process; make a new "
                                            "one after fork()",
                                            core->name()));
    return *core;
  }

  std::unique_ptr<core::AgentCore> core;
};

Agent::Agent(std::string name, const AgentConfig& config)
    : impl_(std::make_unique<Impl>(
          orThrow(core::AgentCore::create(std::move(name), checked(config))))) {}

Agent::~Agent() {
  // In a child process the threads and connections are the parent's: leave all of it alone.
  if (impl_->core->forked()) (void)impl_.release();
}

const std::string& Agent::name() const { return impl_->core->name(); }
std::string Agent::incarnation() const { return impl_->core->incarnation().hex(); }

void Agent::createBackend(const std::string& name, const Params& params) {
  orThrow(impl_->use().createBackend(name, params));
}

std::vector<std::string> Agent::backends() const {
  std::vector<std::string> names;
  for (core::Backend* backend : impl_->use().backends()) names.push_back(backend->name);
  return names;
}

BackendInfo Agent::backendInfo(const std::string& name) const {
  core::Backend* backend = orThrow(impl_->use().backend(name));
  BackendInfo info = pluginInfo(name);
  info.params = backend->params;
  info.mems.clear();
  for (unsigned type = 0; type < kMemTypes; ++type)
    if (backend->takes(static_cast<MemType>(type))) info.mems.push_back(static_cast<MemType>(type));
  info.local = backend->has(NIXL_ENGINE_LOCAL);
  info.remote = backend->has(NIXL_ENGINE_REMOTE);
  info.notifications = backend->has(NIXL_ENGINE_NOTIF);
  return info;
}

Memory Agent::registerMemory(const std::vector<MemDescriptor>& ranges,
                             const std::vector<std::string>& backends) {
  return {orThrow(impl_->use().registerMemory(ranges, backends))};
}

void Agent::deregisterMemory(Memory memory, Fence fence) {
  orThrow(impl_->use().deregisterMemory(memory.id, fence == Fence::REQUIRE));
}

void Agent::deregisterMemory(const std::vector<MemDescriptor>& ranges,
                             const std::vector<std::string>& backends, Fence fence) {
  orThrow(impl_->use().deregisterMemory(ranges, backends, fence == Fence::REQUIRE));
}

std::vector<std::optional<Params>> Agent::queryMemory(const std::vector<MemDescriptor>& ranges,
                                                      const std::string& backend) {
  return orThrow(impl_->use().queryMemory(ranges, backend));
}

std::string Agent::metadata() const { return orThrow(impl_->use().metadataBytes()); }

std::string Agent::partialMetadata(const std::vector<MemDescriptor>& ranges, bool with_connections,
                                   const std::vector<std::string>& backends) const {
  return orThrow(impl_->use().partialMetadata(ranges, with_connections, backends));
}

std::string Agent::loadMetadata(std::string_view bytes) {
  return orThrow(impl_->use().loadMetadata(bytes));
}

void Agent::invalidatePeer(const std::string& peer) { orThrow(impl_->use().invalidatePeer(peer)); }

bool Agent::checkPeer(const std::string& peer, const Rows& ranges) const {
  return orThrow(impl_->use().checkPeer(peer, ranges));
}

void Agent::connectPeer(const std::string& peer, const std::vector<std::string>& backends) {
  orThrow(impl_->use().connectPeer(peer, backends));
}

namespace {

metadata::Exchange& exchangeTo(core::AgentCore& core, const std::string& address) {
  if (address.empty())
    throw Error(Errc::INVALID_PARAM,
                "exchange metadata: there is no address, and no metadata store is set up");
  return *orThrow(core.exchange());
}

}  // namespace

void Agent::sendMetadata(const std::string& address, uint16_t port) {
  core::AgentCore& core = impl_->use();
  auto& exchange = exchangeTo(core, address);
  exchange.send(address, port, orThrow(core.metadataBytes()));
}

void Agent::sendPartialMetadata(const std::vector<MemDescriptor>& ranges, bool with_connections,
                                const std::vector<std::string>& backends,
                                const std::string& address, uint16_t port) {
  core::AgentCore& core = impl_->use();
  auto& exchange = exchangeTo(core, address);
  exchange.send(address, port, orThrow(core.partialMetadata(ranges, with_connections, backends)));
}

void Agent::fetchMetadata(const std::string& peer, const std::string& address, uint16_t port) {
  exchangeTo(impl_->use(), address).fetch(address, port, peer);
}

void Agent::invalidateMetadata(const std::string& address, uint16_t port) {
  core::AgentCore& core = impl_->use();
  exchangeTo(core, address).invalidate(address, port, core.name());
}

uint16_t Agent::listenPort() const { return impl_->use().listenPort(); }

Side Agent::prepareSide(const std::string& peer, const Rows& rows,
                        const std::vector<std::string>& backends) {
  return {orThrow(impl_->use().prepareSide(peer, rows, backends))};
}

void Agent::releaseSide(Side side) {
  (void)impl_->use();
  orThrow(core::AgentCore::releaseSide(side.id));
}

nixl::Transfer Agent::makeTransfer(OpType op, Side local, const int32_t* local_indices, Side remote,
                                   const int32_t* remote_indices, size_t count,
                                   const TransferOptions& options) {
  return {orThrow(impl_->use().makeTransfer(op, local.id, local_indices, remote.id, remote_indices,
                                            count, checked(options)))};
}

nixl::Transfer Agent::prepareTransfer(OpType op, const Rows& local, const Rows& remote,
                                      const std::string& peer, const TransferOptions& options) {
  return {orThrow(impl_->use().prepareTransfer(op, local, remote, peer, checked(options)))};
}

nixl::Transfer Agent::prepareTransfer(OpType op, const std::vector<MemDescriptor>& local,
                                      const std::vector<MemDescriptor>& remote,
                                      const std::string& peer, const TransferOptions& options) {
  Rows ours, theirs;
  const auto our_rows = rowsOf(local, &ours.type), their_rows = rowsOf(remote, &theirs.type);
  ours.data = our_rows.data();
  ours.count = local.size();
  theirs.data = their_rows.data();
  theirs.count = remote.size();
  return prepareTransfer(op, ours, theirs, peer, options);
}

XferState Agent::postTransfer(nixl::Transfer transfer, std::optional<std::string> notification) {
  (void)impl_->use();
  auto found = known(transfer);
  auto state = found->agent().post(*found, std::move(notification));
  return orThrow(std::move(state));
}

XferState Agent::postTransfer(nixl::Transfer transfer, std::optional<std::string> notification,
                              std::chrono::nanoseconds timeout) {
  (void)impl_->use();
  auto found = known(transfer);
  return orThrow(found->agent().post(*found, std::move(notification), timeout));
}

std::optional<XferState> Agent::peekTransfer(nixl::Transfer transfer) const noexcept {
  if (impl_->core->forked()) return std::nullopt;
  auto found = core::Transfer::find(transfer.id);
  if (!found) return std::nullopt;
  return found->state();
}

XferState Agent::checkTransfer(nixl::Transfer transfer) {
  (void)impl_->use();
  auto found = known(transfer);
  return found->agent().check(*found);
}

XferState Agent::waitTransfer(nixl::Transfer transfer, std::chrono::nanoseconds timeout) {
  (void)impl_->use();
  auto found = known(transfer);
  found->agent().waitUntil([&] { return found->state() != XferState::POSTED; },
                           base::Deadline::after(timeout));
  return found->agent().check(*found);
}

size_t Agent::waitTransfers(const std::vector<nixl::Transfer>& transfers, Wait wait,
                            std::chrono::nanoseconds timeout) {
  core::AgentCore& core = impl_->use();
  std::vector<std::shared_ptr<core::Transfer>> all;
  all.reserve(transfers.size());
  for (nixl::Transfer transfer : transfers) {
    all.push_back(known(transfer));
    if (&all.back()->agent() != &core)
      throw Error(Errc::INVALID_PARAM, "wait for transfers: one of them is of another agent");
  }
  auto ended = [&] {
    size_t count = 0;
    for (const auto& transfer : all) count += transfer->state() != XferState::POSTED;
    return count;
  };
  const size_t enough = wait == Wait::ALL || all.empty() ? all.size() : 1;
  core.waitUntil([&] { return ended() >= enough; }, base::Deadline::after(timeout));
  for (const auto& transfer : all) (void)core.check(*transfer);
  return ended();
}

Errc Agent::transferError(nixl::Transfer transfer, std::string* text) const {
  (void)impl_->use();
  const Status status = known(transfer)->error();
  if (text != nullptr) *text = printable(status.message());
  return status.code();
}

PieceStatus Agent::pieceStatus(nixl::Transfer transfer) const {
  (void)impl_->use();
  return known(transfer)->pieces();
}

TransferTelemetry Agent::transferTelemetry(nixl::Transfer transfer) const {
  core::AgentCore& core = impl_->use();
  auto found = known(transfer);
  if (!core.telemetryOn())
    throw Error(Errc::NO_TELEMETRY, "telemetry is off; turn it on with capture_telemetry or "
                                    "NIXL_TELEMETRY_ENABLE=1");
  if (found->attempt() == 0)
    throw Error(Errc::NOT_POSTED, "the transfer was never posted: there is nothing measured");
  const XferState state = found->state();
  if (state == XferState::FAILED || state == XferState::CANCELED) raise(found->error());
  return found->telemetry();
}

std::string Agent::transferBackend(nixl::Transfer transfer) const {
  (void)impl_->use();
  return known(transfer)->backend().name;
}

CostEstimate Agent::estimateCost(nixl::Transfer transfer) const {
  return orThrow(impl_->use().estimate(*known(transfer)));
}

std::string Agent::explain(nixl::Transfer transfer) const {
  return impl_->use().explain(*known(transfer));
}

void Agent::cancelTransfer(nixl::Transfer transfer) {
  (void)impl_->use();
  known(transfer)->cancel();
}

void Agent::quiesceTransfer(nixl::Transfer transfer, std::chrono::nanoseconds timeout) {
  (void)impl_->use();
  auto found = known(transfer);
  found->cancel();
  if (!found->agent().waitUntil([&] { return !found->inFlight(); },
                                base::Deadline::after(timeout)))
    throw Error(Errc::NOT_QUIESCED,
                fmt::format("backend {} did not end the transfer in time; do not reuse its memory",
                            found->backend().name));
}

void Agent::releaseTransfer(nixl::Transfer transfer) {
  (void)impl_->use();
  known(transfer)->release();
}

void Agent::sendNotification(const std::string& peer, std::string_view message,
                             const std::string& backend) {
  orThrow(impl_->use().sendNotification(peer, message, backend));
}

std::vector<Notification> Agent::takeNotifications() {
  return orThrow(impl_->use().takeNotifications());
}

bool Agent::hasNotifications() const { return !impl_->use().notifier().empty(); }

std::vector<Event> Agent::events() {
  core::AgentCore& core = impl_->use();
  core.drive(core::kCheckBudgetNs);
  return core.notifier().takeEvents();
}

bool Agent::progress(std::chrono::nanoseconds budget) {
  return impl_->use().drive(static_cast<uint64_t>(std::max<int64_t>(0, budget.count())));
}

void Agent::handOver() { impl_->use().handOver(); }

int Agent::completionFd() { return orThrow(impl_->use().changeFd()); }

}  // namespace nixl
