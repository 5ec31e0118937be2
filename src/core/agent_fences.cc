// Memory that is given back while peers may still write to it or read from it, through transports
// that cannot refuse them (NIXL_FENCE_NONE). docs/guide/failures.md has the rules.
//
// Whoever loads a peer's metadata introduces itself. The owner remembers who did, and
// asks them before memory goes: each of them drops what it knows of it, fails what is in flight
// there, and answers when the last of its operations has ended.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "core/agent_core.h"

namespace nixl::core {
namespace {

using metadata::Control;

constexpr size_t kMaxUsers = 65536;
// Whoever makes progress only when it is polled may not look for a long time.
constexpr auto kPolledAnswers = std::chrono::milliseconds(50);

int64_t milliseconds(std::chrono::nanoseconds time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
}

}  // namespace

void AgentCore::introduceTo(Backend& backend, const std::shared_ptr<Peer>& peer,
                            const PeerBackend& link) {
  if (link.introduced.exchange(true)) return;
  if (!(peer->features & metadata::kFeatureFence) || !backend.has(NIXL_ENGINE_NOTIF) ||
      backend.engine->facts().fence != NIXL_FENCE_NONE)
    return;
  metadata::Blob blob = emptyBlob(true);
  blob.secret = {};  // not everybody who is written to was given it
  blob.sections.push_back(section(backend, true, {}));
  Control control;
  control.word = Control::kUser;
  control.token = progress_.hasThread() ? 1 : 0;
  control.bytes = metadata::encode(blob);
  const Status sent = notify(backend, peer, metadata::kEnvelopeControl,
                             metadata::encodeControl(control));
  if (!sent.ok()) link.introduced.store(false);  // a transfer will fare no better, or try again
}

void AgentCore::takeLeaveOf(const std::shared_ptr<Peer>& peer) {
  if (!peer->gate.open() || peer->down.load()) return;
  for (Backend* backend : backends()) {
    const PeerBackend* link = peer->through(*backend);
    if (link == nullptr || !link->introduced.load() ||
        backend->engine->facts().fence != NIXL_FENCE_NONE)
      continue;
    for (const auto& transfer : Transfer::activeOf(this))
      if (transfer->peer() == peer) return;  // it will be asked, then
    Control control;
    control.word = Control::kLeft;
    (void)notify(*backend, peer, metadata::kEnvelopeControl, metadata::encodeControl(control));
  }
}

bool AgentCore::aboutMemory(const metadata::EnvelopeView& envelope) {
  auto control = metadata::decodeControl(envelope.payload);
  if (!control.has_value() || !control->aboutMemory()) return false;
  switch (control->word) {
    case Control::kUser: {
      auto blob = metadata::decode(control->bytes);
      if (!blob.has_value() || blob->incarnation != envelope.sender) {
        NIXL_LOG_WARN_EVERY(10, "agent \"{}\": an introduction of \"{}\" was dropped: {}", name_,
                            envelope.agent,
                            blob.has_value() ? "it is not its own" : blob.error().message());
        break;
      }
      base::MutexLock lock(fences_mu_);
      if (users_.size() >= kMaxUsers && !users_.contains(envelope.sender)) {
        NIXL_LOG_WARN_EVERY(10, "agent \"{}\": more than {} peers use its memory; those that came "
                            "first will not be asked before memory is given back", name_,
                            kMaxUsers);
        users_.erase(users_.begin());
      }
      User& user = users_[envelope.sender];
      user.name = envelope.agent;
      user.has_thread = control->token != 0;
      user.silent = false;
      for (const auto& section : blob->sections) user.blobs[section.backend] = control->bytes;
      break;
    }
    case Control::kQuiesce:
      askedToQuiesce(envelope, *control);
      break;
    case Control::kQuiesced: {
      {
        base::MutexLock lock(fences_mu_);
        if (auto question = asked_.find(control->token); question != asked_.end())
          question->second.erase(envelope.sender);
        if (auto user = users_.find(envelope.sender); user != users_.end())
          user->second.silent = false;
      }
      progress_.changed();
      break;
    }
    case Control::kLeft:
      forgetUser(envelope.sender);
      break;
  }
  return true;
}

void AgentCore::forgetUser(const metadata::Incarnation& incarnation) {
  std::shared_ptr<Peer> last;  // its connection ends outside of the lock
  bool waited_for = false;
  {
    base::MutexLock lock(fences_mu_);
    if (auto user = users_.find(incarnation); user != users_.end()) {
      last = std::move(user->second.peer);
      users_.erase(user);
    }
    for (auto& [token, waiting] : asked_) waited_for |= waiting.erase(incarnation) != 0;
  }
  if (waited_for) progress_.changed();
}

// ---- the owner -----------------------------------------------------------------------------

Status AgentCore::quiescePeers(Backend& backend,
                               const std::vector<std::shared_ptr<Region>>* regions,
                               std::chrono::nanoseconds limit) {
  if (backend.engine->facts().fence != NIXL_FENCE_NONE || !backend.has(NIXL_ENGINE_REMOTE))
    return {};
  std::vector<std::shared_ptr<Region>> told;  // of the others nobody can know
  if (regions != nullptr) {
    for (const auto& region : *regions)
      if (region->told.load(std::memory_order_relaxed)) told.push_back(region);
    if (told.empty()) return {};
  }
  struct Asked {
    metadata::Incarnation incarnation;
    std::string name, blob;
    bool has_thread, silent;
    std::shared_ptr<Peer> peer;
  };
  std::vector<Asked> users;
  uint64_t token = 0;
  {
    base::MutexLock lock(fences_mu_);
    for (auto& [incarnation, user] : users_)
      if (auto blob = user.blobs.find(backend.name); blob != user.blobs.end())
        users.push_back({incarnation, user.name, blob->second, user.has_thread, user.silent,
                         user.peer});
    if (users.empty()) return {};
    token = ++last_token_;
    auto& waiting = asked_[token];
    for (const Asked& user : users) waiting.insert(user.incarnation);
  }
  metadata::Blob blob = emptyBlob(true);
  blob.secret = {};
  blob.sections.push_back(section(backend, true, told));
  blob.sections.back().keys.assign(blob.sections.back().keys.empty() ? 0 : 1, "");
  for (auto& row : blob.sections.back().rows) row.key = 0;
  Control control;
  control.word = Control::kQuiesce;
  control.token = token;
  control.bytes = metadata::encode(blob);
  const std::string words = metadata::encodeControl(control);

  for (Asked& user : users) {
    if (user.silent) continue;  // it was asked before, and its queue shall not grow

    // A peer that the user loaded is connected already.
    auto loaded = peers_.find(user.name);
    std::shared_ptr<Peer> peer;
    if (loaded && loaded->incarnation == user.incarnation && loaded->gate.open() &&
        loaded->through(backend) != nullptr)
      peer = loaded;
    else if (user.peer && user.peer->gate.open() && user.peer->through(backend) != nullptr)
      peer = user.peer;
    Status sent;
    if (!peer) {
      auto introduction = metadata::decode(user.blob);
      if (!introduction.has_value()) continue;  // was read when it came
      peer = std::make_shared<Peer>(user.name, *introduction);
      peer->only_user = true;
      sent = peer->merge(*introduction, backends());
      if (sent.ok()) {
        base::MutexLock lock(fences_mu_);
        if (auto known = users_.find(user.incarnation); known != users_.end())
          known->second.peer = peer;
      }
    }
    if (sent.ok()) sent = notify(backend, peer, metadata::kEnvelopeControl, words);
    if (sent.code() == Errc::REMOTE_DISCONNECT) {
      forgetUser(user.incarnation);
      continue;
    }
    if (!sent.ok())
      NIXL_LOG_WARN_EVERY(10, "agent \"{}\": \"{}\" cannot be asked to let go of memory: {}", name_,
                          user.name, sent.message());
    user.peer = std::move(peer);  // lives until it has answered
  }
  const auto answered = [&](bool by_thread) {
    base::MutexLock lock(fences_mu_);
    const auto& waiting = asked_[token];
    return std::none_of(users.begin(), users.end(), [&](const Asked& user) {
      return !user.silent && user.has_thread == by_thread && waiting.contains(user.incarnation);
    });
  };
  const auto limit_of_polled = std::min<std::chrono::nanoseconds>(limit, kPolledAnswers);
  const auto polled = base::Deadline::after(limit_of_polled);
  waitUntil([&] { return answered(true); }, base::Deadline::after(limit));
  waitUntil([&] { return answered(false); }, polled);

  std::set<metadata::Incarnation> missing;
  {
    base::MutexLock lock(fences_mu_);
    missing = std::move(asked_[token]);
    asked_.erase(token);
    for (const auto& incarnation : missing)
      if (auto user = users_.find(incarnation); user != users_.end()) user->second.silent = true;
  }
  if (missing.empty()) return {};
  std::string names;
  for (const Asked& user : users) {
    if (!missing.contains(user.incarnation)) continue;
    names += (names.empty() ? "\"" : ", \"") + user.name + "\"";
    Event event{};
    event.kind = Event::Kind::PEER_NOT_QUIESCED;
    event.peer = user.name;
    event.incarnation = user.incarnation.hex();
    event.code = Errc::NOT_QUIESCED;
    event.text = fmt::format("\"{}\" was asked to let go of {} of this agent and did not answer "
                             "within {} ms{}; it may still write there",
                             user.name,
                             regions == nullptr ? std::string("all memory")
                                                : fmt::format("{} regions", told.size()),
                             milliseconds(user.has_thread ? limit : limit_of_polled),
                             user.has_thread ? "" : " (it makes progress only when it is polled)");
    notifier_.add(std::move(event));
  }
  progress_.changed();
  const Status status(Errc::NOT_QUIESCED,
                      fmt::format("deregister memory: {} did not let go of it within {} ms "
                                  "(NIXL_QUIESCE_MS) and may still write there; do not reuse it "
                                  "before they are gone",
                                  names, milliseconds(limit)));
  NIXL_LOG_WARN_EVERY(10, "agent \"{}\": {}", name_, status.message());
  return status;
}

// ---- the user of a peer's memory -----------------------------------------------------------

void AgentCore::askedToQuiesce(const metadata::EnvelopeView& envelope,
                               const metadata::Control& control) {
  auto blob = metadata::decode(control.bytes);
  if (!blob.has_value() || blob->incarnation != envelope.sender || blob->sections.size() != 1) {
    NIXL_LOG_WARN_EVERY(10, "agent \"{}\": \"{}\" asks to let go of memory in a way that cannot be "
                        "read: {}", name_, envelope.agent,
                        blob.has_value() ? "it is not its own" : blob.error().message());
    return;
  }
  const metadata::BackendSection& section = blob->sections[0];
  auto peer = peers_.find(std::string(envelope.agent));
  if (peer && (peer->incarnation != envelope.sender || !peer->gate.open())) peer = nullptr;
  // First what is to come, then what is under way.
  if (peer) peer->revoke(*blob, backends());
  Answer answer;
  answer.token = control.token;
  for (auto& transfer : Transfer::activeOf(this)) {
    if (!transfer->peer() || transfer->peer()->incarnation != envelope.sender ||
        transfer->backend().name != section.backend)
      continue;
    if (transfer->peer() != peer) {  // it was let go of, and may be on its way all the same
      if (transfer->peer()->gate.open()) transfer->peer()->revoke(*blob, backends());
    }
    if (transfer->peer()->gate.open() && !transfer->revoked()) continue;
    transfer->expire(Errc::NOT_FOUND,
                     fmt::format("transfer with \"{}\": it deregistered memory of this transfer "
                                 "while it was under way",
                                 envelope.agent));
    answer.waiting_for.push_back(std::move(transfer));
  }
  if (!peer) {  // only to answer
    peer = std::make_shared<Peer>(std::string(envelope.agent), *blob);
    peer->only_user = true;
    metadata::Blob connection = *blob;
    connection.sections[0].rows.clear();
    if (const Status made = peer->merge(connection, backends()); !made.ok()) {
      NIXL_LOG_WARN_EVERY(10, "agent \"{}\": \"{}\" cannot be told that nothing is under way to it: "
                          "{}", name_, envelope.agent, made.message());
      return;
    }
  }
  answer.to = std::move(peer);
  {
    base::MutexLock lock(fences_mu_);
    answers_.push_back(std::move(answer));
    answers_due_.store(answers_.size(), std::memory_order_release);
  }
  answerQuiesced();
}

void AgentCore::answerQuiesced() {
  std::vector<Answer> ready;
  {
    base::MutexLock lock(fences_mu_);
    for (size_t i = 0; i < answers_.size();) {
      std::erase_if(answers_[i].waiting_for,
                    [](const auto& transfer) { return !transfer->inFlight(); });
      if (answers_[i].waiting_for.empty()) {
        ready.push_back(std::move(answers_[i]));
        answers_.erase(answers_.begin() + static_cast<ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
    answers_due_.store(answers_.size(), std::memory_order_release);
  }
  for (const Answer& answer : ready) {
    Control control;
    control.word = Control::kQuiesced;
    control.token = answer.token;
    sendControl(answer.to, control);
  }
}

}  // namespace nixl::core
