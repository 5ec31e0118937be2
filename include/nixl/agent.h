// nixl/agent.h - the agent API: register memory, meet peers, prepare transfers, post and poll them.
//
//   nixl::AgentConfig config;
//   config.backends = {"UCX"};
//   nixl::Agent agent("decode-3", config);
//   auto memory   = agent.registerMemory({{buffer, size, 0, nixl::MemType::DRAM}}, "UCX");
//   auto peer     = agent.loadMetadata(bytes_from_the_peer);
//   auto transfer = agent.prepareTransfer(nixl::OpType::WRITE, local, remote, peer, "UCX");
//   agent.postTransfer(transfer);
//   agent.waitTransfer(transfer, std::chrono::seconds(5));
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nixl/types.h"

namespace nixl {

using Params = std::map<std::string, std::string>;

// How an agent is set up. May grow without breaking binaries: `struct_size` is set by the inline
// constructor, and the library looks only at what the caller's header knew.
struct AgentConfig {
  uint32_t struct_size = sizeof(AgentConfig);

  std::vector<std::string> backends = {"UCX"};      // created in this order; unknown ones: warning
  std::map<std::string, Params> backend_params;     // by backend name
  bool progress_thread = true;                      // false: only polling threads move data
  bool listen = false;                              // metadata listener
  uint16_t listen_port = 8888;                      // 0: the system chooses, see listenPort()
  std::string listen_address;                       // "": all, IPv4 and IPv6 (NIXL_LISTEN_ADDRESS)
  bool capture_telemetry = false;                   // NIXL_TELEMETRY_ENABLE=0 wins
  unsigned num_threads = 0;                         // passed to engines that use threads of theirs
  std::optional<bool> use_store;                    // true: required, false: never, unset: if set up
};

// Handles are numbers of this process. They are never used twice, so one that was released is
// recognised (INVALID_PARAM); 0 is no handle.
struct Memory {
  uint64_t id = 0;
  explicit operator bool() const { return id != 0; }
};
struct Side {  // one side of transfers to come: a list of ranges, resolved once
  uint64_t id = 0;
  explicit operator bool() const { return id != 0; }
};
struct Transfer {
  uint64_t id = 0;
  explicit operator bool() const { return id != 0; }
};

struct TransferOptions {
  uint32_t struct_size = sizeof(TransferOptions);

  std::optional<std::string> notification;  // delivered after the data; empty text: none
  std::vector<std::string> backends;        // allowed engines, by name; empty: any, cheapest first
  bool merge = true;                        // join neighbours in makeTransfer()
  std::string custom;                       // words for the engine
  std::chrono::nanoseconds timeout{0};      // of each post; 0: none
};

struct Notification {
  std::string agent;  // who sent it
  std::string message;
};

// What happened without being asked for. See Agent::events().
struct Event {
  enum class Kind : uint8_t {
    PEER_UP = 0,
    PEER_SUSPECT = 1,
    PEER_DOWN = 2,
    PEER_REPLACED = 3,     // another incarnation of the name took over
    PEER_INVALIDATED = 4,  // the peer withdrew its metadata
    TRANSFER_FAILED = 5,   // one of ours; `transfer` names it
    REMOTE_FAILURE = 6,    // a peer's transfer into our memory failed or was cancelled
    NOTIFICATIONS_LOST = 7,
    NAME_CONFLICT = 8,  // two processes hold one name: `peer`, or this agent's own
    PEER_NOT_QUIESCED = 9,  // memory was deregistered, and this peer may still write there
  };
  Kind kind;
  std::string peer;
  std::string incarnation;  // 32 hexadecimal digits; "" where unknown
  uint64_t transfer = 0;
  Errc code = Errc::OK;
  std::string text;
  std::string message;  // REMOTE_FAILURE: the notification that will not come
};

struct PieceStatus {
  uint64_t pieces = 0;  // after merging
  uint64_t done = 0;
  uint64_t failed = 0;
  uint64_t bytes_done = 0;
  std::vector<int32_t> status;  // per piece: Errc as number; IN_PROG while in flight
};

struct TransferTelemetry {
  uint64_t start_us = 0;  // CLOCK_MONOTONIC
  uint64_t post_us = 0;   // time inside postTransfer()
  uint64_t xfer_us = 0;   // from post to completion
  uint64_t bytes = 0;
  uint64_t descriptors = 0;  // after merging
};

struct CostEstimate {
  double microseconds = 0;
  double error_microseconds = 0;
  bool known = false;
  std::string why;  // the engine's own words: what it goes by, or why it is not known
};

struct BackendInfo {
  std::string name;
  std::string version;
  std::string summary;
  std::vector<MemType> mems;
  Params params;            // plugins: defaults; backends: what was given
  std::map<std::string, std::string> help;  // by option
  bool local = false, remote = false, notifications = false;
  std::string path;  // of the plugin; "" when linked in
};

struct PluginState {
  std::string name;
  std::string path;          // "": linked in
  bool usable = false;       // loads, and can run here
  std::string why_unusable;  // the sentence
};

// A plugin that was tried out; see inspectPlugins().
struct PluginReport {
  PluginState state;
  bool loaded = false;  // its file was opened, and is a plugin for this library
  BackendInfo info;     // empty when it was not loaded
  std::vector<std::pair<std::string, std::string>> found;  // in its words: {"library", "/usr..."}
};

// Where plugins are looked for.
struct PluginSearch {
  std::string folder;
  bool chosen = false;               // by NIXL_PLUGIN_DIR
  std::string problem;               // why the folder cannot be read; empty: it can
  std::vector<PluginState> missing;  // built with this library, and not found
};

// An environment variable as it stands; for people and tools.
struct ConfigState {
  std::string name;
  std::string type;           // "bool", "int", "size", "duration", "string", "path", "A|B|C", ...
  std::string default_value;  // "": none
  std::string value;          // in force; "***" for a secret that is set
  std::string source;         // "default", or the name that it was read from
  std::string help;
  std::vector<std::string> aliases;
  std::string accepted;  // what it may be set to: "a whole number from 1 to 100"
  std::string problem;   // why the value cannot be used; "": it can
  std::string owner;     // the plugin that reads it; "": the library
  bool secret = false;
};

enum class Wait { ANY, ALL };

// All plugins that were found, by name, without loading them.
NIXL_API std::vector<std::string> pluginNames();
// Loads `name` if needed. Throws NOT_FOUND with the reason.
NIXL_API BackendInfo pluginInfo(const std::string& name);
// Loads every plugin found and says for each whether it can run here; for people and tools.
NIXL_API std::vector<PluginState> pluginStates();
// Tries out every plugin, each in a child process: one that crashes, or has not answered after
// `each`, is reported as unusable. Slower than pluginStates() (tens of milliseconds), and true:
// libraries and devices are really opened there.
NIXL_API std::vector<PluginReport> inspectPlugins(
    std::chrono::milliseconds each = std::chrono::seconds(10));
NIXL_API PluginSearch pluginSearch();
// Every environment variable that the library reads, and those of plugins that have been loaded.
NIXL_API std::vector<ConfigState> configStates();
NIXL_API const char* versionText() noexcept;  // "2.0.0"

// A named endpoint that owns its registered memory, its peers and its engines.
//
// Threads:   any method from any thread.
// Errors:    failures throw nixl::Error with a sentence. A transfer that fails is not a failure of
//            the call that looks at it: checkTransfer() returns FAILED, and transferError() says why.
// Lifetime:  handles live until released, or until the agent dies. The destructor ends everything
//            in flight within a second. Nothing of the caller's is referenced after a call
//            returns, except registered memory.
// fork:      in a child process every call throws FORKED; the destructor touches nothing shared.
class NIXL_API Agent {
 public:
  // Throws INVALID_PARAM for an empty name, and what creating a configured backend throws.
  explicit Agent(std::string name, const AgentConfig& config = {});
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  const std::string& name() const;
  std::string incarnation() const;  // 32 hexadecimal digits, new for every agent

  // Backends. createBackend throws NOT_FOUND (no such plugin, or it cannot run here),
  // INVALID_PARAM (there already), BACKEND (it failed, or cannot read an option). Options that it
  // does not know are ignored, and said at level INFO.
  void createBackend(const std::string& name, const Params& params = {});
  std::vector<std::string> backends() const;  // in order of creation
  BackendInfo backendInfo(const std::string& name) const;

  // Registers all ranges, with each of `backends` (empty: all that take the kind); succeeds when
  // at least one engine took the whole list. All ranges are of one kind. Overlapping and repeated
  // ranges are fine and counted. NOT_FOUND: no engine for the kind.
  Memory registerMemory(const std::vector<MemDescriptor>& ranges,
                        const std::vector<std::string>& backends = {});
  Memory registerMemory(const std::vector<MemDescriptor>& ranges, const char* backend) {
    return registerMemory(ranges, std::vector<std::string>{backend});
  }
  // Ends what is in flight there, here and at peers that use the memory through a transport which
  // cannot refuse them (docs/guide/failures.md), and waits for it: NIXL_QUIESCE_MS for peers.
  // Throws NOT_QUIESCED when something may still land: of our own, and then the memory stays
  // registered; of peers, when `fence` is REQUIRE. They are named in an event in any case.
  enum class Fence : uint8_t { REQUIRE, BEST_EFFORT };
  void deregisterMemory(Memory memory, Fence fence = Fence::REQUIRE);
  // The same by ranges: each must match one registration exactly; otherwise nothing is removed
  // (NOT_FOUND).
  void deregisterMemory(const std::vector<MemDescriptor>& ranges,
                        const std::vector<std::string>& backends = {},
                        Fence fence = Fence::REQUIRE);
  // Facts about stored things (size, ...): one entry per range, none where it does not exist.
  std::vector<std::optional<Params>> queryMemory(const std::vector<MemDescriptor>& ranges,
                                                 const std::string& backend);

  // Metadata: everything a peer needs to reach this agent. It holds a secret: whoever has it can
  // read and write registered memory.
  std::string metadata() const;
  std::string partialMetadata(const std::vector<MemDescriptor>& ranges, bool with_connections,
                              const std::vector<std::string>& backends = {}) const;
  // Returns the peer's name. Throws MISMATCH (not metadata, cut, changed), NOT_ALLOWED (of an
  // incarnation that was replaced), INVALID_PARAM (our own), BACKEND (no engine in common).
  std::string loadMetadata(std::string_view bytes);
  void invalidatePeer(const std::string& peer);  // NOT_FOUND: not loaded
  // Is the peer known, and does one engine cover all of `ranges` (none: any)?
  bool checkPeer(const std::string& peer, const Rows& ranges = {}) const;
  void connectPeer(const std::string& peer, const std::vector<std::string>& backends = {});

  // Exchange with a listener. Returns at once; poll checkPeer(). Host names, IPv4 and IPv6.
  void sendMetadata(const std::string& address, uint16_t port);
  void sendPartialMetadata(const std::vector<MemDescriptor>& ranges, bool with_connections,
                           const std::vector<std::string>& backends, const std::string& address,
                           uint16_t port);
  void fetchMetadata(const std::string& peer, const std::string& address, uint16_t port);
  void invalidateMetadata(const std::string& address, uint16_t port);
  uint16_t listenPort() const;  // 0: no listener

  // Sides. `peer` empty: our own side; our own name: ourselves as the target.
  // NOT_FOUND: unknown peer, or a range that no registration covers, empty lists.
  Side prepareSide(const std::string& peer, const Rows& rows,
                   const std::vector<std::string>& backends = {});
  void releaseSide(Side side);

  // A transfer between equally many ranges of both sides, chosen by position. INVALID_PARAM: no
  // indices, one out of range, lengths that differ, sides swapped, no engine in common.
  Transfer makeTransfer(OpType op, Side local, const int32_t* local_indices, Side remote,
                        const int32_t* remote_indices, size_t count,
                        const TransferOptions& options = {});
  // A transfer of lists, pairwise.
  Transfer prepareTransfer(OpType op, const Rows& local, const Rows& remote,
                           const std::string& peer, const TransferOptions& options = {});
  Transfer prepareTransfer(OpType op, const std::vector<MemDescriptor>& local,
                           const std::vector<MemDescriptor>& remote, const std::string& peer,
                           const TransferOptions& options = {});
  Transfer prepareTransfer(OpType op, const std::vector<MemDescriptor>& local,
                           const std::vector<MemDescriptor>& remote, const std::string& peer,
                           const char* backend) {
    TransferOptions options;
    options.backends = {backend};
    return prepareTransfer(op, local, remote, peer, options);
  }

  // Starts it, again after it ended. `notification`: replaces the stored one, also for later
  // posts. Throws REPOST_ACTIVE while it is in flight, NOT_FOUND when the peer was invalidated
  // since. Returns POSTED, DONE or FAILED.
  XferState postTransfer(Transfer transfer, std::optional<std::string> notification = {});
  // The same with a deadline of this post alone; 0: none, whatever the transfer was made with.
  XferState postTransfer(Transfer transfer, std::optional<std::string> notification,
                         std::chrono::nanoseconds timeout);
  // One atomic load when it ended; otherwise drives the engines a little. Never blocks.
  XferState checkTransfer(Transfer transfer);
  // What checkTransfer() would read, without driving anything; none: released, or after fork().
  std::optional<XferState> peekTransfer(Transfer transfer) const noexcept;
  // Until it ended or `timeout` passed; then POSTED.
  XferState waitTransfer(Transfer transfer, std::chrono::nanoseconds timeout);
  // Returns how many of them ended. ANY: returns when one has.
  size_t waitTransfers(const std::vector<Transfer>& transfers, Wait wait,
                       std::chrono::nanoseconds timeout);
  Errc transferError(Transfer transfer, std::string* text = nullptr) const;
  PieceStatus pieceStatus(Transfer transfer) const;
  TransferTelemetry transferTelemetry(Transfer transfer) const;  // NO_TELEMETRY, NOT_POSTED
  std::string transferBackend(Transfer transfer) const;
  CostEstimate estimateCost(Transfer transfer) const;
  // Which path it takes, and why not a better one; for people.
  std::string explain(Transfer transfer) const;
  // Asks to stop; checkTransfer() says CANCELED once nothing of it can land any more.
  void cancelTransfer(Transfer transfer);
  // Cancels and waits until nothing of it can land any more. NOT_QUIESCED at the deadline.
  void quiesceTransfer(Transfer transfer, std::chrono::nanoseconds timeout);
  // Never blocks; one in flight is cancelled, and its notification is not sent.
  void releaseTransfer(Transfer transfer);

  // Notifications. Sending: NOT_FOUND (unknown peer), REMOTE_DISCONNECT, LIMIT.
  void sendNotification(const std::string& peer, std::string_view message,
                        const std::string& backend = {});
  std::vector<Notification> takeNotifications();
  bool hasNotifications() const;  // one atomic load: some wait to be taken
  std::vector<Event> events();  // since the last call; bounded, oldest dropped first

  // Drives the engines for at most `budget`; returns whether there was anything to do.
  bool progress(std::chrono::nanoseconds budget = std::chrono::microseconds(50));
  // The caller, who polled, sleeps on completionFd() from now on: the progress thread, which stands
  // back up to a millisecond for who polls, takes over at once.
  void handOver();
  // Readable when a transfer ended or a notification or event came since it was last drained
  // (read 8 bytes). Stays ours; made at the first call. A dup() of it is readable when the agent
  // has ended, too.
  int completionFd();

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace nixl
