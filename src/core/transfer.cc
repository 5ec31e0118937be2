#include "core/transfer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>

#include "base/clock.h"
#include "base/log.h"
#include "core/agent_core.h"

namespace nixl::core {
namespace {

HandleTable<Transfer>& table() {
  static auto* transfers = new HandleTable<Transfer>;
  return *transfers;
}

}  // namespace

Transfer::Transfer(Setup setup)
    : setup_(std::move(setup)),
      revocations_seen_(setup_.remote->revocations),
      notification_(setup_.notification) {}

Result<std::shared_ptr<Transfer>> Transfer::create(Setup setup) {
  std::shared_ptr<Transfer> transfer(new Transfer(std::move(setup)));
  const Setup& s = transfer->setup_;
  const Plan& plan = s.plan;
  nixl_plan& p = transfer->engine_plan_;
  p.struct_size = sizeof p;
  p.op = static_cast<uint32_t>(plan.op);
  p.local_kind = static_cast<uint32_t>(plan.local_kind);
  p.remote_kind = static_cast<uint32_t>(plan.remote_kind);
  p.count = plan.count;
  p.bytes = plan.bytes;
  p.local_addr = plan.local_address();
  p.remote_addr = plan.remote_address();
  p.length = plan.length();
  p.local_region = plan.local_region();
  p.remote_region = plan.remote_region();
  // Without an index array all pieces are in one region: the table starts there.
  p.local_regions = s.local->handles.data() + (p.local_region ? 0 : plan.only_local_region);
  p.remote_regions = s.remote->handles.data() + (p.remote_region ? 0 : plan.only_remote_region);
  p.local_region_count = p.local_region ? static_cast<uint32_t>(s.local->handles.size()) : 1;
  p.remote_region_count = p.remote_region ? static_cast<uint32_t>(s.remote->handles.size()) : 1;
  p.custom = s.custom.data();
  p.custom_size = s.custom.size();
  GatePass pass(s.peer ? &s.peer->gate : nullptr);
  if (!pass)
    return Status(Errc::NOT_FOUND, fmt::format("peer \"{}\" was invalidated", s.peer->name));
  if (s.peer) p.peer = s.link->engine_peer;  // valid inside of the gate

  transfer->id_ = table().add(transfer);
  if (transfer->id_ == 0)
    return Status(Errc::LIMIT, "16 million transfers are alive; release some");
  auto request =
      s.backend->engine->prepare(p, reinterpret_cast<void*>(transfer->id_));
  if (!request.has_value()) {
    table().take(transfer->id_);
    return std::move(request).error();
  }
  transfer->request_ = *request;
  return transfer;
}

Transfer::~Transfer() {
  if (request_ != nullptr) setup_.backend->engine->release(request_);
}

std::shared_ptr<Transfer> Transfer::find(uint64_t id) {
  auto transfer = table().find(id);
  if (transfer && transfer->released_.load(std::memory_order_acquire)) return nullptr;
  return transfer;
}

std::shared_ptr<Transfer> Transfer::findAny(uint64_t id) { return table().find(id); }

std::vector<std::shared_ptr<Transfer>> Transfer::ofAgent(const AgentCore* agent) {
  std::vector<std::shared_ptr<Transfer>> transfers;
  for (auto& [id, transfer] :
       table().select([agent](const Transfer& t) { return t.setup_.agent == agent; }))
    transfers.push_back(std::move(transfer));
  return transfers;
}

std::vector<std::shared_ptr<Transfer>> Transfer::activeOf(const AgentCore* agent) {
  std::vector<std::shared_ptr<Transfer>> transfers;
  for (auto& [id, transfer] : table().select([agent](const Transfer& t) {
         return t.setup_.agent == agent && t.active_.load(std::memory_order_seq_cst);
       }))
    transfers.push_back(std::move(transfer));
  return transfers;
}

bool Transfer::inFlight() const {
  base::MutexLock lock(mu_);
  return active_;
}

uint64_t Transfer::bytesLeft() const {
  base::MutexLock lock(mu_);
  return setup_.plan.bytes / setup_.plan.count * (setup_.plan.count - posted_);
}

void Transfer::become(XferState next) {
  assert(mayBecome(state_.load(std::memory_order_relaxed), next));
  state_.store(next, std::memory_order_seq_cst);
}

// Regions are checked again only after something was deregistered since they were last found alive.
Status Transfer::checkRegions() {
  const uint64_t changes = setup_.backend->registry.changes();
  if (changes == regions_checked_) return {};
  const Plan& plan = setup_.plan;
  auto check = [&](const Resolution& side, const uint32_t* region, uint32_t only,
                   const uint64_t* address, const char* which) -> Status {
    auto live = [&](uint32_t number) {
      return static_cast<const Region*>(side.owners[number].get())
          ->live.load(std::memory_order_acquire);
    };
    const uint64_t count = region ? plan.count : 1;
    uint32_t last = UINT32_MAX;
    for (uint64_t i = 0; i < count; ++i) {
      const uint32_t number = region ? region[i] : only;
      if (number == last) continue;
      last = number;
      if (!live(number))
        return Status(Errc::NOT_FOUND,
                      fmt::format("post to \"{}\": the {} memory of piece {} (address {:#x}) was "
                                  "deregistered after the transfer was prepared",
                                  setup_.peer ? setup_.peer->name : setup_.agent->name(), which, i,
                                  address[i]));
    }
    return {};
  };
  NIXL_TRY(check(*setup_.local, plan.local_region(), plan.only_local_region, plan.local_address(),
                 "local"));
  if (!setup_.peer)
    NIXL_TRY(check(*setup_.remote, plan.remote_region(), plan.only_remote_region,
                   plan.remote_address(), "target"));
  regions_checked_ = changes;
  return {};
}

bool Transfer::revoked() const {
  const Plan& plan = setup_.plan;
  return setup_.peer->firstRevoked(*setup_.backend, plan.remote_kind, plan.remote_address(),
                                   plan.length(), plan.count) != plan.count;
}

Status Transfer::checkRevoked() {
  if (!setup_.peer) return {};
  const uint64_t now = setup_.peer->revocations();
  if (now == revocations_seen_.load(std::memory_order_acquire)) return {};
  const Plan& plan = setup_.plan;
  const uint64_t piece = setup_.peer->firstRevoked(
      *setup_.backend, plan.remote_kind, plan.remote_address(), plan.length(), plan.count);
  if (piece != plan.count)
    return Status(Errc::NOT_FOUND,
                  fmt::format("post to \"{}\": it deregistered the memory of piece {} (address "
                              "{:#x}) after the transfer was prepared",
                              setup_.peer->name, piece, plan.remote_address()[piece]));
  revocations_seen_.store(now, std::memory_order_release);
  return {};
}

Result<bool> Transfer::begin(std::optional<std::string>& notification,
                       std::optional<std::chrono::nanoseconds> timeout) {
  base::MutexLock lock(mu_);
  if (active_)
    return Status(Errc::REPOST_ACTIVE,
                  fmt::format("the transfer is still in flight ({} of {} pieces ended); it can be "
                              "posted again once it is done, or after cancelling",
                              reported_, setup_.plan.count));
  if (notification && !notification->empty() && setup_.peer &&
      !setup_.backend->has(NIXL_ENGINE_NOTIF))
    return Status(Errc::BACKEND,
                  fmt::format("backend {} cannot carry notifications", setup_.backend->name));
  // Whoever takes memory back marks it first and looks for active transfers then; so this is seen
  // as active, or sees the mark.
  active_.store(true, std::memory_order_seq_cst);
  const bool revoked = setup_.peer && setup_.peer->revocations() != revocations_seen_.load();
  Status live = revoked ? Status() : checkRegions();
  if (revoked || !live.ok()) {
    active_ = false;
    if (!live.ok()) return live;
    return false;
  }
  if (notification) notification_ = std::move(*notification);
  ++attempt_;
  posted_ = reported_ = failed_ = in_order_ = bytes_done_ = 0;
  pieces_.clear();
  stop_ = cancel_asked_ = finishing_ = false;
  error_ = {};
  started_ns_ = moved_ns_ = base::nowNs();
  post_ns_ = ended_ns_ = 0;
  const auto limit = timeout.value_or(setup_.timeout).count();
  deadline_ns_ = limit > 0 ? started_ns_ + static_cast<uint64_t>(limit) : UINT64_MAX;
  become(XferState::POSTED);
  return true;
}

uint64_t Transfer::sliceBytes(uint64_t first, uint64_t count) const {
  if (count == setup_.plan.count) return setup_.plan.bytes;
  const uint64_t* length = setup_.plan.length() + first;
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < count; ++i) bytes += length[i];
  return bytes;
}

bool Transfer::claimFinish() {
  if (!active_ || posting_ || finishing_ || reported_ != posted_) return false;
  if (posted_ != setup_.plan.count && !stop_) return false;
  return finishing_ = true;
}

bool Transfer::drive(uint64_t until_ns) {
  const uint64_t count = setup_.plan.count;
  const uint64_t max_slice = setup_.backend->engine->facts().max_slice;
  {
    base::MutexLock lock(mu_);
    if (!active_ || posting_ || finishing_) return true;
    posting_ = true;
  }
  bool more = true, finish_now = false;
  while (true) {
    nixl_post post{};
    post.struct_size = sizeof post;
    uint64_t reported_before;
    {
      base::MutexLock lock(mu_);
      if (stop_ || posted_ == count) more = false;
      if (!more || (posted_ != 0 && base::nowNs() >= until_ns)) {
        posting_ = false;
        if (post_ns_ == 0) post_ns_ = base::nowNs() - started_ns_;
        finish_now = claimFinish();
        break;
      }
      post.first = posted_;
      post.count = max_slice == 0 ? count - posted_ : std::min(max_slice, count - posted_);
      post.attempt = attempt_;
      post.flags = post.first + post.count == count ? uint32_t{NIXL_POST_LAST} : 0u;
      posted_ += post.count;  // before the call: reports may come from inside of it
      reported_before = reported_;
    }
    // The peer's handle is valid only inside of its gate.
    GatePass pass(setup_.peer ? &setup_.peer->gate : nullptr);
    Result<int32_t> result =
        pass ? setup_.backend->engine->post(request_, post)
             : Result<int32_t>(Status(Errc::NOT_FOUND, fmt::format("peer \"{}\" was invalidated",
                                                                   setup_.peer->name)));
    base::MutexLock lock(mu_);
    if (!result.has_value()) {
      stop_ = true;
      if (error_.ok())
        error_ = Status(result.error().code(), withObject(result.error().message()));
      if (reported_ == reported_before) {
        posted_ -= post.count;  // nothing of it was started
      } else {
        settle(post.first, post.count, error_.code());  // an engine that contradicts itself
      }
    } else if (*result == 0) {
      if (reported_ == reported_before) {
        record(post.first, post.count, Errc::OK);
        reported_ += post.count;
        bytes_done_ += sliceBytes(post.first, post.count);
      } else {
        settle(post.first, post.count, Errc::OK);  // some of it was reported from inside, too
      }
    }
  }
  if (finish_now) finish();
  return !more;
}

void Transfer::record(uint64_t first, uint64_t count, Errc status) {
  if (pieces_.empty()) {
    if (first == in_order_ && status == Errc::OK) {
      in_order_ += count;
      return;
    }
    openPieces();
  }
  std::fill_n(pieces_.begin() + static_cast<ptrdiff_t>(first), count, static_cast<int32_t>(status));
}

void Transfer::openPieces() {
  if (!pieces_.empty()) return;
  pieces_.assign(setup_.plan.count, static_cast<int32_t>(Errc::IN_PROG));
  std::fill_n(pieces_.begin(), in_order_, static_cast<int32_t>(Errc::OK));
}

void Transfer::settle(uint64_t first, uint64_t count, Errc status) {
  openPieces();
  for (uint64_t i = first; i < first + count; ++i) {
    if (pieces_[i] != static_cast<int32_t>(Errc::IN_PROG)) continue;
    pieces_[i] = static_cast<int32_t>(status);
    ++reported_;
    if (status == Errc::OK) {
      bytes_done_ += setup_.plan.length()[i];
    } else {
      ++failed_;
    }
  }
}

std::string Transfer::withObject(std::string_view reason) const {
  const std::string call = setup_.backend->engine->calling("post") + ": ";
  if (reason.starts_with(call)) reason.remove_prefix(call.size());  // said better below
  return fmt::format("{}: {} \"{}\": {}", setup_.backend->name,
                     setup_.plan.op == OpType::WRITE ? "WRITE to" : "READ from",
                     setup_.peer ? setup_.peer->name : setup_.agent->name(), reason);
}

void Transfer::failed(Errc status, int32_t native, const char* text) {
  if (!error_.ok()) return;  // the first one says most
  const std::string_view words =
      text != nullptr && *text != '\0' ? std::string_view(text) : std::string_view(errcName(status));
  std::string message = withObject(words);
  if (native != 0) message += fmt::format(" (native code {})", native);
  // What fails because the user let the peer go is not the peer's doing.
  if (setup_.peer && !setup_.peer->gate.open() && !setup_.peer->down.load()) {
    status = Errc::NOT_FOUND;
    message = fmt::format("peer \"{}\" was invalidated while the transfer was in flight",
                          setup_.peer->name);
  }
  error_ = Status(status, std::move(message));
}

void Transfer::complete(uint64_t attempt, uint64_t first, uint64_t count, Errc status,
                        uint64_t bytes, int32_t native, const char* text) {
  bool finish_now = false;
  {
    base::MutexLock lock(mu_);
    auto ignore = [&](const char* why) {
      NIXL_LOG_WARN_EVERY(10, "engine {}: a report of pieces {} to {} of attempt {} was ignored: {}",
                          setup_.backend->name, first, first + count, attempt, why);
    };
    if (attempt != attempt_ || !active_) return ignore("the attempt is over");
    if (count == 0 || first > posted_ || count > posted_ - first)
      return ignore("they were not posted");
    if (first < in_order_ && pieces_.empty()) return ignore("they were reported before");
    if (!pieces_.empty())
      for (uint64_t i = first; i < first + count; ++i)
        if (pieces_[i] != static_cast<int32_t>(Errc::IN_PROG))
          return ignore("they were reported before");
    record(first, count, status);
    reported_ += count;
    bytes_done_ += std::min(bytes, sliceBytes(first, count));
    if (status != Errc::OK) {
      failed_ += count;
      stop_ = true;
      failed(status, native, text);
    }
    if (reported_ != setup_.plan.count) moved_ns_ = base::nowNs();
    finish_now = claimFinish();
  }
  if (finish_now) finish();
}

void Transfer::finish() {
  std::string message;
  bool whole, canceled;
  {
    base::MutexLock lock(mu_);
    whole = error_.ok() && failed_ == 0 && posted_ == setup_.plan.count;
    message = notification_;
    canceled = cancel_asked_;
  }
  Status sent;
  if (!message.empty()) {
    if (whole && state() == XferState::POSTED && !released_) {
      sent = setup_.agent->notify(*setup_.backend, setup_.peer, metadata::kEnvelopeNotification,
                                  message);
    } else if (setup_.peer && !setup_.peer->down.load(std::memory_order_acquire)) {
      // The other side may be waiting for the message: it learns that it will not come.
      (void)setup_.agent->notify(*setup_.backend, setup_.peer, metadata::kEnvelopeFailure, message);
    }
  }
  bool failed_now = false;
  Status why;
  {
    base::MutexLock lock(mu_);
    if (state_.load(std::memory_order_relaxed) == XferState::POSTED) {
      if (whole && sent.ok()) {
        become(XferState::DONE);
      } else {
        if (error_.ok() && !sent.ok())
          error_ = std::move(sent).within("the data arrived, but its notification was not sent");
        const bool by_request =
            canceled && (error_.ok() || error_.code() == Errc::CANCELED);
        if (by_request) {
          error_ = Status(Errc::CANCELED, fmt::format("cancelled; {} of {} bytes had moved",
                                                      bytes_done_, setup_.plan.bytes));
        } else if (error_.ok()) {
          error_ = Status(Errc::UNKNOWN, "the engine gave no reason");
        } else if (setup_.plan.count > 1 && bytes_done_ != 0) {
          error_ = Status(error_.code(), fmt::format("{}; {} of {} bytes had moved",
                                                     error_.message(), bytes_done_,
                                                     setup_.plan.bytes));
        }
        failed_now = !by_request;
        why = error_;
        become(by_request ? XferState::CANCELED : XferState::FAILED);
      }
    }
    ended_ns_ = base::nowNs();
    active_ = finishing_ = false;
  }
  setup_.agent->transferEnded(*this, failed_now ? &why : nullptr);
  if (released_.load(std::memory_order_acquire)) table().take(id_);
}

void Transfer::cancel() {
  bool finish_now = false, ask = false;
  {
    base::MutexLock lock(mu_);
    if (!active_) return;
    stop_ = true;
    ask = !cancel_asked_ && reported_ != posted_;
    cancel_asked_ = true;
    finish_now = claimFinish();
  }
  if (ask) {
    GatePass pass(setup_.peer ? &setup_.peer->gate : nullptr);
    if (pass) (void)setup_.backend->engine->cancel(request_);
    setup_.agent->wake();
  }
  if (finish_now) finish();
}

void Transfer::expire(Errc code, std::string text) {
  {
    base::MutexLock lock(mu_);
    if (!active_ || state_.load(std::memory_order_relaxed) != XferState::POSTED) return;
    error_ = Status(code, std::move(text));
    become(XferState::FAILED);
    ended_ns_ = base::nowNs();
  }
  const Status why = error();
  setup_.agent->transferFailed(*this, why);
  cancel();
}

void Transfer::release() {
  if (released_.exchange(true)) return;
  cancel();
  bool active;
  {
    base::MutexLock lock(mu_);
    active = active_;
  }
  if (!active) table().take(id_);
}

void Transfer::abandon() {
  released_.store(true);
  table().take(id_);
}

void Transfer::checkTime(uint64_t now_ns, uint64_t stall_ns) {
  std::string text;
  Errc code = Errc::OK;
  {
    base::MutexLock lock(mu_);
    if (!active_ || state_.load(std::memory_order_relaxed) != XferState::POSTED) return;
    const char* name = (setup_.peer ? setup_.peer->name : setup_.agent->name()).c_str();
    if (now_ns >= deadline_ns_) {
      code = Errc::TIMEOUT;
      text = fmt::format("transfer with \"{}\": its deadline of {} ms passed; {} of {} bytes had "
                         "moved, the rest is being cancelled",
                         name, (deadline_ns_ - started_ns_) / 1'000'000, bytes_done_, setup_.plan.bytes);
    } else if (stall_ns != 0 && now_ns > moved_ns_ && now_ns - moved_ns_ >= stall_ns) {
      // (It may have been posted again since the caller looked at the clock.)
      code = Errc::STALLED;
      text = fmt::format("transfer with \"{}\": no byte moved for {} s (NIXL_STALL_MS); {} of {} "
                         "had, the rest is being cancelled",
                         name, stall_ns / 1'000'000'000, bytes_done_, setup_.plan.bytes);
    }
  }
  if (code != Errc::OK) expire(code, std::move(text));
}

uint64_t Transfer::nextTime(uint64_t stall_ns) const {
  base::MutexLock lock(mu_);
  if (!active_ || state_.load(std::memory_order_relaxed) != XferState::POSTED) return UINT64_MAX;
  return std::min(deadline_ns_, stall_ns == 0 ? UINT64_MAX : moved_ns_ + stall_ns);
}

bool Transfer::usesDeadRegion() const {
  auto among = [&](const Resolution& side) {
    return std::any_of(side.owners.begin(), side.owners.end(), [&](const auto& owner) {
      return !static_cast<const Region*>(owner.get())->live.load(std::memory_order_acquire);
    });
  };
  return among(*setup_.local) || (!setup_.peer && among(*setup_.remote));
}

Status Transfer::error() const {
  base::MutexLock lock(mu_);
  return error_;
}

uint64_t Transfer::attempt() const {
  base::MutexLock lock(mu_);
  return attempt_;
}

std::string Transfer::notification() const {
  base::MutexLock lock(mu_);
  return notification_;
}

PieceStatus Transfer::pieces() const {
  base::MutexLock lock(mu_);
  PieceStatus status;
  status.pieces = setup_.plan.count;
  status.done = reported_ - failed_;
  status.failed = failed_;
  status.bytes_done = bytes_done_;
  if (!pieces_.empty()) {
    status.status = pieces_;
  } else {
    status.status.assign(setup_.plan.count, static_cast<int32_t>(
        attempt_ == 0 ? Errc::NOT_POSTED : active_ ? Errc::IN_PROG : Errc::CANCELED));
    std::fill_n(status.status.begin(), in_order_, static_cast<int32_t>(Errc::OK));
  }
  if (!active_)
    for (int32_t& piece : status.status)
      if (piece == static_cast<int32_t>(Errc::IN_PROG))
        piece = static_cast<int32_t>(Errc::CANCELED);  // never handed to the engine
  return status;
}

TransferTelemetry Transfer::telemetry() const {
  base::MutexLock lock(mu_);
  TransferTelemetry t;
  t.start_us = started_ns_ / 1000;
  const uint64_t until = active_ && ended_ns_ == 0 ? base::nowNs() : ended_ns_;
  t.xfer_us = started_ns_ == 0 ? 0 : (until - started_ns_) / 1000;
  t.post_us = std::min(post_ns_ / 1000, t.xfer_us);
  t.bytes = setup_.plan.bytes;
  t.descriptors = setup_.plan.descriptors;
  return t;
}

}  // namespace nixl::core
