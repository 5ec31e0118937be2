#include "agent.h"

#include <nanobind/stl/chrono.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "convert.h"
#include "errors.h"
#include "gil.h"
#include "lists.h"
#include "nixl/agent.h"

namespace nb = nanobind;
using namespace nb::literals;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

namespace nixl::python {
namespace {

enum class ThreadSync { NONE = 0, STRICT = 1, RW = 2 };
enum class CostMethod { ANALYTICAL_BACKEND = 0, UNKNOWN = 1 };

// Settings in upstream's words. What the library has no use for is kept and given back.
struct Config {
  bool prog_thread, listen;
  uint16_t port;
  ThreadSync sync;
  uint64_t prog_delay_us, listen_delay_us;
  bool telemetry;
  microseconds etcd_timeout = std::chrono::seconds(5);
  std::optional<bool> use_store;
  unsigned num_threads = 0;

  Config(bool prog = false, bool listener = false, uint16_t listen_port = 8888,
         ThreadSync mode = ThreadSync::NONE, unsigned /*workers*/ = 1, uint64_t prog_delay = 0,
         uint64_t listen_delay = 100000, bool capture = false)
      : prog_thread(prog),
        listen(listener),
        port(listen_port),
        sync(mode),
        prog_delay_us(prog_delay),
        listen_delay_us(listen_delay),
        telemetry(capture) {}
};

// The agent as Python holds it. All members are used with the interpreter's lock held. A call takes
// its own reference before it lets go of the lock, so close() never pulls the agent away from it.
class PyAgent {
 public:
  PyAgent(std::string name, std::shared_ptr<Agent> agent, bool progress_thread)
      : name_(std::move(name)), agent_(std::move(agent)), progress_thread_(progress_thread) {
    alive().insert(this);
  }
  PyAgent(const PyAgent&) = delete;
  PyAgent& operator=(const PyAgent&) = delete;
  ~PyAgent() {
    alive().erase(this);
    close();
  }

  const std::string& name() const { return name_; }
  bool closed() const { return !agent_; }
  bool hasProgressThread() const { return progress_thread_; }
  std::shared_ptr<Agent> use() const {
    if (!agent_) throw Error(Errc::SHUT_DOWN, "agent \"" + name_ + "\" is closed");
    return agent_;
  }
  void close() {
    if (auto agent = detach()) {
      WithoutGil free;
      agent.reset();
    }
  }
  // Closed as of now; whoever drops the result ends the agent.
  std::shared_ptr<Agent> detach() { return std::exchange(agent_, nullptr); }

  // Backends have numbers, which no other agent of the process uses.
  uint64_t idOf(const std::string& backend) {
    for (const auto& [id, name] : backends_)
      if (name == backend) return id;
    static uint64_t last = 0;
    backends_.emplace_back(++last, backend);
    return last;
  }
  const std::string& backend(uint64_t id) const {
    for (const auto& [known, name] : backends_)
      if (known == id) return name;
    throw Error(Errc::INVALID_PARAM,
                "agent \"" + name_ + "\" has no backend with the handle " + std::to_string(id));
  }
  std::vector<std::string> backends(nb::handle ids) const {
    std::vector<std::string> names;
    if (PyList_Check(ids.ptr()) && PyList_GET_SIZE(ids.ptr()) == 0) return names;
    const bool text = PyUnicode_Check(ids.ptr()) || PyBytes_Check(ids.ptr());
    if (text || !PySequence_Check(ids.ptr()))
      throw nb::type_error((std::string("backends must be a list of handles, not a ") +
                            Py_TYPE(ids.ptr())->tp_name)
                               .c_str());
    for (nb::handle id : ids) {
      uint64_t number = 0;
      if (!nb::try_cast(id, number))
        throw nb::type_error((std::string("a handle of a backend is a number, not a ") +
                              Py_TYPE(id.ptr())->tp_name)
                                 .c_str());
      names.push_back(backend(number));
    }
    return names;
  }
  void createdWithNotifications() { notifications_ = true; }
  bool hasNotifications() const { return notifications_; }

  static std::unordered_set<PyAgent*>& alive() {
    static auto* agents = new std::unordered_set<PyAgent*>;  // outlives the interpreter
    return *agents;
  }

 private:
  std::string name_;
  std::shared_ptr<Agent> agent_;
  const bool progress_thread_;
  std::vector<std::pair<uint64_t, std::string>> backends_;
  bool notifications_ = false;
};

// Closes what is still open when the interpreter ends. Calls of daemon threads that hold an agent
// end within their slice of waiting; after a second nobody is waited for any more. All are closed
// before the first one ends, which those that are connected to it would take for a lost peer.
void closeAll() {
  std::vector<std::shared_ptr<Agent>> agents;
  std::vector<std::weak_ptr<Agent>> last;
  for (PyAgent* agent : PyAgent::alive()) {
    agents.push_back(agent->detach());
    last.push_back(agents.back());
  }
  WithoutGil free;
  agents.clear();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  for (const auto& agent : last)
    while (!agent.expired() && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(milliseconds(1));
}

// Calls `f` with the agent while other Python threads run.
template <typename F>
auto call(const PyAgent& self, F&& f) {
  const std::shared_ptr<Agent> agent = self.use();
  WithoutGil free;
  return f(*agent);
}

// --- names
// ----------------------------------------------------------------------------------------

const char* segmentName(MemType type) {
  switch (type) {
    case MemType::DRAM:
      return "DRAM_SEG";
    case MemType::VRAM:
      return "VRAM_SEG";
    case MemType::BLOCK:
      return "BLK_SEG";
    case MemType::OBJ:
      return "OBJ_SEG";
    case MemType::FILE:
      return "FILE_SEG";
  }
  return "UNKNOWN_SEG";
}

nb::tuple paramsAndKinds(const BackendInfo& info) {
  nb::dict params;
  for (const auto& [key, value] : info.params) params[toStr(key)] = toStr(value);
  nb::list kinds;
  for (MemType type : info.mems) kinds.append(segmentName(type));
  return nb::make_tuple(params, kinds);
}

uint16_t portNumber(int port) {
  if (port < 0 || port > 65535)
    throw Error(Errc::INVALID_PARAM, "port " + std::to_string(port) + " is not 0 to 65535");
  return static_cast<uint16_t>(port);
}

// --- transfers
// ------------------------------------------------------------------------------------

[[noreturn]] void raiseFailure(const Agent& agent, Transfer transfer, XferState state) {
  if (state == XferState::PREPARED)
    raise(Errc::NOT_POSTED, "the transfer was made, but not posted yet");
  std::string text;
  Errc code = agent.transferError(transfer, &text);
  if (code == Errc::OK) {
    code = state == XferState::CANCELED ? Errc::CANCELED : Errc::UNKNOWN;
    text = "the transfer failed, and was posted again before its reason was read";
  }
  raise(code, text);
}

nb::object outcome(const Agent& agent, Transfer transfer, XferState state) {
  if (state == XferState::DONE) return status(Errc::OK);
  if (state == XferState::POSTED) return status(Errc::IN_PROG);
  raiseFailure(agent, transfer, state);
}

// Seconds as a deadline of the library's, where 0 is none: none given or endless is 0, and a time
// that is over already is the shortest there is.
nanoseconds deadlineOf(std::optional<double> seconds) {
  if (!seconds || *seconds >= 1e9) return nanoseconds(0);
  if (std::isnan(*seconds)) throw nb::value_error("a timeout must be a number of seconds, not NaN");
  return std::max(nanoseconds(1), std::chrono::duration_cast<nanoseconds>(
                                      std::chrono::duration<double>(std::max(0.0, *seconds))));
}

nb::object post(PyAgent& self, uint64_t request, Text message, std::optional<double> timeout) {
  const std::shared_ptr<Agent> agent = self.use();
  const nanoseconds limit = deadlineOf(timeout);
  XferState state;
  {
    WithoutGil free;
    std::optional<std::string> words;
    if (!message.view.empty()) words = message.str();
    state = timeout ? agent->postTransfer({request}, std::move(words), limit)
                    : agent->postTransfer({request}, std::move(words));
  }
  return outcome(*agent, {request}, state);
}

nb::object check(PyAgent& self, uint64_t request) {
  const std::shared_ptr<Agent> agent = self.use();
  // Clients look at transfers that ended long ago: not worth giving the interpreter's lock away.
  if (agent->peekTransfer({request}) == XferState::DONE) return status(Errc::OK);
  XferState state;
  {
    WithoutGil free;
    state = agent->checkTransfer({request});
  }
  return outcome(*agent, {request}, state);
}

// Waits in slices, so that Ctrl-C and close() get through. No timeout: for ever.
nb::object wait(PyAgent& self, const std::vector<uint64_t>& requests, bool all,
                std::optional<double> timeout) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kSlice = milliseconds(50);
  const auto end = timeout && *timeout < 1e9
                       ? Clock::now() + std::chrono::duration_cast<nanoseconds>(
                                            std::chrono::duration<double>(std::max(0.0, *timeout)))
                       : Clock::time_point::max();
  std::vector<Transfer> transfers;
  for (uint64_t id : requests) transfers.push_back({id});
  const size_t enough = all ? transfers.size() : std::min<size_t>(1, transfers.size());
  for (;;) {
    const auto now = Clock::now();
    const nanoseconds slice =
        end - now < kSlice ? std::max<nanoseconds>(end - now, nanoseconds(0)) : nanoseconds(kSlice);
    const size_t ended = call(self, [&](Agent& agent) {
      return agent.waitTransfers(transfers, all ? Wait::ALL : Wait::ANY, slice);
    });
    if (PyErr_CheckSignals()) throw nb::python_error();
    if (ended >= enough || Clock::now() >= end) return nb::int_(ended);
  }
}

// How many have ended, or are gone. Moves nothing and gives nothing away: for event loops.
size_t countEnded(PyAgent& self, const std::vector<uint64_t>& requests) {
  const std::shared_ptr<Agent> agent = self.use();
  return static_cast<size_t>(std::count_if(requests.begin(), requests.end(), [&](uint64_t request) {
    return agent->peekTransfer({request}) != XferState::POSTED;
  }));
}

// Waits in slices, for the same reasons as wait().
void quiesce(PyAgent& self, uint64_t request, double timeout) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kSlice = milliseconds(50);
  const auto end = Clock::now() + std::chrono::duration_cast<nanoseconds>(
                                      std::chrono::duration<double>(std::clamp(timeout, 0.0, 1e9)));
  for (;;) {
    const auto left = std::max<nanoseconds>(end - Clock::now(), nanoseconds(0));
    try {
      call(self, [&](Agent& agent) {
        agent.quiesceTransfer({request}, std::min<nanoseconds>(left, kSlice));
      });
      return;
    } catch (const Error& e) {
      if (e.code() != Errc::NOT_QUIESCED || Clock::now() >= end) throw;
    }
    if (PyErr_CheckSignals()) throw nb::python_error();
  }
}

TransferTelemetry telemetry(PyAgent& self, uint64_t request) {
  const std::shared_ptr<Agent> agent = self.use();
  TransferTelemetry figures = agent->transferTelemetry({request});
  std::string text;
  const Errc code = agent->transferError({request}, &text);
  if (static_cast<int>(code) < 0) raise(code, text);
  return figures;
}

TransferOptions optionsOf(const PyAgent& self, Text message, nb::handle backends,
                          std::optional<double> timeout) {
  TransferOptions options;
  options.timeout = deadlineOf(timeout);
  if (!message.view.empty()) options.notification = message.str();
  options.backends = self.backends(backends);
  return options;
}

// --- sides
// ----------------------------------------------------------------------------------------

// Refuses rows of address, length, device, stride, count that describe nothing, or wrap around.
void checkStrided(const Table& table) {
  auto refuse = [](size_t row, const std::string& why) {
    throw Error(Errc::NOT_FOUND, "prepare a strided list: row " + std::to_string(row) + " " + why);
  };
  if (!table.rows()) throw Error(Errc::NOT_FOUND, "prepare a strided list: it has no rows");
  for (size_t i = 0; i < table.rows(); ++i) {
    const uint64_t* row = table.data() + i * 5;
    const uint64_t length = row[1], stride = row[3], blocks = row[4];
    if (table.isSigned() && static_cast<int64_t>(length | stride | blocks) < 0)
      refuse(i, "has a negative length, stride or count");
    if (!length || !blocks) refuse(i, "covers nothing: its length or its count is 0");
    if (stride < length)
      refuse(i, "overlaps itself: stride " + std::to_string(stride) + " is less than its length " +
                    std::to_string(length));
    uint64_t end;
    if (__builtin_mul_overflow(blocks - 1, stride, &end) ||
        __builtin_add_overflow(end, length, &end) || __builtin_add_overflow(end, row[0], &end))
      refuse(i, "reaches beyond the address space");
  }
}

uint64_t prepare(PyAgent& self, Text peer, const Rows& rows, nb::handle backends) {
  const std::string name = peer.str();
  const std::vector<std::string> names = self.backends(backends);
  return call(self, [&](Agent& agent) { return agent.prepareSide(name, rows, names).id; });
}

// --- notifications
// --------------------------------------------------------------------------------

nb::dict notifications(PyAgent& self, nb::dict known, nb::handle backends) {
  self.backends(backends);  // refuses unknown ones
  nb::dict merged;
  for (auto [peer, messages] : known) {
    nb::list copy;
    if (nb::isinstance<nb::str>(messages) || nb::isinstance<nb::bytes>(messages))
      throw nb::type_error("notifications of an agent must be a list of bytes");
    for (nb::handle message : messages) {
      if (!nb::isinstance<nb::bytes>(message))
        throw nb::type_error("notifications of an agent must be a list of bytes");
      copy.append(message);
    }
    const bool named = PyUnicode_Check(peer.ptr()) || PyBytes_Check(peer.ptr());
    if (!named) throw nb::type_error("notifications must be kept by names of agents");
    merged[toStr(nb::cast<Text>(peer).view)] = copy;
  }
  const std::vector<Notification> arrived =
      call(self, [](Agent& agent) { return agent.takeNotifications(); });
  if (arrived.empty() && !self.hasNotifications())
    throw Error(Errc::BACKEND, "agent \"" + self.name() + "\" has no backend with notifications");
  for (const Notification& n : arrived) {
    nb::str peer = toStr(n.agent);
    if (!merged.contains(peer)) merged[peer] = nb::list();
    nb::cast<nb::list>(merged[peer]).append(toBytes(n.message));
  }
  return merged;
}

const char* eventName(Event::Kind kind) {
  switch (kind) {
    case Event::Kind::PEER_UP:
      return "PEER_UP";
    case Event::Kind::PEER_SUSPECT:
      return "PEER_SUSPECT";
    case Event::Kind::PEER_DOWN:
      return "PEER_DOWN";
    case Event::Kind::PEER_REPLACED:
      return "PEER_REPLACED";
    case Event::Kind::PEER_INVALIDATED:
      return "PEER_INVALIDATED";
    case Event::Kind::TRANSFER_FAILED:
      return "TRANSFER_FAILED";
    case Event::Kind::REMOTE_FAILURE:
      return "REMOTE_FAILURE";
    case Event::Kind::NOTIFICATIONS_LOST:
      return "NOTIFICATIONS_LOST";
    case Event::Kind::NAME_CONFLICT:
      return "NAME_CONFLICT";
    case Event::Kind::PEER_NOT_QUIESCED:
      return "PEER_NOT_QUIESCED";
  }
  return "UNKNOWN";
}

nb::list events(PyAgent& self) {
  nb::list list;
  for (const Event& e : call(self, [](Agent& agent) { return agent.events(); }))
    list.append(nb::make_tuple(eventName(e.kind), toStr(e.peer), e.incarnation, e.transfer,
                               status(e.code), toStr(e.text), toBytes(e.message)));
  return list;
}

// --- the classes
// ----------------------------------------------------------------------------------

void addConfig(nb::module_& m) {
  nb::enum_<ThreadSync> modes(m, "nixl_thread_sync_t", nb::is_arithmetic());
  modes.value("NIXL_THREAD_SYNC_NONE", ThreadSync::NONE)
      .value("NIXL_THREAD_SYNC_STRICT", ThreadSync::STRICT)
      .value("NIXL_THREAD_SYNC_RW", ThreadSync::RW)
      .export_values();
  const char* alias = "NIXL_THREAD_SYNC_DEFAULT";
  nb::object none = modes.attr("NIXL_THREAD_SYNC_NONE");
  modes.attr(alias) = none;
  modes.attr("_member_map_")[alias] = none;
  m.attr(alias) = none;

  nb::class_<Config>(m, "nixlAgentConfig")
      .def(nb::init<>())
      .def(nb::init<Flag>(), nb::arg().none())
      .def(nb::init<Flag, Flag>(), nb::arg().none(), nb::arg().none())
      .def(nb::init<Flag, Flag, uint16_t>())
      .def(nb::init<Flag, Flag, uint16_t, ThreadSync>())
      .def(nb::init<Flag, Flag, uint16_t, ThreadSync, unsigned>())
      .def(nb::init<Flag, Flag, uint16_t, ThreadSync, unsigned, uint64_t>())
      .def(nb::init<Flag, Flag, uint16_t, ThreadSync, unsigned, uint64_t, uint64_t>())
      .def(nb::init<Flag, Flag, uint16_t, ThreadSync, unsigned, uint64_t, uint64_t, Flag>())
      .def_prop_rw(
          "useProgThread", [](const Config& c) { return c.prog_thread; },
          [](Config& c, Flag value) { c.prog_thread = value; }, "value"_a.none())
      .def_prop_rw(
          "useListenThread", [](const Config& c) { return c.listen; },
          [](Config& c, Flag value) { c.listen = value; }, "value"_a.none())
      .def_rw("listenPort", &Config::port)
      .def_rw("syncMode", &Config::sync, "value"_a.noconvert())
      .def_prop_rw(
          "captureTelemetry", [](const Config& c) { return c.telemetry; },
          [](Config& c, Flag value) { c.telemetry = value; }, "value"_a.none())
      .def_rw("pthrDelay", &Config::prog_delay_us)
      .def_rw("lthrDelay", &Config::listen_delay_us)
      .def_rw("useStore", &Config::use_store, nb::arg("value").none())
      .def_rw("numThreads", &Config::num_threads)
      .def_prop_rw(
          "etcdWatchTimeout", [](const Config& c) { return c.etcd_timeout; },
          [](Config& c, nb::handle value) {
            if (!nb::isinstance(value, nb::module_::import_("datetime").attr("timedelta")))
              throw nb::type_error("etcdWatchTimeout must be a datetime.timedelta");
            c.etcd_timeout = nb::cast<microseconds>(value);
          });
}

void addTelemetry(nb::module_& m) {
  nb::enum_<CostMethod>(m, "nixl_cost_t", nb::is_arithmetic())
      .value("NIXL_COST_ANALYTICAL_BACKEND", CostMethod::ANALYTICAL_BACKEND)
      .value("NIXL_COST_UNKNOWN", CostMethod::UNKNOWN)
      .export_values();

  nb::class_<TransferTelemetry>(m, "nixlXferTelemetry")
      .def(nb::init<>())
      .def_ro("startTime", &TransferTelemetry::start_us)
      .def_ro("postDuration", &TransferTelemetry::post_us)
      .def_ro("xferDuration", &TransferTelemetry::xfer_us)
      .def_ro("totalBytes", &TransferTelemetry::bytes)
      .def_ro("descCount", &TransferTelemetry::descriptors)
      .def("__repr__", [](const TransferTelemetry& t) {
        return "<nixlXferTelemetry: " + std::to_string(t.bytes) + " bytes in " +
               std::to_string(t.descriptors) + " descriptors, " + std::to_string(t.xfer_us) +
               " us>";
      });
}

void create(PyAgent* self, Text name, const Config& config) {
  if (name.view.empty()) throw nb::value_error("an agent needs a name that is not empty");
  AgentConfig settings;
  settings.backends.clear();
  settings.progress_thread = config.prog_thread;
  settings.listen = config.listen;
  settings.listen_port = config.port;
  settings.capture_telemetry = config.telemetry;
  settings.num_threads = config.num_threads;
  settings.use_store = config.use_store;
  std::shared_ptr<Agent> agent;
  try {
    WithoutGil free;
    agent = std::make_shared<Agent>(name.str(), settings);
  } catch (const Error& e) {
    throw std::runtime_error(e.what());
  }
  new (self) PyAgent(name.str(), std::move(agent), config.prog_thread);
}

uint64_t createBackend(PyAgent& self, Text backend,
                       const std::map<std::string, std::string>& params) {
  const std::string name = backend.str();
  const BackendInfo info = call(self, [&](Agent& agent) {
    agent.createBackend(name, params);
    return agent.backendInfo(name);
  });
  if (info.notifications) self.createdWithNotifications();
  return self.idOf(name);
}

}  // namespace

void addAgent(nb::module_& m) {
  addConfig(m);
  addTelemetry(m);
  m.def("_close_all", &closeAll);

  // The default of `backends`: all that fit. Never changed.
  const nb::list any;

  nb::class_<PyAgent> cls(m, "nixlAgent", nb::is_weak_referenceable());
  cls.def("__init__", &create, "name"_a, "config"_a);

  // Plugins and backends.
  cls.def("getAvailPlugins", [](PyAgent&) { return pluginNames(); })
      .def("getPluginParams",
           [](PyAgent&, Text name) {
             BackendInfo info;
             {
               WithoutGil free;
               info = pluginInfo(name.str());
             }
             return paramsAndKinds(info);
           })
      .def("getBackendParams",
           [](PyAgent& self, uint64_t backend) {
             return paramsAndKinds(self.use()->backendInfo(self.backend(backend)));
           })
      .def("createBackend", &createBackend);

  // Memory.
  cls.def(
         "registerMem",
         [](PyAgent& self, const RegistrationList& descs, nb::object backends) {
           const auto names = self.backends(backends);
           call(self, [&](Agent& agent) { agent.registerMemory(descs.ranges, names); });
           return status(Errc::OK);
         },
         "descs"_a, "backends"_a = any)
      .def(
          "deregisterMem",
          [](PyAgent& self, const RegistrationList& descs, nb::object backends, bool require) {
            const auto names = self.backends(backends);
            const auto fence = require ? Agent::Fence::REQUIRE : Agent::Fence::BEST_EFFORT;
            call(self, [&](Agent& agent) { agent.deregisterMemory(descs.ranges, names, fence); });
            return status(Errc::OK);
          },
          "descs"_a, "backends"_a = any, "require_quiet"_a = false)
      .def(
          "queryMem",
          [](PyAgent& self, const RegistrationList& descs, uint64_t backend) {
            const std::string name = self.backend(backend);
            const auto found =
                call(self, [&](Agent& agent) { return agent.queryMemory(descs.ranges, name); });
            nb::list list;
            for (const auto& facts : found) list.append(nb::cast(facts));
            return list;
          },
          "descs"_a, "backend"_a)
      .def(
          "prepMemView",
          [](PyAgent&, nb::object dlist, nb::object) -> uint64_t {
            if (!nb::isinstance<TransferList>(dlist) && !nb::isinstance<RemoteList>(dlist))
              throw nb::type_error("dlist must be a nixlXferDList or a nixlRemoteDList");
            throw Error(Errc::NOT_SUPPORTED,
                        "memory views need a backend with a device API, and there is none here");
          },
          "dlist"_a, "backends"_a = any)
      .def("releaseMemView", [](PyAgent&, nb::int_) {}, "mvh"_a);

  // Sides.
  cls.def(
         "prepXferDlist",
         [](PyAgent& self, Text peer, const TransferList& descs, nb::object backends) {
           return prepare(self, peer, descs.rows(), backends);
         },
         "agent_name"_a, "descs"_a, "backend"_a = any)
      .def(
          "prepXferDlist",
          [](PyAgent& self, const TransferList& descs, nb::object backends) {
            return prepare(self, Text{}, descs.rows(), backends);
          },
          "descs"_a, "backend"_a = any)
      .def(
          "prepXferDlist",
          [](PyAgent& self, Text peer, MemType type, nb::object descs, nb::object backends) {
            const Table table(descs);
            if (table.columns() == 5) checkStrided(table);
            return prepare(self, peer, Rows{type, table.data(), table.rows(), table.columns()},
                           backends);
          },
          "agent_name"_a, "mem_type"_a.noconvert(), "descs"_a, "backend"_a = any)
      .def("releasedDlistH", [](PyAgent& self, uint64_t side) {
        call(self, [&](Agent& agent) { agent.releaseSide({side}); });
        return status(Errc::OK);
      });

  // Transfers.
  cls.def(
         "makeXferReq",
         [](PyAgent& self, OpType op, uint64_t local, nb::object local_indices, uint64_t remote,
            nb::object remote_indices, Text message, nb::object backends, Flag skip_merge,
            std::optional<double> timeout) {
           const Indices ours(local_indices), theirs(remote_indices);
           TransferOptions options = optionsOf(self, message, backends, timeout);
           options.merge = !skip_merge;
           if (ours.size() != theirs.size())
             throw Error(Errc::INVALID_PARAM, "make a transfer: " + std::to_string(ours.size()) +
                                                  " local and " + std::to_string(theirs.size()) +
                                                  " remote indices");
           return call(self, [&](Agent& agent) {
             return agent
                 .makeTransfer(op, {local}, ours.data(), {remote}, theirs.data(), ours.size(),
                               options)
                 .id;
           });
         },
         "operation"_a.noconvert(), "local_side"_a, "local_indices"_a.none(), "remote_side"_a,
         "remote_indices"_a.none(), "notif_msg"_a = "", "backend"_a = any,
         "skip_desc_merg"_a.none() = false, "timeout"_a = nb::none())
      .def(
          "createXferReq",
          [](PyAgent& self, OpType op, const TransferList& local, const TransferList& remote,
             Text peer, Text message, nb::object backends, std::optional<double> timeout) {
            const TransferOptions options = optionsOf(self, message, backends, timeout);
            const std::string name = peer.str();
            return call(self, [&](Agent& agent) {
              return agent.prepareTransfer(op, local.rows(), remote.rows(), name, options).id;
            });
          },
          "operation"_a.noconvert(), "local_descs"_a, "remote_descs"_a, "remote_agent"_a,
          "notif_msg"_a = "", "backend"_a = any, "timeout"_a = nb::none())
      .def("postXferReq", &post, "reqh"_a, "notif_msg"_a = "", "timeout"_a = nb::none())
      .def("getXferStatus", &check)
      .def("getXferTelemetry", &telemetry, "reqh"_a)
      .def("queryXferBackend",
           [](PyAgent& self, uint64_t request) {
             return self.idOf(self.use()->transferBackend({request}));
           })
      .def("releaseXferReq",
           [](PyAgent& self, uint64_t request) {
             call(self, [&](Agent& agent) { agent.releaseTransfer({request}); });
             return status(Errc::OK);
           })
      .def(
          "estimateXferCost",
          [](PyAgent& self, uint64_t request) {
            const CostEstimate cost =
                call(self, [&](Agent& agent) { return agent.estimateCost({request}); });
            return nb::make_tuple(static_cast<int64_t>(cost.microseconds + 0.5),
                                  static_cast<int64_t>(cost.error_microseconds + 0.5),
                                  static_cast<int>(cost.known ? CostMethod::ANALYTICAL_BACKEND
                                                              : CostMethod::UNKNOWN));
          },
          "req_handle"_a);

  // Transfers, what upstream has not.
  cls.def("waitXferReqs", &wait, "reqhs"_a, "wait_all"_a = true, "timeout"_a = nb::none())
      .def("explainXferReq",
           [](PyAgent& self, uint64_t request) {
             return toStr(call(self, [&](Agent& agent) { return agent.explain({request}); }));
           })
      .def("cancelXferReq",
           [](PyAgent& self, uint64_t request) {
             call(self, [&](Agent& agent) { agent.cancelTransfer({request}); });
             return status(Errc::OK);
           })
      .def("quiesceXferReq",
           [](PyAgent& self, uint64_t request, double timeout) {
             quiesce(self, request, timeout);
             return status(Errc::OK);
           })
      .def("countEndedXferReqs", &countEnded)
      .def("getPieceStatus",
           [](PyAgent& self, uint64_t request) {
             const PieceStatus s = self.use()->pieceStatus({request});
             return nb::make_tuple(s.pieces, s.done, s.failed, s.bytes_done, nb::cast(s.status));
           })
      .def("backendName", [](PyAgent& self, uint64_t id) { return toStr(self.backend(id)); })
      .def("getEvents", &events)
      .def("completionFd", [](PyAgent& self) { return self.use()->completionFd(); })
      .def("handOver", [](PyAgent& self) { self.use()->handOver(); })
      .def("listenPort", [](PyAgent& self) { return self.use()->listenPort(); })
      .def("incarnation", [](PyAgent& self) { return self.use()->incarnation(); })
      .def("close", [](PyAgent& self) { self.close(); })
      .def_prop_ro("closed", &PyAgent::closed)
      .def_prop_ro("hasProgressThread", &PyAgent::hasProgressThread);

  // Notifications.
  cls.def("getNotifs", &notifications, "notif_map"_a, "backends"_a = any)
      .def("hasNotifs", [](PyAgent& self) { return self.use()->hasNotifications(); })
      .def(
          "genNotif",
          [](PyAgent& self, Text peer, Text message, nb::object backends) {
            const std::string name = peer.str();
            const auto names = self.backends(backends);
            call(self, [&](Agent& agent) {
              agent.sendNotification(name, message.view, names.empty() ? "" : names.front());
            });
            return status(Errc::OK);
          },
          "remote_agent"_a, "msg"_a, "backends"_a = any);

  // Metadata.
  cls.def("getLocalMD",
          [](PyAgent& self) {
            return toBytes(call(self, [](Agent& agent) { return agent.metadata(); }));
          })
      .def(
          "getLocalPartialMD",
          [](PyAgent& self, const RegistrationList& descs, Flag connections, nb::object backends) {
            const auto names = self.backends(backends);
            return toBytes(call(self, [&](Agent& agent) {
              return agent.partialMetadata(descs.ranges, connections, names);
            }));
          },
          "descs"_a, "inc_conn_info"_a.none() = false, "backends"_a = any)
      .def(
          "loadRemoteMD",
          [](PyAgent& self, Text blob) {
            return toBytes(call(self, [&](Agent& agent) { return agent.loadMetadata(blob.view); }));
          })
      .def("invalidateRemoteMD",
           [](PyAgent& self, Text peer) {
             const std::string name = peer.str();
             try {
               call(self, [&](Agent& agent) { agent.invalidatePeer(name); });
             } catch (const Error& e) {
               return status(e.code());
             }
             return status(Errc::OK);
           })
      .def("checkRemoteMD",
           [](PyAgent& self, Text peer, const TransferList& descs) {
             const std::string name = peer.str();
             try {
               return status(
                   call(self, [&](Agent& agent) { return agent.checkPeer(name, descs.rows()); })
                       ? Errc::OK
                       : Errc::NOT_FOUND);
             } catch (const Error& e) {
               return status(e.code());
             }
           })
      .def("makeConnection",
           [](PyAgent& self, Text peer, nb::object backends) {
             const std::string name = peer.str();
             const auto names = self.backends(backends);
             call(self, [&](Agent& agent) { agent.connectPeer(name, names); });
             return status(Errc::OK);
           })
      .def(
          "sendLocalMD",
          [](PyAgent& self, Text address, int port) {
            const uint16_t number = portNumber(port);
            call(self, [&](Agent& agent) { agent.sendMetadata(address.str(), number); });
          },
          "ip_addr"_a = "", "port"_a = 0)
      .def(
          "sendLocalPartialMD",
          [](PyAgent& self, const RegistrationList& descs, Flag connections, nb::object backends,
             Text address, int port, Text) {
            const auto names = self.backends(backends);
            const uint16_t number = portNumber(port);
            call(self, [&](Agent& agent) {
              agent.sendPartialMetadata(descs.ranges, connections, names, address.str(), number);
            });
          },
          "descs"_a, "inc_conn_info"_a.none() = false, "backends"_a = any, "ip_addr"_a = "",
          "port"_a = 0, "label"_a = "")
      .def(
          "fetchRemoteMD",
          [](PyAgent& self, Text peer, Text address, int port, Text) {
            const uint16_t number = portNumber(port);
            call(self,
                 [&](Agent& agent) { agent.fetchMetadata(peer.str(), address.str(), number); });
          },
          "remote_agent"_a, "ip_addr"_a = "", "port"_a = 0, "label"_a = "")
      .def(
          "invalidateLocalMD",
          [](PyAgent& self, Text address, int port) {
            const uint16_t number = portNumber(port);
            call(self, [&](Agent& agent) { agent.invalidateMetadata(address.str(), number); });
          },
          "ip_addr"_a = "", "port"_a = 0);
}

}  // namespace nixl::python
