// core/peers.h - other agents, as their metadata describes them.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "core/backend.h"
#include "core/cover_index.h"
#include "core/gate.h"
#include "core/registry.h"
#include "metadata/wire.h"

namespace nixl::core {

class Peer;

// A peer's key for one or more regions, loaded into our engine at first use. Lists and transfers
// hold it; it may outlive the connection (engines allow unloading after disconnecting).
class RemoteKey {
 public:
  RemoteKey(Backend& backend, void* engine_peer, MemType kind, std::string bytes)
      : backend_(backend), engine_peer_(engine_peer), kind_(kind), bytes_(std::move(bytes)) {}
  ~RemoteKey();
  RemoteKey(const RemoteKey&) = delete;
  RemoteKey& operator=(const RemoteKey&) = delete;

  // The engine's handle. Fails as the engine does.
  Result<void*> handle();

 private:
  Backend& backend_;
  void* engine_peer_;
  const MemType kind_;
  const std::string bytes_;
  base::Mutex mu_;
  bool loaded_ NIXL_GUARDED_BY(mu_) = false;
  void* handle_ NIXL_GUARDED_BY(mu_) = nullptr;
};

// Messages to one receiver leave in the order of their numbers: one thread at a time sends, and
// what others bring meanwhile it sends too. No lock is held while the engine is called, since the
// engine may report a completion from inside, which sends another message.
struct Outbox {
  struct Message {
    Backend* backend = nullptr;
    uint8_t kind = 0;
    std::string payload;
  };
  base::Mutex mu;  // a leaf
  bool sending NIXL_GUARDED_BY(mu) = false;
  std::deque<Message> waiting NIXL_GUARDED_BY(mu);
};

// A peer, seen through one of our engines.
struct PeerBackend {
  struct Section {
    CoverIndex index;  // values: numbers of keys
    std::vector<std::shared_ptr<RemoteKey>> keys;
    std::unordered_map<std::string, uint32_t> key_numbers;
  };

  Backend* backend = nullptr;
  std::weak_ptr<Peer> peer;
  uint64_t id = 0;  // what the engine knows us by in on_peer()
  std::string connection;
  void* engine_peer = nullptr;
  // The peer was told that this agent uses its memory; see core/fences.h.
  mutable std::atomic<bool> introduced{false};
  std::array<Section, kMemTypes> sections;  // guarded by the peer's lock
};

// One incarnation of an agent elsewhere.
//
// Threads: any. Whoever hands the engine this peer's handle passes the gate first; retire() closes
// it before the engine's handles go.
class Peer : public std::enable_shared_from_this<Peer> {
 public:
  Peer(std::string name, const metadata::Blob& blob);
  ~Peer();

  const std::string name;
  const metadata::Incarnation incarnation;
  const uint64_t created_unix_ns;
  const std::string host_id;
  const uint64_t features;

  Gate gate;
  Outbox outbox;
  std::atomic<bool> down{false};
  bool only_user = false;  // not loaded by the program, which hears nothing of it
  std::atomic<bool> from_connection{false};  // its metadata came over the direct exchange

  // Adds what the blob says of our backends. What is known already costs little; a registration of
  // a lower generation never replaces one of a higher.
  Status merge(const metadata::Blob& blob, const std::vector<Backend*>& backends);

  // Disconnects from every engine; what was in flight is reported failed. Once.
  void retire();

  PeerBackend* through(const Backend& backend) const;
  Result<Resolution> resolve(const Backend& backend, const DescList& list);
  bool covers(const Backend& backend, const DescList& list) const;
  bool has(const Backend& backend, MemType type) const;
  size_t linkCount() const;  // how many engines

  // The peer's agent takes back the regions that `blob` lists (all of the engine where a section
  // lists none); what a former blob says of them does not count any more.
  void revoke(const metadata::Blob& blob, const std::vector<Backend*>& backends);
  // Changes when something was revoked; then what was resolved before has to be looked at again.
  uint64_t revocations() const { return revocations_.load(std::memory_order_seq_cst); }
  // The first of these pieces that is in no region any more; `count` if all are.
  uint64_t firstRevoked(const Backend& backend, MemType type, const uint64_t* address,
                        const uint64_t* length, uint64_t count) const;

 private:
  Status connect(PeerBackend& link, const metadata::BackendSection& section);
  void cut(PeerBackend& link, const metadata::BackendSection& section) NIXL_REQUIRES(mu_);
  // Adds the keys that were not known to `fresh`.
  Status mergeRegions(PeerBackend& link, const metadata::BackendSection& section,
                      std::vector<std::shared_ptr<RemoteKey>>& fresh) NIXL_REQUIRES(mu_);

  base::Mutex merge_mu_;  // one merge at a time; taken before mu_, engines are called under it
  mutable base::SharedMutex mu_;
  std::map<const Backend*, std::unique_ptr<PeerBackend>> links_ NIXL_GUARDED_BY(mu_);

  // What was taken back, for blobs that were made before and come later.
  struct Revoked {
    uint64_t sequence;  // of the blob that said so
    std::string backend;
    metadata::BackendSection section;
  };
  static constexpr size_t kRevoked = 1024;
  std::deque<Revoked> revoked_ NIXL_GUARDED_BY(mu_);
  std::atomic<uint64_t> revocations_{0};
};

// Finds the link that an engine's on_peer() names; nullptr for one that is gone.
std::shared_ptr<Peer> peerOfLink(uint64_t id);
AgentCore* agentOfLink(uint64_t id);

// Peers by name, and the incarnations that were replaced.
class PeerTable {
 public:
  std::shared_ptr<Peer> find(const std::string& name) const;

  // The current peer of this blob's incarnation, or nullptr: then one is to be made, merged, and
  // adopted. NOT_ALLOWED: the incarnation was replaced before.
  Result<std::shared_ptr<Peer>> current(const metadata::Blob& blob) const;

  // A peer that can be used takes its name over; whoever finds the name finds it from then on.
  // When another thread brought the same incarnation meanwhile, that one stays, and is `peer`.
  struct Adopted {
    std::shared_ptr<Peer> peer;
    std::shared_ptr<Peer> replaced;  // to be retired by the caller
  };
  Result<Adopted> adopt(const std::shared_ptr<Peer>& peer);

  // Whether a sender was replaced by the current holder of its name.
  struct Former {
    uint64_t created_unix_ns;
    bool first;  // nobody asked before
  };
  std::optional<Former> former(const metadata::Incarnation& sender);

  std::shared_ptr<Peer> remove(const std::string& name);
  // Removes it only if it still is the current one of its name.
  bool remove(const std::shared_ptr<Peer>& peer);
  std::vector<std::shared_ptr<Peer>> all() const;

 private:
  static constexpr size_t kTombstones = 16384;

  struct Removed {
    metadata::Incarnation incarnation;
    uint64_t created_unix_ns;
  };
  struct Tombstone {
    uint64_t created_unix_ns;
    bool heard_from = false;  // after it was replaced
  };
  void bury(const metadata::Incarnation& incarnation, uint64_t created_unix_ns) NIXL_REQUIRES(mu_);
  void remember(const Peer& peer) NIXL_REQUIRES(mu_);
  Status checkTombstone(const std::string& name, const metadata::Incarnation& incarnation,
                        uint64_t created_unix_ns) const NIXL_REQUIRES_SHARED(mu_);

  mutable base::SharedMutex mu_;
  std::unordered_map<std::string, std::shared_ptr<Peer>> peers_ NIXL_GUARDED_BY(mu_);
  std::map<metadata::Incarnation, Tombstone> tombstones_ NIXL_GUARDED_BY(mu_);
  std::atomic<bool> any_tombstones_{false};  // spares messages the lock
  std::deque<metadata::Incarnation> tombstone_order_ NIXL_GUARDED_BY(mu_);
  // Who was removed and not replaced yet: it may come back, until another one takes the name.
  std::unordered_map<std::string, Removed> removed_ NIXL_GUARDED_BY(mu_);
};

}  // namespace nixl::core
