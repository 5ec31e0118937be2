// Metadata and peers: what agents tell each other of themselves, and the messages between them.
#include <fmt/format.h>

#include <unordered_map>

#include "base/config.h"
#include "base/log.h"
#include "core/agent_core.h"
#include "metadata/handshake.h"

namespace nixl::core {

// ---- metadata ------------------------------------------------------------------------------

metadata::Blob AgentCore::emptyBlob(bool partial) const {
  metadata::Blob blob;
  blob.agent = name_;
  blob.incarnation = incarnation_;
  blob.created_unix_ns = created_unix_ns_;
  blob.sequence = sequence_.fetch_add(1) + 1;
  blob.secret = secret_;
  blob.host_id = host_id_;
  blob.features = metadata::kFeatureFence;
  blob.partial = partial;
  return blob;
}

metadata::BackendSection AgentCore::section(
    Backend& backend, bool with_connection,
    const std::vector<std::shared_ptr<Region>>& regions) const {
  metadata::BackendSection section;
  section.backend = backend.name;
  section.has_connection = with_connection;
  if (with_connection) section.connection = backend.connection;
  std::unordered_map<std::string_view, uint32_t> keys;
  section.rows.reserve(regions.size());
  const std::string* last_key = nullptr;
  uint32_t last_number = 0;
  for (const auto& region : regions) {
    region->told.store(true, std::memory_order_relaxed);
    if (last_key == nullptr || *last_key != region->key) {
      const auto [where, fresh] =
          keys.try_emplace(region->key, static_cast<uint32_t>(section.keys.size()));
      if (fresh) section.keys.push_back(region->key);
      last_number = where->second;
      last_key = &region->key;
    }
    metadata::RegionRow row;
    row.kind = region->type;
    row.device = region->device;
    row.base = region->address;
    row.length = region->length;
    row.stride = region->length;
    row.count = 1;
    row.key = last_number;
    row.generation = region->generation;
    section.rows.push_back(row);
  }
  metadata::compress(section.rows);
  return section;
}

Result<std::string> AgentCore::metadataBytes() const {
  metadata::Blob blob = emptyBlob(false);
  for (Backend* backend : backends())
    if (backend->has(NIXL_ENGINE_REMOTE))
      blob.sections.push_back(section(*backend, true, backend->registry.all()));
  if (blob.sections.empty())
    return Status(Errc::INVALID_PARAM,
                  fmt::format("metadata of agent \"{}\": it has no backend that peers could use",
                              name_));
  return metadata::encode(blob);
}

Result<std::string> AgentCore::partialMetadata(const std::vector<MemDescriptor>& ranges,
                                               bool with_connections,
                                               const std::vector<std::string>& backends) const {
  metadata::Blob blob = emptyBlob(true);
  if (ranges.empty()) {
    NIXL_ASSIGN_OR_RETURN(auto chosen, candidates(backends, [](Backend&) { return true; }));
    for (Backend* backend : chosen)
      if (backend->has(NIXL_ENGINE_REMOTE)) blob.sections.push_back(section(*backend, true, {}));
    return metadata::encode(blob);
  }
  const MemType type = ranges[0].type;
  NIXL_ASSIGN_OR_RETURN(auto chosen,
                        candidates(backends, [type](Backend& b) { return b.takes(type); }));
  if (chosen.empty())
    return Status(Errc::NOT_FOUND, fmt::format("partial metadata: no backend of agent \"{}\" takes "
                                               "{} memory",
                                               name_, memTypeName(type)));
  bool remote = false;
  for (Backend* backend : chosen) {
    if (!backend->has(NIXL_ENGINE_REMOTE)) continue;
    remote = true;
    if (!backend->registry.has(type)) continue;
    auto regions = backend->registry.find(ranges);
    if (!regions.has_value()) return std::move(regions).error().within("partial metadata");
    blob.sections.push_back(section(*backend, with_connections, *regions));
  }
  if (!remote)
    return Status(Errc::BACKEND, "partial metadata: none of the backends can be used by peers");
  return metadata::encode(blob);
}

Result<std::string> AgentCore::loadMetadata(std::string_view bytes) {
  auto blob = metadata::decode(bytes);
  if (!blob.has_value()) return std::move(blob).error().within("load metadata");
  NIXL_TRY(loadBlob(*blob, false));
  return std::move(blob->agent);
}

Status AgentCore::loadBlob(const metadata::Blob& blob, bool from_connection) {
  if (blob.agent == name_)
    return Status(Errc::INVALID_PARAM,
                  fmt::format("load metadata: it is of \"{}\", which is this agent's name", name_));
  const std::string doing = "load metadata";
  auto known = peers_.current(blob);
  if (!known.has_value()) return std::move(known).error().within(doing);
  std::shared_ptr<Peer> peer = *known;
  if (peer && peer->down.load(std::memory_order_acquire)) {
    // Its process may live; the connection does not, and whoever brings metadata wants one.
    if (peers_.remove(peer)) peer->retire();
    peer = nullptr;
  }
  bool fresh_links = false;
  if (!peer) {
    // Whoever finds the name may use it at once: it gets its name when it is whole.
    auto fresh = std::make_shared<Peer>(blob.agent, blob);
    fresh->from_connection.store(from_connection);
    NIXL_TRY(fresh->merge(blob, backends()).within(doing));
    auto adopted = peers_.adopt(fresh);
    if (!adopted.has_value()) return std::move(adopted).error().within(doing);
    if (adopted->replaced) {
      // It may be alive: then two processes go by one name, which both of them should learn.
      if (!adopted->replaced->down.load(std::memory_order_acquire))
        sendControl(adopted->replaced, {metadata::Control::kReplaced, blob.incarnation,
                                        blob.created_unix_ns});
      adopted->replaced->retire();
      Event event{};
      event.kind = Event::Kind::PEER_REPLACED;
      event.peer = blob.agent;
      event.incarnation = blob.incarnation.hex();
      event.text = fmt::format("peer \"{}\" started anew; what was prepared for the former one is "
                               "void",
                               blob.agent);
      notifier_.add(std::move(event));
      progress_.changed();
    }
    fresh_links = adopted->peer == fresh;
    peer = adopted->peer;
  }
  if (!fresh_links) {
    if (from_connection) peer->from_connection.store(true);
    const size_t links = peer->linkCount();
    NIXL_TRY(peer->merge(blob, backends()).within(doing));
    fresh_links = peer->linkCount() != links;
  }
  // Connecting goes on in the background. Regions alone do not, and some programs bring them with
  // every transfer: those must not cost a turn of the progress thread each.
  if (fresh_links) {
    // Before the first transfer, so that the owner of the memory knows of it in time.
    for (Backend* backend : backends())
      if (const PeerBackend* link = peer->through(*backend)) introduceTo(*backend, peer, *link);
    wake();
  }
  return {};
}

// Over a connection, nobody but an agent itself speaks for it, and its name is free for another one
// only when its process is known to be gone. What the user brings, or fetches, is the user's word.
Result<metadata::Incarnation> AgentCore::load(std::string_view bytes,
                                              const metadata::Exchange::Source& source) {
  auto blob = metadata::decode(bytes);
  if (!blob.has_value()) return std::move(blob).error().within("load metadata");
  if (const metadata::Incarnation* sender = source.sender()) {
    if (*sender != blob->incarnation)
      return Status(Errc::NOT_ALLOWED,
                    fmt::format("load metadata: it is of agent \"{}\", and another one sent it",
                                metadata::printable(blob->agent)));
    auto holder = peers_.find(blob->agent);
    const bool other = holder && holder->incarnation != blob->incarnation;
    // One whose metadata came in another way has no connection whose end would tell.
    const bool alive = other && !holder->down.load(std::memory_order_acquire) &&
                       (source.isConnected(holder->incarnation) || !holder->from_connection.load());
    if (alive) {
      // Who tries again and again must not push other events out.
      uint64_t more = 0;
      if (conflicts_.admit(1, &more))
        nameConflict(
            blob->agent, blob->incarnation,
            fmt::format("metadata of another \"{}\" came unasked and was refused, since the one "
                        "that is known was not lost. If it was started anew, load its metadata or "
                        "remove the former one; if not, give each agent a name of its own",
                        metadata::printable(blob->agent)));
      return Status(Errc::NOT_ALLOWED,
                    fmt::format("load metadata: the name \"{}\" belongs to an agent that is not "
                                "known to be gone; if this one is its successor, send again once "
                                "the former process has ended",
                                metadata::printable(blob->agent)));
    }
  }
  NIXL_TRY(loadBlob(*blob, true));
  return blob->incarnation;
}

Status AgentCore::invalidate(std::string_view agent, const metadata::Incarnation& sender) {
  const std::string name(agent);
  auto peer = peers_.find(name);
  if (!peer)
    return Status(Errc::NOT_FOUND, "invalidate a peer: its metadata is not loaded");
  if (peer->incarnation != sender || !peers_.remove(peer))
    return Status(Errc::NOT_ALLOWED,
                  fmt::format("invalidate peer \"{}\": it was not that peer who asked for it",
                              metadata::printable(name)));
  takeLeaveOf(peer);
  peer->retire();
  wake();
  Event event{};
  event.kind = Event::Kind::PEER_INVALIDATED;
  event.peer = agent;
  event.text = fmt::format("peer \"{}\" withdrew its metadata", agent);
  notifier_.add(std::move(event));
  progress_.changed();
  return {};
}

Status AgentCore::invalidatePeer(const std::string& peer) {
  if (peer == name_)
    return Status(Errc::INVALID_PARAM, "invalidate a peer: the name is this agent's own");
  auto removed = peers_.remove(peer);
  if (!removed)
    return Status(Errc::NOT_FOUND, fmt::format("invalidate peer \"{}\": its metadata is not loaded",
                                               peer));
  takeLeaveOf(removed);
  removed->retire();
  wake();
  return {};
}

Result<bool> AgentCore::checkPeer(const std::string& name, const Rows& rows) const {
  if (name == name_) {
    for (Backend* backend : backends()) {
      if (!backend->has(NIXL_ENGINE_LOCAL)) continue;
      if (rows.count == 0) {
        for (unsigned type = 0; type < kMemTypes; ++type)
          if (backend->registry.has(static_cast<MemType>(type))) return true;
        continue;
      }
      auto list = DescList::fromRows(rows);
      if (!list.has_value()) return std::move(list).error();
      if (backend->registry.covers(*list)) return true;
    }
    return false;
  }
  auto peer = peers_.find(name);
  if (!peer) return false;
  if (rows.count == 0) return true;
  auto list = DescList::fromRows(rows);
  if (!list.has_value()) return std::move(list).error();
  for (Backend* backend : backends())
    if (peer->covers(*backend, *list)) return true;
  return false;
}

Status AgentCore::connectPeer(const std::string& name, const std::vector<std::string>& names) {
  NIXL_ASSIGN_OR_RETURN(auto chosen, candidates(names, [](Backend&) { return true; }));
  auto peer = peers_.find(name);
  if (!peer)
    return Status(Errc::NOT_FOUND,
                  fmt::format("connect to \"{}\": its metadata is not loaded", name));
  if (peer->linkCount() == 0)
    return Status(Errc::NOT_FOUND,
                  fmt::format("connect to \"{}\": its metadata holds no connection", name));
  for (Backend* backend : chosen)
    if (peer->through(*backend) != nullptr) return {};  // connecting began when it was loaded
  return Status(Errc::BACKEND, fmt::format("connect to \"{}\": no backend in common", name));
}

Result<metadata::Exchange*> AgentCore::exchange() {
  base::MutexLock lock(exchange_mu_);
  if (!exchange_) {
    metadata::Exchange::Options options;
    options.listen = config_.listen;
    options.port = config_.listen_port;
    options.identity = identity_;
    options.address = config_.listen_address;
    if (options.address.empty()) {
      NIXL_ASSIGN_OR_RETURN(options.address, base::configString("NIXL_LISTEN_ADDRESS"));
    }
    auto exchange = metadata::Exchange::start(*this, options);
    if (!exchange.has_value()) return std::move(exchange).error();
    exchange_ = *std::move(exchange);
    listen_port_.store(config_.listen ? exchange_->port() : uint16_t{0});
  }
  return exchange_.get();
}

uint16_t AgentCore::listenPort() const { return listen_port_.load(); }

void AgentCore::exchangeFailed(std::string_view what, const Status& status) {
  NIXL_LOG_ERROR("agent \"{}\": {}: {}", name_, what, status.message());
}

// ---- notifications -------------------------------------------------------------------------

Status AgentCore::sendNotification(const std::string& name, std::string_view message,
                                   const std::string& backend_name) {
  const std::string doing = fmt::format("notify \"{}\"", name);
  std::vector<std::string> names;
  if (!backend_name.empty()) names.push_back(backend_name);
  auto chosen =
      candidates(names, [](Backend& backend) { return backend.has(NIXL_ENGINE_NOTIF); });
  if (!chosen.has_value()) return std::move(chosen).error().within(doing);
  std::erase_if(*chosen, [](Backend* backend) { return !backend->has(NIXL_ENGINE_NOTIF); });
  if (chosen->empty())
    return Status(Errc::BACKEND, doing + ": no backend of this agent can send notifications");
  if (name == name_) {
    for (Backend* backend : *chosen)
      if (backend->has(NIXL_ENGINE_LOCAL))
        return notify(*backend, nullptr, metadata::kEnvelopeNotification, message).within(doing);
    return Status(Errc::NOT_FOUND, doing + ": no backend reaches this agent itself");
  }
  auto peer = peers_.find(name);
  if (!peer)
    return Status(Errc::NOT_FOUND, doing + ": its metadata is not loaded");
  for (Backend* backend : *chosen) {
    if (peer->through(*backend) == nullptr) continue;
    Status sent = notify(*backend, peer, metadata::kEnvelopeNotification, message);
    if (sent.code() == Errc::REMOTE_DISCONNECT) seenDisconnect(peer);
    return std::move(sent).within(doing);
  }
  return Status(Errc::NOT_FOUND, doing + ": its metadata holds no connection for a backend of ours");
}

Status AgentCore::sendFrame(Backend& backend, const std::shared_ptr<Peer>& peer, uint8_t kind,
                            std::string_view message) {
  const std::string frame = notifier_.frame(kind, peer ? peer->name : name_, message);
  if (!peer && !backend.has(NIXL_ENGINE_NOTIF)) {
    received(frame);  // to ourselves: no engine is needed
    return {};
  }
  GatePass pass(peer ? &peer->gate : nullptr);
  if (!pass) return Status(Errc::NOT_FOUND, fmt::format("peer \"{}\" was invalidated", peer->name));
  return backend.engine->notify(peer ? peer->through(backend)->engine_peer : nullptr, frame);
}

Status AgentCore::notify(Backend& backend, const std::shared_ptr<Peer>& peer, uint8_t kind,
                         std::string_view message) {
  Outbox& outbox = peer ? peer->outbox : to_self_;
  {
    base::MutexLock lock(outbox.mu);
    if (outbox.sending) {
      outbox.waiting.push_back({&backend, kind, std::string(message)});
      return {};
    }
    outbox.sending = true;
  }
  const Status status = sendFrame(backend, peer, kind, message);
  while (true) {
    Outbox::Message next;
    {
      base::MutexLock lock(outbox.mu);
      if (outbox.waiting.empty()) {
        outbox.sending = false;
        return status;
      }
      next = std::move(outbox.waiting.front());
      outbox.waiting.pop_front();
    }
    const Status sent = sendFrame(*next.backend, peer, next.kind, next.payload);
    if (!sent.ok())
      NIXL_LOG_WARN_EVERY(10, "agent \"{}\": a notification was not sent: {}", name_,
                          sent.message());
  }
}

Result<std::vector<Notification>> AgentCore::takeNotifications() {
  progress_.tryDrive(kCheckBudgetNs);
  if (notifier_.empty()) return std::vector<Notification>();
  return notifier_.take();
}

void AgentCore::received(std::string_view frame) {
  auto envelope = metadata::decodeEnvelope(frame);
  if (!envelope.has_value()) {
    NIXL_LOG_WARN_EVERY(10, "agent \"{}\": a message that is not a notification was dropped: {}",
                        name_, envelope.error().message());
    return;
  }
  // Also of one that another took the name from: it may still move bytes.
  if (envelope->kind == metadata::kEnvelopeControl && aboutMemory(*envelope)) return;
  if (auto former = peers_.former(envelope->sender)) {
    heardFromFormer(*envelope, *former);
    return;
  }
  switch (notifier_.receive(*envelope)) {
    case Notifier::Received::NOTHING:
      return;
    case Notifier::Received::NEWS:
      return progress_.changed();
    case Notifier::Received::CONTROL:
      return receivedControl(*envelope);
  }
}

// ---- two holders of one name ---------------------------------------------------------------

void AgentCore::nameConflict(const std::string& peer, const metadata::Incarnation& other,
                             std::string text, std::string_view message) {
  NIXL_LOG_WARN_EVERY(10, "agent \"{}\": {}", name_, text);
  Event event{};
  event.kind = Event::Kind::NAME_CONFLICT;
  event.peer = peer;
  event.incarnation = other.hex();
  event.code = Errc::NOT_ALLOWED;
  event.text = std::move(text);
  event.message = message;
  notifier_.add(std::move(event));
  progress_.changed();
}

void AgentCore::sendControl(const std::shared_ptr<Peer>& peer, const metadata::Control& control) {
  for (Backend* backend : backends()) {
    if (!backend->has(NIXL_ENGINE_NOTIF) || peer->through(*backend) == nullptr) continue;
    const Status sent = notify(*backend, peer, metadata::kEnvelopeControl,
                               metadata::encodeControl(control));
    if (!sent.ok())
      NIXL_LOG_DEBUG("agent \"{}\": control message {} to \"{}\": {}", name_, control.word,
                     peer->name, sent.message());
    return;
  }
}

void AgentCore::heardFromFormer(const metadata::EnvelopeView& envelope,
                                const PeerTable::Former& former) {
  const std::string name(envelope.agent);
  const bool notification = envelope.kind == metadata::kEnvelopeNotification;
  if (!former.first && !notification) return;
  nameConflict(name, envelope.sender,
               fmt::format("a message came of the process that was \"{}\" before another one took "
                           "the name over; it was {}. If it was not merely late, two processes go "
                           "by this name: give each agent a name of its own",
                           name, notification ? "not delivered" : "only that it is alive"),
               notification ? envelope.payload : std::string_view());
  if (!former.first) return;
  if (auto current = peers_.find(name); current && !current->down.load())
    sendControl(current, {metadata::Control::kRival, envelope.sender, former.created_unix_ns});
}

void AgentCore::receivedControl(const metadata::EnvelopeView& envelope) {
  auto control = metadata::decodeControl(envelope.payload);
  if (!control.has_value()) {
    NIXL_LOG_WARN_EVERY(10, "agent \"{}\": {} of \"{}\"", name_, control.error().message(),
                        envelope.agent);
    return;
  }
  const bool replaced = control->word == metadata::Control::kReplaced;
  if (!replaced && control->word != metadata::Control::kRival) return;
  if (control->other == incarnation_) return;
  nameConflict(name_, control->other,
               fmt::format("another process goes by this agent's name too; agent \"{}\" takes {}. "
                           "Give each agent a name of its own",
                           envelope.agent,
                           replaced ? "that one for the holder of the name, and drops what this one "
                                      "sends"
                                    : "this one for the holder of the name"));
  // It cannot know otherwise that we are there.
  if (!replaced) return;
  auto sender = peers_.find(std::string(envelope.agent));
  if (sender && sender->incarnation == envelope.sender)
    sendControl(sender, {metadata::Control::kStillHere, incarnation_, created_unix_ns_});
}

void AgentCore::peerChanged(uint64_t link, int32_t state, Errc status,
                            const std::string& reason) {
  auto peer = peerOfLink(link);
  if (!peer) return;
  if (state == NIXL_PEER_DOWN) {
    peer->down.store(true, std::memory_order_release);
    forgetUser(peer->incarnation);
  }
  if (peer->only_user) return;
  Event event{};
  event.peer = peer->name;
  event.incarnation = peer->incarnation.hex();
  event.code = status;
  event.text = reason;
  switch (state) {
    case NIXL_PEER_UP:
      event.kind = Event::Kind::PEER_UP;
      break;
    case NIXL_PEER_SUSPECT:
      event.kind = Event::Kind::PEER_SUSPECT;
      break;
    case NIXL_PEER_DOWN:
      event.kind = Event::Kind::PEER_DOWN;
      NIXL_LOG_INFO("agent \"{}\": peer \"{}\" is down: {}", name_, peer->name, event.text);
      break;
    default:
      return;
  }
  notifier_.add(std::move(event));
  progress_.changed();
}

}  // namespace nixl::core
