// plugins/ucx/worker.h - one UCP worker with its lock, its endpoints, and what it has to report.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "../common/mutex.h"
#include "connection_info.h"
#include "ucp_abi.h"
#include "ucx_library.h"

namespace nixl::ucx {

class Worker;
struct Peer;

// Rounds of progress without an event after which UCX has nothing left to do by itself.
inline constexpr unsigned kQuietRounds = 64;

// A mutex that says when somebody waits for it, so that whoever polls can make way.
class PoliteMutex {
 public:
  void lock() {
    if (mutex_.try_lock()) return;
    waiting_.fetch_add(1, std::memory_order_relaxed);
    mutex_.lock();
    waiting_.fetch_sub(1, std::memory_order_relaxed);
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }
  bool wanted() const { return waiting_.load(std::memory_order_relaxed) > 0; }

 private:
  std::mutex mutex_;
  std::atomic<int> waiting_{0};
};

// The way from one worker to one peer. The first two are constant, the rest is guarded by the
// worker's lock.
struct Endpoint {
  Worker* worker = nullptr;
  Peer* peer = nullptr;
  abi::Ep ep = nullptr;
  bool flushing = false;       // about to be closed politely
  bool flushed = false;
  bool closing = false;        // given to UCX
  std::shared_ptr<Peer> keep, keep_flush;  // while UCX may call back
};

// Another agent's engine, or this one itself. Lives while an endpoint, a request or the engine
// refers to it, which may be longer than the host knows of it.
struct Peer : std::enable_shared_from_this<Peer> {
  std::string name;
  ConnectionInfo info;
  bool self = false;
  std::atomic<abi::Status> lost{abi::kOk};  // why nothing can be sent any more
  std::atomic<uint32_t> slices{0};          // not yet reported
  std::atomic<bool> force{true};            // close without flushing
  std::vector<Endpoint> endpoints;          // by worker

  // Held while the host is told about this peer (it may call back into disconnect(), hence
  // recursive); after disconnect() host_peer is null and the host is told nothing.
  std::recursive_mutex reporting;
  void* host_peer = nullptr;
};

// Bytes that open a region to peers, and what each worker made of them.
struct KeyHolder {
  std::string bytes;
  bool region = false;                   // of a registration of ours
  abi::Rkey rkey = nullptr;              // of worker 0
  std::unique_ptr<abi::Rkey[]> more;     // of the others, by worker - 1; made when first used
  KeyHolder *previous = nullptr, *next = nullptr;  // all of an engine
};

struct PieceFailure {
  uint64_t piece;
  abi::Status status;
};

struct Request;

// One post() on its way. Guarded by the worker's lock until it is in `ended`.
struct Slice {
  Worker* worker = nullptr;
  Request* request = nullptr;
  uint64_t attempt = 0, first = 0, count = 0;
  uint64_t bytes = 0;
  uint64_t outstanding = 0;  // UCX requests, plus one while post() is at it
  abi::Status flush = abi::kOk;
  bool abandoned = false;    // UCX may still come back to it
  std::vector<PieceFailure> failures;
  Slice *previous = nullptr, *next = nullptr;  // in flight on this worker
};

struct PeerReport {
  std::shared_ptr<Peer> peer;
  bool up = false;
  abi::Status status = abi::kOk;
};

// What was learnt under the lock and is told after it.
struct Reports {
  std::vector<Slice*> ended;
  std::vector<std::string> messages;
  std::vector<PeerReport> peers;
  bool empty() const { return ended.empty() && messages.empty() && peers.empty(); }
  size_t size() const { return ended.size() + messages.size() + peers.size(); }
  void clear() {
    ended.clear();
    messages.clear();
    peers.clear();
  }
};

// One ucp_worker. UCX is told that its calls are serialised; `mutex` does that: all methods but the
// constructor want it held. UCX calls back only from within these methods.
class Worker {
 public:
  // Throws nixl::BackendFailure.
  Worker(const Library& library, abi::Context context, unsigned index, bool wakeup,
         bool receives_messages);
  ~Worker();  // endpoints closed before
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  PoliteMutex mutex;

  unsigned index() const { return index_; }
  int eventFd() const { return event_fd_; }
  const std::string& address() const { return address_; }

  // The endpoint to `peer`, made if need be. Null, with *status set, if it cannot be made.
  abi::Ep endpoint(Peer& peer, bool peer_errors, abi::Status* status);
  // The key as the endpoint `ep` understands it. Null, with *status set, if it does not.
  abi::Rkey unpack(KeyHolder& key, abi::Ep ep, abi::Status* status);
  void destroyKey(KeyHolder& key);

  Slice* newSlice();
  void recycle(Slice* slice);
  void startSlice(Slice* slice);
  // One of the slice's parts ended; the last one moves it to reports.
  void partEnded(Slice* slice) {
    if (--slice->outstanding == 0) sliceEnded(slice);
  }
  // Takes the slice out of those in flight, for a caller that reports it itself.
  void takeSlice(Slice* slice);
  Slice* inFlight() const { return in_flight_; }
  void sliceEnded(Slice* slice);

  // A message to the peer behind `ep`. Copies. Returns UCX's status, kInProgress included.
  abi::Status send(abi::Ep ep, std::string_view bytes);
  uint64_t messagesInFlight() const { return messages_in_flight_; }

  // Asks UCX to close the endpoint, after a flush unless by force (which may follow a polite try);
  // it is gone when endpoints() has fallen. Never blocks.
  void close(Endpoint& endpoint, bool force);
  // close() at the next round, by force if the peer says so. Needs no lock.
  void wantClose(const std::shared_ptr<Peer>& peer);
  void closeAll(bool force);
  uint64_t endpoints() const { return open_.size(); }
  // Reports what is in flight as cancelled although UCX did not give it back.
  void abandon();

  // One round; returns how much happened.
  unsigned advance();
  abi::Status arm();

  Reports reports;
  Reports telling;  // belongs to the thread that set `reporting`
  bool reporting = false;  // one thread at a time tells, so that messages keep their order

  static void pieceEnded(void* request, abi::Status status, void* slice);
  static void flushEnded(void* request, abi::Status status, void* slice);

 private:
  static void onEndpointError(void* arg, abi::Ep ep, abi::Status status);
  static void onEndpointFlushed(void* request, abi::Status status, void* arg);
  static void onEndpointClosed(void* request, abi::Status status, void* arg);
  static void onMessageSent(void* request, abi::Status status, void* arg);
  static abi::Status onMessage(void* arg, const void* header, size_t header_length, void* data,
                               size_t length, const abi::AmRecvParam* param);
  static void onMessageFetched(void* request, abi::Status status, size_t length, void* arg);
  void releaseHeld();
  void endpointClosed(Endpoint& endpoint);
  void closeWanted();

  const abi::Functions& ucp_;
  const unsigned index_;
  abi::WorkerHandle handle_ = nullptr;
  int event_fd_ = -1;
  std::string address_;
  std::vector<Endpoint*> open_;
  uint64_t messages_in_flight_ = 0;
  Slice* in_flight_ = nullptr;
  std::vector<Slice*> spare_;
  // Slices that failed. UCX reports an operation as failed while a transport may still have it in
  // a queue and carry it out: they are told only when the worker has gone quiet.
  std::vector<Slice*> held_;
  unsigned quiet_rounds_ = 0;
  uint64_t rounds_left_ = 0;  // told then in any case: others may keep the worker busy for ever

  PluginMutex wanted_mutex_;  // leaf
  std::vector<std::shared_ptr<Peer>> close_wanted_ NIXL_PLUGIN_GUARDED_BY(wanted_mutex_);
  std::atomic<bool> any_close_wanted_{false};
};

// What UCX keeps for us in each of its requests.
struct RequestArea {
  uint64_t piece;
};

}  // namespace nixl::ucx
