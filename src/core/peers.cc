#include "core/peers.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/log.h"
#include "core/handles.h"

namespace nixl::core {
namespace {

// Engines know links by number, so that a late word about one that is gone finds nothing.
HandleTable<PeerBackend>& links() {
  static auto* table = new HandleTable<PeerBackend>;
  return *table;
}

constexpr size_t kLoadedAtOnce = 16;  // keys of one blob

std::string timeText(uint64_t unix_ns) {
  const time_t seconds = static_cast<time_t>(unix_ns / 1'000'000'000u);
  tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

}  // namespace

RemoteKey::~RemoteKey() {
  if (loaded_) backend_.engine->unload(handle_);
}

Result<void*> RemoteKey::handle() {
  base::MutexLock lock(mu_);
  if (!loaded_) {
    auto handle = backend_.engine->load(engine_peer_, kind_, bytes_);
    if (!handle.has_value()) return std::move(handle).error();
    handle_ = *handle;
    loaded_ = true;
  }
  return handle_;
}

Peer::Peer(std::string peer_name, const metadata::Blob& blob)
    : name(std::move(peer_name)),
      incarnation(blob.incarnation),
      created_unix_ns(blob.created_unix_ns),
      host_id(blob.host_id),
      features(blob.features) {}

Peer::~Peer() { retire(); }

std::shared_ptr<Peer> peerOfLink(uint64_t id) {
  auto link = links().find(id);
  return link ? link->peer.lock() : nullptr;
}

AgentCore* agentOfLink(uint64_t id) {
  auto link = links().find(id);
  return link ? link->backend->agent : nullptr;
}

PeerBackend* Peer::through(const Backend& backend) const {
  base::ReaderLock lock(mu_);
  auto found = links_.find(&backend);
  return found == links_.end() ? nullptr : found->second.get();
}

size_t Peer::linkCount() const {
  base::ReaderLock lock(mu_);
  return links_.size();
}

Status Peer::connect(PeerBackend& link, const metadata::BackendSection& section) {
  // The table gets a stand-in of the link: what engines may look up, and no more.
  auto known = std::make_shared<PeerBackend>();
  known->backend = link.backend;
  known->peer = weak_from_this();
  link.id = links().add(known);
  if (link.id == 0) return Status(Errc::LIMIT, "too many peers are connected");
  link.connection = section.connection;
  auto connected = link.backend->engine->connect(name, section.connection,
                                                 reinterpret_cast<void*>(link.id));
  if (!connected.has_value()) {
    links().take(link.id);
    return std::move(connected).error();
  }
  link.engine_peer = *connected;
  return {};
}

Status Peer::merge(const metadata::Blob& blob, const std::vector<Backend*>& backends) {
  base::MutexLock one(merge_mu_);
  size_t connections = 0, usable = 0;
  for (const metadata::BackendSection& section : blob.sections) {
    connections += section.has_connection;
    Backend* backend = nullptr;
    for (Backend* candidate : backends)
      if (candidate->name == section.backend && candidate->has(NIXL_ENGINE_REMOTE))
        backend = candidate;
    if (backend == nullptr) continue;

    PeerBackend* link = through(*backend);
    if (section.has_connection) {
      ++usable;
      if (link == nullptr) {
        auto fresh = std::make_unique<PeerBackend>();
        fresh->backend = backend;
        fresh->peer = weak_from_this();
        NIXL_TRY(connect(*fresh, section).within(fmt::format("connect to \"{}\"", name)));
        link = fresh.get();
        base::WriterLock lock(mu_);
        links_[backend] = std::move(fresh);
      } else if (link->connection != section.connection) {
        return Status(Errc::NOT_ALLOWED,
                      fmt::format("metadata of \"{}\" brings another {} connection than the one in "
                                  "use; invalidate the peer first",
                                  name, backend->name));
      }
    }
    if (section.rows.empty()) continue;
    if (link == nullptr)
      return Status(Errc::NOT_FOUND,
                    fmt::format("metadata of \"{}\" brings {} regions without connection info, and "
                                "none was loaded before",
                                name, backend->name));
    std::vector<std::shared_ptr<RemoteKey>> keys;
    {
      base::WriterLock lock(mu_);
      NIXL_TRY(mergeRegions(*link, section, keys));
      for (const Revoked& former : revoked_)
        if (blob.sequence < former.sequence && former.backend == section.backend)
          cut(*link, former.section);
    }
    // A few are loaded now, when nobody is in a hurry; of many perhaps only some are ever used. One
    // that cannot be loaded fails where it is needed.
    GatePass pass(&gate);
    for (size_t i = 0; pass && i < std::min(keys.size(), kLoadedAtOnce); ++i)
      (void)keys[i]->handle();
  }
  if (connections > 0 && usable == 0) {
    std::string theirs;
    for (const auto& section : blob.sections)
      theirs += (theirs.empty() ? "" : ", ") + section.backend;
    return Status(Errc::BACKEND, fmt::format("no backend in common with \"{}\": it has {}", name,
                                             theirs));
  }
  return {};
}

Status Peer::mergeRegions(PeerBackend& link, const metadata::BackendSection& section,
                          std::vector<std::shared_ptr<RemoteKey>>& fresh_keys) {
  std::array<std::vector<Extent>, kMemTypes> fresh;
  for (const metadata::RegionRow& row : section.rows) {
    const size_t type = static_cast<size_t>(row.kind);
    if (type >= kMemTypes || row.key >= section.keys.size() || row.count == 0)
      return Status(Errc::MISMATCH, fmt::format("metadata of \"{}\": a region row is damaged", name));
    const auto span = static_cast<unsigned __int128>(row.count - 1) * row.stride + row.length;
    if (span > UINT64_MAX - row.base || (row.count > 1 && (row.stride == 0 || row.length == 0)))
      return Status(Errc::MISMATCH,
                    fmt::format("metadata of \"{}\": a region wraps past 2^64", name));
    auto& known = link.sections[type];
    const std::string& key = section.keys[row.key];
    auto [number, is_new] =
        known.key_numbers.try_emplace(key, static_cast<uint32_t>(known.keys.size()));
    if (is_new) {
      known.keys.push_back(
          std::make_shared<RemoteKey>(*link.backend, link.engine_peer, row.kind, key));
      fresh_keys.push_back(known.keys.back());
    }
    const bool bytes = row.kind == MemType::DRAM || row.kind == MemType::VRAM;
    const Extent extent{row.device, row.base,       row.length,
                        row.stride, row.count,      number->second,
                        row.length == 0 && !bytes, row.generation};
    bool there = false;
    auto [first, last] = known.index.exact(row.device, row.base, row.length);
    for (; first < last && !there; ++first) {
      Extent& old = known.index.at(first);
      if (!old.sameRange(extent)) continue;
      there = true;
      if (extent.generation >= old.generation) {
        old.generation = extent.generation;
        old.value = extent.value;
      }
    }
    if (!there) fresh[type].push_back(extent);
  }
  for (size_t type = 0; type < kMemTypes; ++type)
    link.sections[type].index.add(std::move(fresh[type]));
  return {};
}

void Peer::cut(PeerBackend& link, const metadata::BackendSection& section) {
  if (section.rows.empty())
    for (auto& known : link.sections) known.index = CoverIndex();
  for (const metadata::RegionRow& row : section.rows) {
    const size_t type = static_cast<size_t>(row.kind);
    if (type >= kMemTypes) continue;
    const bool bytes = row.kind == MemType::DRAM || row.kind == MemType::VRAM;
    link.sections[type].index.cut({row.device, row.base, row.length, row.stride, row.count, 0,
                                   row.length == 0 && !bytes, row.generation});
  }
}

void Peer::revoke(const metadata::Blob& blob, const std::vector<Backend*>& backends) {
  base::WriterLock lock(mu_);
  for (const metadata::BackendSection& section : blob.sections) {
    for (Backend* backend : backends)
      if (auto link = links_.find(backend);
          link != links_.end() && backend->name == section.backend)
        cut(*link->second, section);
    Revoked& one = revoked_.emplace_back(Revoked{blob.sequence, section.backend, {}});
    one.section.rows = section.rows;
    if (revoked_.size() > kRevoked) revoked_.pop_front();
  }
  revocations_.fetch_add(1, std::memory_order_seq_cst);
}

uint64_t Peer::firstRevoked(const Backend& backend, MemType type, const uint64_t* address,
                            const uint64_t* length, uint64_t count) const {
  base::ReaderLock lock(mu_);
  auto link = links_.find(&backend);
  if (link == links_.end()) return 0;
  const CoverIndex& index = link->second->sections[static_cast<size_t>(type)].index;
  uint32_t hint = CoverIndex::kNone;
  for (uint64_t i = 0; i < count; ++i)
    if (!index.findAnywhere(address[i], length[i], hint)) return i;
  return count;
}

void Peer::retire() {
  if (!gate.close()) return;
  std::vector<std::pair<Backend*, void*>> connections;
  {
    base::WriterLock lock(mu_);
    for (auto& [backend, link] : links_) {
      links().take(link->id);
      if (link->engine_peer != nullptr) connections.emplace_back(link->backend, link->engine_peer);
      link->engine_peer = nullptr;
    }
  }
  for (auto [backend, engine_peer] : connections) backend->engine->disconnect(engine_peer);
}

Result<Resolution> Peer::resolve(const Backend& backend, const DescList& list) {
  Resolution resolution;
  resolution.revocations = revocations();
  std::vector<std::shared_ptr<RemoteKey>> keys;
  {
    base::ReaderLock lock(mu_);
    auto found = links_.find(&backend);
    if (found == links_.end())
      return Status(Errc::NOT_FOUND,
                    fmt::format("\"{}\" is not reached through {}", name, backend.name));
    const auto& section = found->second->sections[static_cast<size_t>(list.type())];
    Lookup lookup = lookUp(list, section.index);
    if (lookup.missing != UINT64_MAX)
      return notCovered(list, lookup.missing, fmt::format("of \"{}\"", name));
    resolution.region = std::move(lookup.region);
    for (uint32_t value : lookup.values) keys.push_back(section.keys[value]);
  }
  GatePass pass(&gate);
  if (!pass) return Status(Errc::NOT_FOUND, fmt::format("\"{}\" was invalidated", name));
  for (auto& key : keys) {
    NIXL_ASSIGN_OR_RETURN(void* handle, key->handle());
    resolution.handles.push_back(handle);
    resolution.owners.push_back(std::move(key));
  }
  return resolution;
}

bool Peer::covers(const Backend& backend, const DescList& list) const {
  base::ReaderLock lock(mu_);
  auto found = links_.find(&backend);
  if (found == links_.end()) return false;
  const auto& section = found->second->sections[static_cast<size_t>(list.type())];
  return lookUp(list, section.index).missing == UINT64_MAX;
}

bool Peer::has(const Backend& backend, MemType type) const {
  base::ReaderLock lock(mu_);
  auto found = links_.find(&backend);
  return found != links_.end() &&
         found->second->sections[static_cast<size_t>(type)].index.size() > 0;
}

std::shared_ptr<Peer> PeerTable::find(const std::string& name) const {
  base::ReaderLock lock(mu_);
  auto found = peers_.find(name);
  return found == peers_.end() ? nullptr : found->second;
}

Status PeerTable::checkTombstone(const std::string& name, const metadata::Incarnation& incarnation,
                                 uint64_t created_unix_ns) const {
  if (!tombstones_.contains(incarnation)) return {};
  auto found = peers_.find(name);
  const std::string now = found == peers_.end()
                              ? std::string("another one")
                              : "the one of " + timeText(found->second->created_unix_ns);
  return Status(Errc::NOT_ALLOWED,
                fmt::format("metadata of \"{}\" made at {} is of an incarnation that {} replaced; "
                            "load what the agent publishes now",
                            name, timeText(created_unix_ns), now));
}

Result<std::shared_ptr<Peer>> PeerTable::current(const metadata::Blob& blob) const {
  base::ReaderLock lock(mu_);
  auto found = peers_.find(blob.agent);
  if (found != peers_.end() && found->second->incarnation == blob.incarnation)
    return found->second;
  NIXL_TRY(checkTombstone(blob.agent, blob.incarnation, blob.created_unix_ns));
  return std::shared_ptr<Peer>();
}

Result<PeerTable::Adopted> PeerTable::adopt(const std::shared_ptr<Peer>& peer) {
  base::WriterLock lock(mu_);
  NIXL_TRY(checkTombstone(peer->name, peer->incarnation, peer->created_unix_ns));
  auto& slot = peers_[peer->name];
  if (slot && slot->incarnation == peer->incarnation) return Adopted{slot, nullptr};
  Adopted adopted{peer, std::move(slot)};
  slot = peer;
  if (adopted.replaced) bury(adopted.replaced->incarnation, adopted.replaced->created_unix_ns);
  if (auto former = removed_.find(peer->name); former != removed_.end()) {
    if (former->second.incarnation != peer->incarnation)
      bury(former->second.incarnation, former->second.created_unix_ns);
    removed_.erase(former);
  }
  return adopted;
}

void PeerTable::bury(const metadata::Incarnation& incarnation, uint64_t created_unix_ns) {
  if (!tombstones_.emplace(incarnation, Tombstone{created_unix_ns}).second) return;
  any_tombstones_.store(true, std::memory_order_release);
  tombstone_order_.push_back(incarnation);
  if (tombstone_order_.size() > kTombstones) {
    tombstones_.erase(tombstone_order_.front());
    tombstone_order_.pop_front();
  }
}

std::optional<PeerTable::Former> PeerTable::former(const metadata::Incarnation& sender) {
  if (!any_tombstones_.load(std::memory_order_acquire)) return std::nullopt;
  {
    base::ReaderLock lock(mu_);  // nearly every sender is somebody else
    if (!tombstones_.contains(sender)) return std::nullopt;
  }
  base::WriterLock lock(mu_);
  auto found = tombstones_.find(sender);
  if (found == tombstones_.end()) return std::nullopt;
  return Former{found->second.created_unix_ns, !std::exchange(found->second.heard_from, true)};
}

void PeerTable::remember(const Peer& peer) {
  if (removed_.size() >= kTombstones) removed_.erase(removed_.begin());
  removed_[peer.name] = {peer.incarnation, peer.created_unix_ns};
}

std::shared_ptr<Peer> PeerTable::remove(const std::string& name) {
  base::WriterLock lock(mu_);
  auto found = peers_.find(name);
  if (found == peers_.end()) return nullptr;
  auto peer = std::move(found->second);
  peers_.erase(found);
  remember(*peer);
  return peer;
}

bool PeerTable::remove(const std::shared_ptr<Peer>& peer) {
  base::WriterLock lock(mu_);
  auto found = peers_.find(peer->name);
  if (found == peers_.end() || found->second != peer) return false;
  peers_.erase(found);
  remember(*peer);
  return true;
}

std::vector<std::shared_ptr<Peer>> PeerTable::all() const {
  base::ReaderLock lock(mu_);
  std::vector<std::shared_ptr<Peer>> peers;
  for (const auto& [name, peer] : peers_) peers.push_back(peer);
  return peers;
}

}  // namespace nixl::core
