// core/agent_core.h - an agent: its engines, registrations, peers and transfers, put together.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status.h"
#include "core/backend.h"
#include "core/handles.h"
#include "core/notifier.h"
#include "core/peers.h"
#include "core/progress.h"
#include "core/transfer.h"
#include "metadata/exchange.h"
#include "nixl/agent.h"

namespace nixl::core {

// One side of transfers to come: a list, found in the registrations of every engine that has it.
struct PreparedSide {
  enum class Role { LOCAL, SELF, REMOTE };  // ours, ourselves as the target, a peer

  struct Choice {
    Backend* backend;
    std::shared_ptr<const Resolution> resolution;
    PeerBackend* link;  // the peer's, which it keeps as long as it lives; nullptr: ourselves
  };
  AgentCore* agent = nullptr;
  Role role = Role::LOCAL;
  std::shared_ptr<Peer> peer;
  DescList list;
  std::vector<Choice> choices;
};

HandleTable<PreparedSide>& preparedSides();  // of all agents

// What a call on `registerMemory` gave: the regions by engine.
struct Registration {
  AgentCore* agent = nullptr;
  std::vector<std::pair<Backend*, std::vector<std::shared_ptr<Region>>>> regions;
};

// Names one after the other, for messages.
std::string joined(const std::vector<std::string>& names);

// A call that polls drives the engines for as long at most.
inline constexpr uint64_t kCheckBudgetNs = 50'000;

// The agent behind the faces. The faces check arguments that only they know, convert, and throw;
// everything else is here.
//
// Threads: any. backends_mu_ orders the creation of engines; flight_mu_ is a leaf.
class AgentCore final : private metadata::Exchange::Host {
 public:
  static Result<std::unique_ptr<AgentCore>> create(std::string name, const AgentConfig& config);
  // Ends everything within a second. In a child after fork(): forgets everything.
  ~AgentCore();

  const std::string& name() const { return name_; }
  const metadata::Incarnation& incarnation() const { return incarnation_; }
  Notifier& notifier() { return notifier_; }
  bool telemetryOn() const { return telemetry_; }
  bool forked() const;

  Status createBackend(const std::string& name, const Params& params);
  std::vector<Backend*> backends() const;
  Result<Backend*> backend(const std::string& name) const;

  Result<uint64_t> registerMemory(const std::vector<MemDescriptor>& ranges,
                                  const std::vector<std::string>& backends);
  // NOT_QUIESCED: somebody may still write there. Our own engines: the memory stays registered.
  // Peers: it is not registered any more; told as an event, and returned if `require`.
  Status deregisterMemory(uint64_t handle, bool require);
  Status deregisterMemory(const std::vector<MemDescriptor>& ranges,
                          const std::vector<std::string>& backends, bool require);
  Result<std::vector<std::optional<Params>>> queryMemory(const std::vector<MemDescriptor>& ranges,
                                                         const std::string& backend);

  Result<std::string> metadataBytes() const;
  Result<std::string> partialMetadata(const std::vector<MemDescriptor>& ranges,
                                      bool with_connections,
                                      const std::vector<std::string>& backends) const;
  Result<std::string> loadMetadata(std::string_view bytes);
  Status invalidatePeer(const std::string& peer);
  Result<bool> checkPeer(const std::string& peer, const Rows& rows) const;
  Status connectPeer(const std::string& peer, const std::vector<std::string>& backends);

  Result<metadata::Exchange*> exchange();
  uint16_t listenPort() const;

  Result<uint64_t> prepareSide(const std::string& peer, const Rows& rows,
                               const std::vector<std::string>& backends);
  static Status releaseSide(uint64_t handle);
  Result<uint64_t> makeTransfer(OpType op, uint64_t local, const int32_t* local_indices,
                                uint64_t remote, const int32_t* remote_indices, size_t count,
                                const TransferOptions& options);
  Result<uint64_t> prepareTransfer(OpType op, const Rows& local, const Rows& remote,
                                   const std::string& peer, const TransferOptions& options);

  Result<XferState> post(Transfer& transfer, std::optional<std::string> notification,
                         std::optional<std::chrono::nanoseconds> timeout = {});
  XferState check(Transfer& transfer);
  std::string explain(const Transfer& transfer) const;
  Result<CostEstimate> estimate(const Transfer& transfer) const;

  Status sendNotification(const std::string& peer, std::string_view message,
                          const std::string& backend);
  Result<std::vector<Notification>> takeNotifications();

  bool drive(uint64_t budget_ns) { return progress_.tryDrive(budget_ns); }
  bool waitUntil(const std::function<bool()>& done, base::Deadline deadline) {
    return progress_.waitUntil(done, deadline);
  }
  Result<int> changeFd() { return progress_.changeFd(); }
  void wake() { progress_.wake(); }
  void handOver() { progress_.handOver(); }

  // Sends to a peer (nullptr: to ourselves) in order with all that is sent to it. OK: it was handed
  // to the engine, or another thread will do so at once.
  Status notify(Backend& backend, const std::shared_ptr<Peer>& peer, uint8_t kind,
                std::string_view message);

  // From transfers.
  void transferEnded(Transfer& transfer, const Status* failure);
  void transferFailed(Transfer& transfer, const Status& failure);
  // From engines.
  void received(std::string_view frame);  // a message
  void peerChanged(uint64_t link, int32_t state, Errc status, const std::string& reason);

 private:
  AgentCore(std::string name, const AgentConfig& config, uint64_t notification_limit);
  Status start();

  // metadata::Exchange::Host
  Result<std::string> localMetadata() override { return metadataBytes(); }
  Result<metadata::Incarnation> load(std::string_view blob,
                                     const metadata::Exchange::Source& source) override;
  Status invalidate(std::string_view agent, const metadata::Incarnation& sender) override;
  void exchangeFailed(std::string_view what, const Status& status) override;

  Result<std::vector<Backend*>> candidates(const std::vector<std::string>& names,
                                           const std::function<bool(Backend&)>& able) const;
  Result<std::vector<std::shared_ptr<Region>>> registerWith(Backend& backend,
                                                            const std::vector<MemDescriptor>&);
  Status deregisterFrom(Backend& backend, std::vector<std::shared_ptr<Region>> regions,
                        bool require);

  // ---- agent_fences.cc: memory that a transport cannot protect
  void introduceTo(Backend& backend, const std::shared_ptr<Peer>& peer, const PeerBackend& link);
  void takeLeaveOf(const std::shared_ptr<Peer>& peer);
  // Asks all peers that use our memory through `backend` to let go of these regions (nullptr: of
  // all), and waits until they did. NOT_QUIESCED: says who did not answer.
  Status quiescePeers(Backend& backend, const std::vector<std::shared_ptr<Region>>* regions,
                      std::chrono::nanoseconds limit);
  bool aboutMemory(const metadata::EnvelopeView& envelope);  // false: it is about something else
  void askedToQuiesce(const metadata::EnvelopeView& envelope, const metadata::Control& control);
  void answerQuiesced();
  // Nothing comes from there any more.
  void forgetUser(const metadata::Incarnation& incarnation);
  metadata::BackendSection section(Backend& backend, bool with_connection,
                                   const std::vector<std::shared_ptr<Region>>& regions) const;
  Status sendFrame(Backend& backend, const std::shared_ptr<Peer>& peer, uint8_t kind,
                   std::string_view message);
  // Between the libraries of two agents; nobody waits for it, and it may be lost with its peer.
  void sendControl(const std::shared_ptr<Peer>& peer, const metadata::Control& control);
  void receivedControl(const metadata::EnvelopeView& envelope);
  // A message came of somebody whom `peers_` took for replaced.
  void heardFromFormer(const metadata::EnvelopeView& envelope, const PeerTable::Former& former);
  void nameConflict(const std::string& peer, const metadata::Incarnation& other, std::string text,
                    std::string_view message = {});
  Status loadBlob(const metadata::Blob& blob, bool from_connection);
  metadata::Blob emptyBlob(bool partial) const;
  Result<PreparedSide> resolveSide(const std::string& peer, const Rows& rows,
                                   const std::vector<std::string>& backends);
  Result<uint64_t> joinSides(OpType op, const PreparedSide& local, const int32_t* local_indices,
                             const PreparedSide& remote, const int32_t* remote_indices,
                             size_t count, const TransferOptions& options, bool merge);
  // The peer, if it is the one that is loaded now.
  Status current(const std::shared_ptr<Peer>& peer) const;
  // The state that the user is told.
  XferState seen(Transfer& transfer);
  // The user has seen that the peer is gone: its metadata goes, as programs expect.
  void seenDisconnect(const std::shared_ptr<Peer>& peer);
  uint64_t clockwork(uint64_t now_ns);

  const std::string name_;
  const AgentConfig config_;
  const std::shared_ptr<const metadata::Identity> identity_;
  const metadata::Incarnation incarnation_;  // that of identity_
  const uint64_t created_unix_ns_;
  std::array<uint8_t, 32> secret_{};
  std::string host_id_;
  const uint64_t fork_generation_;
  uint64_t inline_ns_ = 0, stall_ns_ = 0;
  bool telemetry_ = false;

  mutable std::atomic<uint64_t> sequence_{0};
  std::atomic<uint64_t> generation_{0};
  Notifier notifier_;
  Progress progress_;
  PeerTable peers_;
  Outbox to_self_;

  mutable base::SharedMutex backends_mu_;
  std::vector<std::unique_ptr<Backend>> backends_ NIXL_GUARDED_BY(backends_mu_);
  base::Mutex create_mu_;  // one creation at a time; engines are called under it

  base::Mutex flight_mu_;
  std::set<std::shared_ptr<Transfer>> flight_ NIXL_GUARDED_BY(flight_mu_);
  std::atomic<size_t> in_flight_{0};

  // Peers that said that they use our memory.
  struct User {
    std::string name;
    std::map<std::string, std::string> blobs;  // how to reach it, by backend
    bool has_thread = true;      // makes progress without being polled
    bool silent = false;         // did not answer the last time
    std::shared_ptr<Peer> peer;  // made of the blobs when first asked
  };
  struct Answer {  // owed to a peer
    std::shared_ptr<Peer> to;
    uint64_t token;
    std::vector<std::shared_ptr<Transfer>> waiting_for;
  };
  uint64_t quiesce_ns_ = 0;
  base::Mutex fences_mu_;
  std::map<metadata::Incarnation, User> users_ NIXL_GUARDED_BY(fences_mu_);
  std::map<uint64_t, std::set<metadata::Incarnation>> asked_ NIXL_GUARDED_BY(fences_mu_);
  uint64_t last_token_ NIXL_GUARDED_BY(fences_mu_) = 0;
  std::vector<Answer> answers_ NIXL_GUARDED_BY(fences_mu_);
  std::atomic<size_t> answers_due_{0};

  base::Mutex exchange_mu_;
  std::unique_ptr<metadata::Exchange> exchange_ NIXL_GUARDED_BY(exchange_mu_);
  std::atomic<uint16_t> listen_port_{0};
  base::LogLimiter conflicts_;  // refused metadata, told as events
};

}  // namespace nixl::core
