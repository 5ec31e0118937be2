// Prepared sides and transfers: from lists to plans, their posting and their end.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/agent_core.h"
#include "plugin/error_text.h"

namespace nixl::core {
namespace {

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

}  // namespace

HandleTable<PreparedSide>& preparedSides() {
  static auto* table = new HandleTable<PreparedSide>;
  return *table;
}

Status AgentCore::current(const std::shared_ptr<Peer>& peer) const {
  if (peer->gate.open()) return {};  // whoever takes a peer out of the table closes its gate
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
  NIXL_ASSIGN_OR_RETURN(auto chosen, candidates(names, std::ref(able)));
  if (chosen.empty())
    return Status(Errc::NOT_FOUND,
                  side.role == PreparedSide::Role::REMOTE
                      ? fmt::format("no {} memory of \"{}\" is known", memTypeName(rows.type),
                                    peer_name)
                      : fmt::format("no {} memory is registered", memTypeName(rows.type)));
  Status why;
  for (Backend* backend : chosen) {
    auto resolution = side.role == PreparedSide::Role::REMOTE
                          ? side.peer->resolve(*backend, side.list)
                          : backend->registry.resolve(side.list);
    if (resolution.has_value()) {
      side.choices.push_back(
          {backend, std::make_shared<const Resolution>(*std::move(resolution)),
           side.peer ? side.peer->through(*backend) : nullptr});
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
  const uint64_t handle = preparedSides().add(std::make_shared<PreparedSide>(*std::move(side)));
  if (handle == 0) return Status(Errc::LIMIT, "16 million prepared lists are alive");
  return handle;
}

Status AgentCore::releaseSide(uint64_t handle) {
  if (preparedSides().take(handle)) return {};
  return Status(Errc::INVALID_PARAM, "release a prepared list: it was released before");
}

Result<uint64_t> AgentCore::joinSides(OpType op, const PreparedSide& local,
                                      const int32_t* local_indices, const PreparedSide& remote,
                                      const int32_t* remote_indices, size_t count,
                                      const TransferOptions& options, bool merge) {
  struct Candidate {
    const PreparedSide::Choice *local, *remote;  // of the same backend
    double ns = 0;
    std::string why = {};
  };
  const bool notifies = options.notification && !options.notification->empty();
  std::vector<Candidate> able;
  able.reserve(1);
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
      able.push_back({&ours, &theirs});
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
      auto cost = costOf(*candidate.local->backend, remote.peer.get(), summary);
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
                                 candidate.local->backend->name, candidate.why);
  }
  PlanLimits limits;
  limits.merge = merge;
  Backend* const backend = best->local->backend;
  limits.max_piece = backend->engine->facts().max_piece;
  auto plan =
      makePlan(op, {&local.list, &best->local->resolution->region}, local_indices,
               {&remote.list, &best->remote->resolution->region}, remote_indices, count, limits);
  if (!plan.has_value()) return std::move(plan).error();
  setup.agent = this;
  setup.backend = backend;
  setup.peer = remote.peer;
  setup.plan = *std::move(plan);
  setup.local = best->local->resolution;
  setup.remote = best->remote->resolution;
  setup.link = best->remote->link;
  if (options.notification) setup.notification = *options.notification;
  setup.custom = options.custom;
  setup.timeout = options.timeout;
  if (setup.link != nullptr && !setup.link->introduced.load(std::memory_order_relaxed))
    introduceTo(*backend, setup.peer, *setup.link);
  auto transfer = Transfer::create(std::move(setup));
  if (!transfer.has_value()) return std::move(transfer).error();
  return (*transfer)->id();
}

Result<uint64_t> AgentCore::makeTransfer(OpType op, uint64_t local_handle,
                                         const int32_t* local_indices, uint64_t remote_handle,
                                         const int32_t* remote_indices, size_t count,
                                         const TransferOptions& options) {
  auto local = preparedSides().find(local_handle), remote = preparedSides().find(remote_handle);
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

Result<XferState> AgentCore::post(Transfer& transfer, std::optional<std::string> notification,
                                  std::optional<std::chrono::nanoseconds> timeout) {
  if (transfer.peer()) NIXL_TRY(current(transfer.peer()).within("post a transfer"));
  // One that has just ended without anybody looking is given the chance to be seen as such.
  if (transfer.state() == XferState::POSTED) progress_.tryDrive(kCheckBudgetNs);
  for (bool begun = false; !begun;) {
    NIXL_TRY(transfer.checkRevoked());
    NIXL_ASSIGN_OR_RETURN(begun, transfer.begin(notification, timeout));
  }
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
  if (answers_due_.load(std::memory_order_acquire) != 0) answerQuiesced();
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
  estimate.why = plugin::readable(std::string(cost->why, strnlen(cost->why, sizeof cost->why)));
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
    text += fmt::format("  predicted {:.1f} us{}\n", cost->microseconds,
                        cost->why.empty() ? std::string() : " (" + cost->why + ")");
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

}  // namespace nixl::core
