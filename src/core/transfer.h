// core/transfer.h - a request's life: prepared, posted, done or failed, and posted again.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "core/backend.h"
#include "core/handles.h"
#include "core/peers.h"
#include "core/planner.h"
#include "nixl/agent.h"

namespace nixl::core {

// Which states may follow which. FAILED and CANCELED may be seen before the engine has let go of
// every piece; posting again then has to wait (REPOST_ACTIVE).
constexpr bool mayBecome(XferState from, XferState to) {
  switch (from) {
    case XferState::PREPARED: return to == XferState::POSTED;
    case XferState::POSTED:
      return to == XferState::DONE || to == XferState::FAILED || to == XferState::CANCELED;
    case XferState::DONE:
    case XferState::FAILED:
    case XferState::CANCELED: return to == XferState::POSTED;
  }
  return false;
}
static_assert(!mayBecome(XferState::FAILED, XferState::DONE));
static_assert(!mayBecome(XferState::PREPARED, XferState::DONE));

// One prepared request and its attempts.
//
// Threads: post(), drive(), complete(), cancel() and the readers from any thread. `mu_` is a leaf
// lock; the engine is never called with it held. While `posting_` is set one thread hands pieces
// to the engine, and finishing is left to it.
// Lifetime: found by number in a table of the process. It stays there after release() until the
// engine has reported every piece, since it owns what the plan points to.
class Transfer : public std::enable_shared_from_this<Transfer> {
 public:
  struct Setup {
    AgentCore* agent;
    Backend* backend;
    std::shared_ptr<Peer> peer;  // nullptr: the agent itself
    Plan plan;
    std::shared_ptr<const Resolution> local, remote;
    const PeerBackend* link = nullptr;  // of the peer
    std::string notification;
    std::string custom;
    std::chrono::nanoseconds timeout{0};
    std::string story;  // how the path was chosen among several; a part of explain()
  };
  static Result<std::shared_ptr<Transfer>> create(Setup setup);
  ~Transfer();

  // nullptr: released, or never was.
  static std::shared_ptr<Transfer> find(uint64_t id);
  // For engines' words: also what was released and is still in flight.
  static std::shared_ptr<Transfer> findAny(uint64_t id);
  static std::vector<std::shared_ptr<Transfer>> ofAgent(const AgentCore* agent);
  // Those that are in flight, or are being posted just now. What was changed before the call, a
  // region's `live` or a peer's revocations, is seen by every transfer that is not among them.
  static std::vector<std::shared_ptr<Transfer>> activeOf(const AgentCore* agent);

  uint64_t id() const { return id_; }
  AgentCore& agent() const { return *setup_.agent; }
  Backend& backend() const { return *setup_.backend; }
  const std::shared_ptr<Peer>& peer() const { return setup_.peer; }
  const Plan& plan() const { return setup_.plan; }
  const std::string& story() const { return setup_.story; }

  XferState state() const { return state_.load(std::memory_order_acquire); }
  // Pieces are with the engine, or waiting to be handed to it.
  bool inFlight() const;

  // What was not handed to the engine yet, about.
  uint64_t bytesLeft() const;

  // Starts an attempt; drive() hands over its pieces. False: the peer took memory back meanwhile,
  // and checkRevoked() has to look again.
  // Takes `notification` only if it says true.
  Result<bool> begin(std::optional<std::string>& notification,
               std::optional<std::chrono::nanoseconds> timeout = {});
  // Hands pieces to the engine until all are, or the time is over. True: nothing is left to hand.
  bool drive(uint64_t until_ns);
  // The engine's report of pieces [first, first + count). Anything that does not fit is ignored.
  void complete(uint64_t attempt, uint64_t first, uint64_t count, Errc status, uint64_t bytes,
                int32_t native, const char* text);

  void cancel();
  // The attempt failed for the user at once; what is in flight is cancelled. For deadlines.
  void expire(Errc code, std::string text);
  // The user let go. Cancels what is in flight.
  void release();
  void abandon();  // the agent dies: out of the table, whatever the engine still does

  // When it must be looked at again (deadline or stall), and looking at it.
  void checkTime(uint64_t now_ns, uint64_t stall_ns);
  uint64_t nextTime(uint64_t stall_ns) const;

  // A region of this agent that it uses was deregistered.
  bool usesDeadRegion() const;
  // NOT_FOUND: the peer took memory of this transfer back, or is to be asked again (see begin()).
  Status checkRevoked();
  // Memory of it was taken back by the peer.
  bool revoked() const;
  Status error() const;
  PieceStatus pieces() const;
  TransferTelemetry telemetry() const;
  uint64_t attempt() const;
  std::string notification() const;

 private:
  explicit Transfer(Setup setup);
  Status checkRegions() NIXL_REQUIRES(mu_);
  void openPieces() NIXL_REQUIRES(mu_);  // from here on each piece has a status of its own
  // Ends those pieces of a slice that were not reported yet.
  void settle(uint64_t first, uint64_t count, Errc status) NIXL_REQUIRES(mu_);
  void record(uint64_t first, uint64_t count, Errc status) NIXL_REQUIRES(mu_);
  // What happened, with the backend, the direction and the peer in front.
  std::string withObject(std::string_view reason) const;
  void failed(Errc status, int32_t native, const char* text) NIXL_REQUIRES(mu_);
  // True for the one thread that is to call finish().
  bool claimFinish() NIXL_REQUIRES(mu_);
  uint64_t sliceBytes(uint64_t first, uint64_t count) const;
  void finish();
  void become(XferState next) NIXL_REQUIRES(mu_);

  const Setup setup_;
  nixl_plan engine_plan_{};
  void* request_ = nullptr;
  uint64_t id_ = 0;

  std::atomic<XferState> state_{XferState::PREPARED};
  std::atomic<bool> released_{false};
  std::atomic<uint64_t> revocations_seen_{0};  // the peer's, when its memory was last looked at

  mutable base::Mutex mu_;
  uint64_t attempt_ NIXL_GUARDED_BY(mu_) = 0;
  uint64_t posted_ NIXL_GUARDED_BY(mu_) = 0;    // pieces handed to the engine
  uint64_t reported_ NIXL_GUARDED_BY(mu_) = 0;  // of those, ended
  uint64_t failed_ NIXL_GUARDED_BY(mu_) = 0;
  uint64_t in_order_ NIXL_GUARDED_BY(mu_) = 0;  // pieces 0..in_order_ are done; see pieces_
  uint64_t bytes_done_ NIXL_GUARDED_BY(mu_) = 0;
  std::vector<int32_t> pieces_ NIXL_GUARDED_BY(mu_);  // only once reports came out of order
  bool posting_ NIXL_GUARDED_BY(mu_) = false;
  bool finishing_ NIXL_GUARDED_BY(mu_) = false;
  bool stop_ NIXL_GUARDED_BY(mu_) = false;  // hand over no more pieces
  bool cancel_asked_ NIXL_GUARDED_BY(mu_) = false;
  std::atomic<bool> active_{false};  // begun, and the engine has not let go; written under mu_
  Status error_ NIXL_GUARDED_BY(mu_);
  std::string notification_ NIXL_GUARDED_BY(mu_);
  uint64_t regions_checked_ NIXL_GUARDED_BY(mu_) = UINT64_MAX;
  uint64_t started_ns_ NIXL_GUARDED_BY(mu_) = 0;
  uint64_t post_ns_ NIXL_GUARDED_BY(mu_) = 0;
  uint64_t ended_ns_ NIXL_GUARDED_BY(mu_) = 0;
  uint64_t deadline_ns_ NIXL_GUARDED_BY(mu_) = UINT64_MAX;
  uint64_t moved_ns_ NIXL_GUARDED_BY(mu_) = 0;  // when the last report came
};

}  // namespace nixl::core
