#include "worker.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

constexpr unsigned kMessageId = 0;
constexpr uint64_t kSegment = 256 * 1024;  // bytes that a transport moves in one go, at least
constexpr size_t kPadding = 4096;  // zero bytes behind what UCX reads without bounds

struct OutgoingMessage {
  Worker* worker;
  std::unique_ptr<char[]> bytes;
};

struct IncomingMessage {  // one that a peer sends by rendezvous
  Worker* worker;
  std::string bytes;
};

}  // namespace

Worker::Worker(const Library& library, abi::Context context, unsigned index, bool wakeup,
               bool receives_messages)
    : ucp_(library.ucp()), index_(index) {
  LogCapture said;
  const auto check = [&](abi::Status status, const char* what) {
    if (status == abi::kOk) return;
    if (handle_ != nullptr) ucp_.worker_destroy(handle_);
    throw BackendFailure(
        Errc::BACKEND,
        said.explain(std::string(what) + ": " + ucp_.status_string(status)), status);
  };
  abi::WorkerParams params{};
  params.field_mask = abi::kWorkerParamThreadMode;
  params.thread_mode = abi::kThreadSerialized;
  check(ucp_.worker_create(context, &params, &handle_), "create a worker");
  if (wakeup) check(ucp_.worker_get_efd(handle_, &event_fd_), "get a worker's event descriptor");

  abi::Address address = nullptr;
  size_t length = 0;
  check(ucp_.worker_get_address(handle_, &address, &length), "get a worker's address");
  address_.assign(reinterpret_cast<const char*>(address), length);
  ucp_.worker_release_address(handle_, address);

  if (!receives_messages) return;
  abi::AmHandlerParam handler{};
  handler.field_mask = abi::kAmHandlerId | abi::kAmHandlerFlags | abi::kAmHandlerCallback |
                       abi::kAmHandlerArg;
  handler.id = kMessageId;
  handler.flags = abi::kAmWholeMessage;
  handler.cb = &Worker::onMessage;
  handler.arg = this;
  check(ucp_.worker_set_am_recv_handler(handle_, &handler), "set a worker's message handler");
}

Worker::~Worker() {
  if (handle_ != nullptr) ucp_.worker_destroy(handle_);
  for (Slice* slice : spare_) delete slice;
}

// ---- endpoints ---------------------------------------------------------------------------------

abi::Ep Worker::endpoint(Peer& peer, bool peer_errors, abi::Status* status) {
  Endpoint& endpoint = peer.endpoints[index_];
  const bool ending = endpoint.flushing || endpoint.closing;
  if (endpoint.ep != nullptr && !ending) return endpoint.ep;
  if (const abi::Status lost = peer.lost.load(); lost != abi::kOk) {
    *status = lost;
    return nullptr;
  }
  if (ending) {
    *status = abi::kCanceled;
    return nullptr;
  }
  const std::string& address = peer.self ? address_ : peer.info.address;
  std::string padded = address;
  padded.append(kPadding, '\0');

  abi::EpParams params{};
  params.field_mask = abi::kEpParamRemoteAddress | abi::kEpParamErrHandlingMode;
  params.address = reinterpret_cast<const abi::AddressObject*>(padded.data());
  // One cannot lose oneself, and the transports for that know no error handling.
  params.err_mode = peer_errors && !peer.self ? abi::kErrHandlingPeer : abi::kErrHandlingNone;
  if (params.err_mode == abi::kErrHandlingPeer) {
    params.field_mask |= abi::kEpParamErrHandler;
    params.err_handler = {&Worker::onEndpointError, &endpoint};
  }
  abi::Ep made = nullptr;
  *status = ucp_.ep_create(handle_, &params, &made);
  if (*status != abi::kOk) return nullptr;
  endpoint.ep = made;
  endpoint.keep = peer.shared_from_this();
  open_.push_back(&endpoint);
  return made;
}

void Worker::onEndpointError(void* arg, abi::Ep, abi::Status status) {
  auto& endpoint = *static_cast<Endpoint*>(arg);
  Peer& peer = *endpoint.peer;
  abi::Status none = abi::kOk;
  if (peer.lost.compare_exchange_strong(none, status == abi::kOk ? abi::kNotConnected : status))
    endpoint.worker->reports.peers.push_back({peer.shared_from_this(), false, peer.lost.load()});
  // UCX ends what is in flight when the endpoint is closed, which it must not be in here.
  for (Endpoint& each : peer.endpoints) each.worker->wantClose(peer.shared_from_this());
}

void Worker::wantClose(const std::shared_ptr<Peer>& peer) {
  const PluginLock lock(wanted_mutex_);
  close_wanted_.push_back(peer);
  any_close_wanted_.store(true, std::memory_order_release);
}

void Worker::closeWanted() {
  std::vector<std::shared_ptr<Peer>> wanted;
  {
    const PluginLock lock(wanted_mutex_);
    wanted.swap(close_wanted_);
    any_close_wanted_.store(false, std::memory_order_relaxed);
  }
  for (const auto& peer : wanted) close(peer->endpoints[index_], peer->force.load());
}

void Worker::closeAll(bool force) {
  for (Endpoint* endpoint : std::vector<Endpoint*>(open_)) {
    close(*endpoint, force);
  }
}

void Worker::close(Endpoint& endpoint, bool force) {
  if (endpoint.ep == nullptr || endpoint.closing) return;
  abi::RequestParam param{};
  param.op_attr_mask = abi::kOpCallback | abi::kOpUserData | abi::kOpFlags;
  param.user_data = &endpoint;
  if (!force && !endpoint.flushed) {
    if (endpoint.flushing) return;
    endpoint.flushing = true;
    param.cb.send = &Worker::onEndpointFlushed;
    const abi::StatusPointer flushing = ucp_.ep_flush_nbx(endpoint.ep, &param);
    if (abi::isError(flushing))
      force = true;
    else if (flushing != nullptr) {
      endpoint.keep_flush = endpoint.peer->shared_from_this();
      return;
    }
  }
  endpoint.closing = true;
  param.flags = force ? abi::kEpCloseForce : 0;
  param.cb.send = &Worker::onEndpointClosed;
  const abi::StatusPointer closing = ucp_.ep_close_nbx(endpoint.ep, &param);
  if (closing == nullptr || abi::isError(closing)) endpointClosed(endpoint);
}

void Worker::onEndpointFlushed(void* request, abi::Status status, void* arg) {
  auto& endpoint = *static_cast<Endpoint*>(arg);
  Worker& worker = *endpoint.worker;
  worker.ucp_.request_free(request);
  if (status != abi::kOk) endpoint.peer->force.store(true);
  endpoint.flushed = true;
  const std::shared_ptr<Peer> peer = std::move(endpoint.keep_flush);  // else it keeps itself
  worker.wantClose(peer);
}

void Worker::onEndpointClosed(void* request, abi::Status, void* arg) {
  auto& endpoint = *static_cast<Endpoint*>(arg);
  Worker& worker = *endpoint.worker;
  worker.ucp_.request_free(request);
  worker.endpointClosed(endpoint);
}

void Worker::endpointClosed(Endpoint& endpoint) {
  open_.erase(std::remove(open_.begin(), open_.end(), &endpoint), open_.end());
  endpoint.ep = nullptr;
  endpoint.flushing = endpoint.flushed = endpoint.closing = false;
  const std::shared_ptr<Peer> last = std::move(endpoint.keep);  // `endpoint` may go with it
}

// ---- keys --------------------------------------------------------------------------------------

abi::Rkey Worker::unpack(KeyHolder& key, abi::Ep ep, abi::Status* status) {
  abi::Rkey* slot = &key.rkey;
  if (index_ > 0) {
    if (key.more == nullptr) {
      *status = abi::kInvalidParam;
      return nullptr;
    }
    slot = &key.more[index_ - 1];
  }
  if (*slot != nullptr) return *slot;
  std::string padded = key.bytes;
  padded.append(kPadding, '\0');
  *status = ucp_.ep_rkey_unpack(ep, padded.data(), slot);
  if (*status != abi::kOk) *slot = nullptr;
  return *slot;
}

void Worker::destroyKey(KeyHolder& key) {
  abi::Rkey* slot = index_ == 0 ? &key.rkey : key.more ? &key.more[index_ - 1] : nullptr;
  if (slot == nullptr || *slot == nullptr) return;
  ucp_.rkey_destroy(*slot);
  *slot = nullptr;
}

// ---- slices ------------------------------------------------------------------------------------

Slice* Worker::newSlice() {
  if (spare_.empty()) return new Slice;
  Slice* slice = spare_.back();
  spare_.pop_back();
  return slice;
}

void Worker::recycle(Slice* slice) {
  slice->failures.clear();
  slice->flush = abi::kOk;
  spare_.push_back(slice);
}

void Worker::startSlice(Slice* slice) {
  slice->previous = nullptr;
  slice->next = in_flight_;
  if (in_flight_ != nullptr) in_flight_->previous = slice;
  in_flight_ = slice;
}

void Worker::takeSlice(Slice* slice) {
  (slice->previous != nullptr ? slice->previous->next : in_flight_) = slice->next;
  if (slice->next != nullptr) slice->next->previous = slice->previous;
}

void Worker::pieceEnded(void* request, abi::Status status, void* arg) {
  auto* slice = static_cast<Slice*>(arg);
  if (status != abi::kOk)
    slice->failures.push_back({static_cast<RequestArea*>(request)->piece, status});
  slice->worker->ucp_.request_free(request);
  slice->worker->partEnded(slice);
}

void Worker::flushEnded(void* request, abi::Status status, void* arg) {
  auto* slice = static_cast<Slice*>(arg);
  slice->flush = status;
  slice->worker->ucp_.request_free(request);
  slice->worker->partEnded(slice);
}

void Worker::sliceEnded(Slice* slice) {
  if (slice->failures.empty() && slice->flush == abi::kOk) {
    takeSlice(slice);
    reports.ended.push_back(slice);
    return;
  }
  // A round carries out at least one segment of one operation.
  held_.push_back(slice);
  quiet_rounds_ = 0;
  rounds_left_ += kQuietRounds + 8 * (slice->count + slice->bytes / kSegment);
}

void Worker::releaseHeld() {
  for (Slice* slice : held_) {
    takeSlice(slice);
    reports.ended.push_back(slice);
  }
  held_.clear();
  rounds_left_ = 0;
}

void Worker::abandon() {
  held_.clear();
  while (in_flight_ != nullptr) {
    Slice* slice = in_flight_;
    takeSlice(slice);
    slice->abandoned = true;
    slice->flush = abi::kCanceled;
    reports.ended.push_back(slice);
  }
}

// ---- messages ----------------------------------------------------------------------------------

abi::Status Worker::send(abi::Ep ep, std::string_view bytes) {
  auto message = std::make_unique<OutgoingMessage>();
  message->worker = this;
  message->bytes.reset(new char[bytes.size() + 1]);
  std::memcpy(message->bytes.get(), bytes.data(), bytes.size());
  abi::RequestParam param{};
  param.op_attr_mask = abi::kOpCallback | abi::kOpUserData | abi::kOpFlags | abi::kOpMemoryType;
  param.flags = abi::kAmSendEager;
  param.cb.send = &Worker::onMessageSent;
  param.user_data = message.get();
  param.memory_type = abi::kMemoryHost;
  const abi::StatusPointer sent = ucp_.am_send_nbx(ep, kMessageId, nullptr, 0,
                                                   message->bytes.get(), bytes.size(), &param);
  if (sent == nullptr) return abi::kOk;
  if (abi::isError(sent)) return abi::errorOf(sent);
  message.release();  // onMessageSent() owns it now
  ++messages_in_flight_;
  return abi::kInProgress;
}

void Worker::onMessageSent(void* request, abi::Status, void* arg) {
  const std::unique_ptr<OutgoingMessage> message(static_cast<OutgoingMessage*>(arg));
  --message->worker->messages_in_flight_;
  message->worker->ucp_.request_free(request);
}

abi::Status Worker::onMessage(void* arg, const void*, size_t, void* data, size_t length,
                              const abi::AmRecvParam* param) {
  auto& worker = *static_cast<Worker*>(arg);
  if (!(param->recv_attr & abi::kAmRecvIsRendezvous)) {
    worker.reports.messages.emplace_back(static_cast<const char*>(data), length);
    return abi::kOk;
  }
  auto message = std::make_unique<IncomingMessage>();
  message->worker = &worker;
  message->bytes.resize(length);
  abi::RequestParam fetch{};
  fetch.op_attr_mask = abi::kOpCallback | abi::kOpUserData;
  fetch.cb.recv_am = &Worker::onMessageFetched;
  fetch.user_data = message.get();
  const abi::StatusPointer fetching =
      worker.ucp_.am_recv_data_nbx(worker.handle_, data, message->bytes.data(), length, &fetch);
  if (fetching == nullptr) {
    worker.reports.messages.push_back(std::move(message->bytes));
    return abi::kOk;
  }
  if (abi::isError(fetching)) return abi::kOk;  // lost with its sender
  message.release();
  return abi::kInProgress;
}

void Worker::onMessageFetched(void* request, abi::Status status, size_t, void* arg) {
  const std::unique_ptr<IncomingMessage> message(static_cast<IncomingMessage*>(arg));
  Worker& worker = *message->worker;
  worker.ucp_.request_free(request);
  if (status == abi::kOk) worker.reports.messages.push_back(std::move(message->bytes));
}

// ---- progress ----------------------------------------------------------------------------------

unsigned Worker::advance() {
  const unsigned moved = ucp_.worker_progress(handle_);
  if (any_close_wanted_.load(std::memory_order_acquire)) closeWanted();
  if (held_.empty()) return moved;
  quiet_rounds_ = moved == 0 ? quiet_rounds_ + 1 : 0;
  if (quiet_rounds_ >= kQuietRounds || rounds_left_-- == 0) releaseHeld();
  return moved + 1;
}

abi::Status Worker::arm() {
  if (any_close_wanted_.load(std::memory_order_acquire) || !reports.empty() ||
      !held_.empty())
    return abi::kBusy;
  return ucp_.worker_arm(handle_);
}

}  // namespace nixl::ucx
