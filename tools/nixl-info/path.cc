// nixl-info path A B [--size 16MB] [--pieces N] [--read] [--same-process | --one-agent] [--json]:
// which backend a transfer between two agents here would take, what it predicts, what a try gives,
// and why the others are not taken. A and B are kinds of memory: dram, vram:1, file:FOLDER.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "common/exit_code.h"
#include "common/sizes.h"
#include "nixl-info/command.h"
#include "nixl-info/probes.h"
#include "nixl-info/terminal.h"
#include "nixl/agent.h"
#include "nixlbench/gpu.h"

namespace nixl::info {

namespace {

using std::chrono::seconds;

constexpr auto kPeerLimit = seconds(30);  // for the other process to be there
constexpr auto kTryLimit = seconds(10);   // for one transfer
constexpr int kTries = 3;                 // the fastest one counts
constexpr uint64_t kMostBytes = 1ull << 32;
constexpr size_t kColumn = 14;

// One side of the transfer, as it was asked for.
struct Side {
  std::string text;
  MemType type = MemType::DRAM;
  uint64_t device = 0;
  std::string path;  // of a file, device or object
  bool only_read = false;
};

Side parseSide(const std::string& text) {
  Side side;
  side.text = text;
  const size_t colon = text.find(':');
  std::string kind = text.substr(0, colon);
  std::transform(kind.begin(), kind.end(), kind.begin(),
                 [](unsigned char c) { return std::toupper(c); });
  const std::string rest = colon == std::string::npos ? "" : text.substr(colon + 1);
  std::string known;
  for (unsigned i = 0; i < kMemTypes; ++i) {
    const auto type = static_cast<MemType>(i);
    known += (known.empty() ? "" : ", ") + std::string(memTypeName(type));
    if (kind != memTypeName(type)) continue;
    side.type = type;
    if (type != MemType::DRAM && type != MemType::VRAM) {
      side.path = rest;
      return side;
    }
    const auto [end, error] =
        std::from_chars(rest.data(), rest.data() + rest.size(), side.device);
    if (!rest.empty() && (error != std::errc() || end != rest.data() + rest.size()))
      throw Error(Errc::INVALID_PARAM, "\"" + text + "\": after the colon stands the number of a "
                                       "device, such as in vram:1");
    return side;
  }
  throw Error(Errc::INVALID_PARAM, "\"" + text + "\" is no memory; there are " + known +
                                       ", in any case, such as dram or vram:1");
}

bool isStorage(MemType type) { return type != MemType::DRAM && type != MemType::VRAM; }

// Memory of one side, with the life of the object.
class Buffer {
 public:
  Buffer(const Side& side, uint64_t bytes) : bytes_(bytes) {
    if (side.type == MemType::DRAM) {
      host_.reset(new char[bytes]);
      std::memset(host_.get(), 1, bytes);
      range_ = {reinterpret_cast<uint64_t>(host_.get()), bytes, side.device, MemType::DRAM};
    } else if (side.type == MemType::VRAM) {
      gpu_ = std::make_unique<bench::Gpu>(side.device);
      range_ = {gpu_->allocate(bytes), bytes, side.device, MemType::VRAM};
    } else {
      openFile(side);
    }
  }
  ~Buffer() {
    if (gpu_) gpu_->free(range_.address);
    if (file_ >= 0) ::close(file_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const MemDescriptor& range() const { return range_; }

  // `pieces` equal parts of the range, as transfers take them.
  std::vector<MemDescriptor> parts(unsigned pieces) const {
    std::vector<MemDescriptor> parts;
    for (unsigned i = 0; i < pieces; ++i) {
      MemDescriptor part = range_;
      part.length = bytes_ / pieces;
      part.address = range_.address + i * part.length;
      parts.push_back(std::move(part));
    }
    return parts;
  }

 private:
  void openFile(const Side& side) {
    range_ = {0, bytes_, 0, side.type};
    range_.info = side.path;
    if (side.type != MemType::FILE && side.type != MemType::BLOCK) return;
    std::error_code ignored;
    if (side.path.empty() || std::filesystem::is_directory(side.path, ignored)) {
      const char* temporary = std::getenv("TMPDIR");
      std::string name = !side.path.empty() ? side.path : temporary != nullptr ? temporary : "/tmp";
      name += "/nixl-info-XXXXXX";
      file_ = ::mkostemp(name.data(), O_CLOEXEC);
      if (file_ >= 0) ::unlink(name.c_str());
      if (file_ >= 0 && ::ftruncate(file_, static_cast<off_t>(bytes_)) != 0)
        throw Error(Errc::BACKEND, "make a file in \"" + side.path + "\": " + std::strerror(errno));
    } else if (!side.only_read) {
      throw Error(Errc::NOT_ALLOWED, "\"" + side.path +
                                         "\" would be overwritten; name a folder, in which a file "
                                         "is made and removed again, or --read");
    } else {
      file_ = ::open(side.path.c_str(), O_RDONLY | O_CLOEXEC);
    }
    if (file_ < 0)
      throw Error(Errc::NOT_FOUND, "open \"" + side.path + "\": " + std::strerror(errno));
    range_.device = static_cast<uint64_t>(file_);
  }

  uint64_t bytes_;
  std::unique_ptr<char[]> host_;
  std::unique_ptr<bench::Gpu> gpu_;
  int file_ = -1;
  MemDescriptor range_;
};

// An agent with every backend that there is, and one range registered with each that takes it.
struct Party {
  explicit Party(const char* name) : agent(name, withoutBackends()) {
    for (const std::string& backend : pluginNames()) {
      try {
        agent.createBackend(backend);
      } catch (const Error& error) {
        refused[backend] = error.what();
      }
    }
  }

  void add(const Buffer& buffer) {
    for (const std::string& backend : agent.backends()) {
      const BackendInfo info = agent.backendInfo(backend);
      const MemType type = buffer.range().type;
      if (std::find(info.mems.begin(), info.mems.end(), type) == info.mems.end()) {
        refused[backend] = "does not take " + std::string(memTypeName(type));
        continue;
      }
      try {
        (void)agent.registerMemory({buffer.range()}, {backend});
      } catch (const Error& error) {
        refused[backend] = error.what();
      }
    }
  }

  static AgentConfig withoutBackends() {
    AgentConfig config;
    config.backends.clear();
    return config;
  }

  Agent agent;
  std::map<std::string, std::string> refused;  // backend -> why it cannot be used
};

// What the other process tells: its metadata, its range, and which backends refused that.
struct Hello {
  std::string metadata, trouble;
  std::vector<MemDescriptor> parts;
  std::map<std::string, std::string> refused;
};

void writeText(int fd, const std::string& text) {
  const auto size = static_cast<uint64_t>(text.size());
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  bytes += text;
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t put = ::write(fd, bytes.data() + at, bytes.size() - at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) ::_exit(tools::kFailed);
    at += static_cast<size_t>(put);
  }
}

bool readBytes(int fd, char* to, size_t size, std::chrono::steady_clock::time_point deadline) {
  for (size_t at = 0; at < size;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                          deadline - std::chrono::steady_clock::now())
                          .count();
    pollfd waiting{fd, POLLIN, 0};
    if (left <= 0 || ::poll(&waiting, 1, static_cast<int>(left)) <= 0) return false;
    const ssize_t got = ::read(fd, to + at, size - at);
    if (got <= 0) return false;
    at += static_cast<size_t>(got);
  }
  return true;
}

std::string readText(int fd, std::chrono::steady_clock::time_point deadline) {
  uint64_t size = 0;
  if (!readBytes(fd, reinterpret_cast<char*>(&size), sizeof size, deadline) || size > kMostBytes)
    throw Error(Errc::TIMEOUT, "the process of the other agent ended, or did not answer within " +
                                   std::to_string(kPeerLimit.count()) + " s");
  std::string text(size, '\0');
  if (!readBytes(fd, text.data(), size, deadline))
    throw Error(Errc::TIMEOUT, "the process of the other agent stopped in the middle of a word");
  return text;
}

// The other agent's process, made before this one has threads or opened anything.
class Peer {
 public:
  Peer(const Side& side, uint64_t bytes, unsigned pieces) {
    int to_child[2], to_parent[2];
    if (::pipe2(to_child, O_CLOEXEC) != 0 || ::pipe2(to_parent, O_CLOEXEC) != 0)
      throw Error(Errc::BACKEND, std::string("make a pipe: ") + std::strerror(errno));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(to_child[1]);
      ::close(to_parent[0]);
      serve(side, bytes, pieces, to_child[0], to_parent[1]);
    }
    ::close(to_child[0]);
    ::close(to_parent[1]);
    hold_ = to_child[1];
    answer_ = to_parent[0];
    if (pid_ < 0)
      throw Error(Errc::BACKEND, std::string("start a process for the other agent: ") +
                                     std::strerror(errno));
  }
  ~Peer() {
    ::close(hold_);  // which it takes for the end
    ::close(answer_);
    for (int i = 0; i < 200; ++i) {
      if (::waitpid(pid_, nullptr, WNOHANG) != 0) return;
      ::usleep(10'000);
    }
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  Hello hello() {
    const auto deadline = std::chrono::steady_clock::now() + kPeerLimit;
    Hello hello;
    hello.trouble = readText(answer_, deadline);
    if (!hello.trouble.empty()) return hello;
    hello.metadata = readText(answer_, deadline);
    const nlohmann::json parts = nlohmann::json::parse(readText(answer_, deadline));
    for (const auto& part : parts)
      hello.parts.push_back(
          {part[0], part[1], part[2], static_cast<MemType>(part[3].get<unsigned>())});
    hello.refused = nlohmann::json::parse(readText(answer_, deadline));
    return hello;
  }

 private:
  [[noreturn]] static void serve(const Side& side, uint64_t bytes, unsigned pieces, int hold,
                                 int answer) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      const Buffer buffer(side, bytes);
      Party party("nixl-info B");
      party.add(buffer);
      const std::string metadata = party.agent.metadata();
      writeText(answer, "");
      writeText(answer, metadata);
      nlohmann::json parts = nlohmann::json::array();
      for (const MemDescriptor& part : buffer.parts(pieces))
        parts.push_back({part.address, part.length, part.device, static_cast<unsigned>(part.type)});
      writeText(answer, parts.dump());
      writeText(answer, nlohmann::json(party.refused)
                            .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
      char nothing;
      while (::read(hold, &nothing, 1) < 0 && errno == EINTR) {
      }
    } catch (const std::exception& error) {
      writeText(answer, error.what());
    }
    ::_exit(tools::kDone);
  }

  pid_t pid_ = -1;
  int hold_ = -1, answer_ = -1;
};

// What is known of going through one backend.
struct Way {
  std::string backend;
  bool possible = false, taken = false, predicts = false;
  double predicted_us = 0, measured_us = 0;  // 0: not measured
  std::string why;                           // why not, or what the engine goes by
};

struct Plan {
  Agent& agent;
  OpType op;
  std::vector<MemDescriptor> local, remote;
  std::string peer;
};

Way tryWay(const Plan& plan, const std::string& backend) {
  Way way;
  way.backend = backend;
  try {
    TransferOptions options;
    options.backends = {backend};
    const Transfer transfer =
        plan.agent.prepareTransfer(plan.op, plan.local, plan.remote, plan.peer, options);
    try {
      const CostEstimate estimate = plan.agent.estimateCost(transfer);
      way.predicts = estimate.known;
      way.predicted_us = estimate.microseconds;
      way.why = estimate.why;
    } catch (const Error&) {  // not every engine predicts
    }
    for (int i = 0; i < kTries; ++i) {
      const auto start = std::chrono::steady_clock::now();
      (void)plan.agent.postTransfer(transfer);
      if (plan.agent.waitTransfer(transfer, kTryLimit) != XferState::DONE) {
        std::string words;
        (void)plan.agent.transferError(transfer, &words);
        way.why = words.empty() ? "did not end within " + std::to_string(kTryLimit.count()) + " s"
                                : words;
        plan.agent.releaseTransfer(transfer);
        return way;
      }
      const double us =
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
              .count();
      way.measured_us = i == 0 ? us : std::min(way.measured_us, us);
    }
    way.possible = true;
    plan.agent.releaseTransfer(transfer);
  } catch (const Error& error) {
    way.why = error.what();
  }
  return way;
}

std::string speed(double us, uint64_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%.1f us (%.2f GB/s)", us,
                static_cast<double>(bytes) / us / 1e3);
  return text;
}

bool takes(const BackendInfo& info, MemType type) {
  return std::find(info.mems.begin(), info.mems.end(), type) != info.mems.end();
}

// Why a backend cannot do it: what it is not made for comes before what it lacks here. `failure` is
// what trying said.
std::string whyNot(const Side& from, const Side& to, bool two_agents,
                   const std::vector<PluginReport>& plugins, const std::string& backend,
                   const std::string& failure) {
  for (const PluginReport& report : plugins) {
    if (report.state.name != backend || !report.loaded) continue;
    if (two_agents && !report.info.remote) return "moves bytes inside one agent only";
    for (const MemType type : {from.type, to.type})
      if (!takes(report.info, type)) return "does not take " + std::string(memTypeName(type));
    if (!report.state.usable) return report.state.why_unusable;
  }
  return failure;
}

// Hints about this machine that such a transfer would gain from.
std::vector<std::string> hints(const Side& from, const Side& to, bool two_agents,
                               bool two_processes, const std::vector<PluginReport>& plugins) {
  std::vector<std::string> found;
  for (const PluginReport& report : plugins) {
    const bool would_do = takes(report.info, from.type) && takes(report.info, to.type) &&
                          (report.info.remote || !two_agents);
    if (!report.state.usable && (!report.loaded || would_do))
      found.push_back(report.state.name + ": " + report.state.why_unusable);
  }
  const PluginSearch search = pluginSearch();
  for (const PluginState& missing : search.missing)
    found.push_back(missing.name + ": there is no " + missing.path);
  const Machine machine;
  std::vector<Probe> probes;
  const bool gpu = from.type == MemType::VRAM || to.type == MemType::VRAM;
  if (gpu && !hasGpus(machine.files))
    found.push_back(
        "GPU memory is reached through its driver, and this machine has none: install it "
        "(libcuda.so.1 is part of it); in a container, start that with --gpus all");
  if (gpu)
    probes.push_back({"GPUs", [&](Section& out) { probeGpus(machine, out); }});
  if (two_processes) {
    probes.push_back({"permissions", [&](Section& out) { probePermissions(machine, out); }});
    probes.push_back({"memory", [&](Section& out) { probeMemory(machine, out); }});
  }
  for (const Probe& probe : probes) {
    Section section(probe.section);
    probe.look(section);
    for (const Fact& fact : section.facts())
      if (!fact.hint.empty())
        found.push_back(std::string(probe.section) + ", " + fact.name + " (" + fact.value +
                        "): " + fact.hint);
  }
  return found;
}

}  // namespace

int showPath(const Args& args) {
  Side from = parseSide(args.from), to = parseSide(args.to);
  to.only_read = args.read;
  const auto bytes = tools::parseSize(args.size);
  if (!bytes || *bytes == 0 || *bytes > kMostBytes)
    throw Error(Errc::INVALID_PARAM, "--size is \"" + args.size +
                                         "\"; must be a number of bytes up to 4GB, such as 16MB");
  if (args.pieces == 0 || args.pieces > *bytes)
    throw Error(Errc::INVALID_PARAM, "--pieces is " + std::to_string(args.pieces) +
                                         "; must be at least 1, and not more than --size");
  if (isStorage(from.type))
    throw Error(Errc::INVALID_PARAM, "the first side is an agent's own memory, dram or vram; "
                                     "--read turns the direction");
  // Storage is reached by the agent itself; between memories, B is an agent of its own.
  const bool two_agents = !isStorage(to.type) && !args.one_agent;
  const bool two_processes = two_agents && !args.same_process;
  const std::vector<PluginReport> plugins = inspectPlugins();
  std::unique_ptr<Peer> peer;
  if (two_processes) peer = std::make_unique<Peer>(to, *bytes, args.pieces);

  const Buffer ours(from, *bytes);
  Party here("nixl-info A");
  here.add(ours);
  Plan plan{here.agent, args.read ? OpType::READ : OpType::WRITE, ours.parts(args.pieces), {}, ""};
  std::unique_ptr<Buffer> theirs;
  std::unique_ptr<Party> there;
  std::string trouble;
  std::map<std::string, std::string> refused_there;
  try {
    if (two_processes) {
      const Hello hello = peer->hello();
      if (!hello.trouble.empty())
        throw Error(Errc::BACKEND, "the other agent: " + hello.trouble);
      plan.peer = here.agent.loadMetadata(hello.metadata);
      plan.remote = hello.parts;
      refused_there = hello.refused;
    } else {
      theirs = std::make_unique<Buffer>(to, *bytes);
      if (two_agents) there = std::make_unique<Party>("nixl-info B");
      (two_agents ? *there : here).add(*theirs);
      if (two_agents) refused_there = there->refused;
      plan.peer = two_agents ? here.agent.loadMetadata(there->agent.metadata()) : here.agent.name();
      plan.remote = theirs->parts(args.pieces);
    }
  } catch (const Error& error) {
    trouble = error.what();
  }

  // Who refuses the other side cannot be gone through either.
  for (const auto& [backend, why] : refused_there) here.refused.emplace(backend, why);

  std::vector<Way> ways;
  std::string explained;
  if (trouble.empty()) {
    std::string chosen;
    try {
      const Transfer transfer =
          here.agent.prepareTransfer(plan.op, plan.local, plan.remote, plan.peer,
                                     TransferOptions());
      chosen = here.agent.transferBackend(transfer);
      explained = here.agent.explain(transfer);
      here.agent.releaseTransfer(transfer);
    } catch (const Error& error) {
      trouble = error.what();
    }
    for (const std::string& backend : here.agent.backends()) {
      const auto refused = here.refused.find(backend);
      Way way = refused == here.refused.end() ? tryWay(plan, backend) : Way{};
      way.backend = backend;
      if (!way.possible)
        way.why = whyNot(from, to, two_agents, plugins, backend,
                         refused == here.refused.end() ? way.why : refused->second);
      way.taken = backend == chosen;
      ways.push_back(std::move(way));
    }
  }
  for (const auto& [backend, why] : here.refused)
    if (std::none_of(ways.begin(), ways.end(),
                     [&](const Way& way) { return way.backend == backend; })) {
      Way way;
      way.backend = backend;
      way.why = whyNot(from, to, two_agents, plugins, backend, why);
      ways.push_back(std::move(way));
    }
  std::stable_sort(ways.begin(), ways.end(),
                   [](const Way& a, const Way& b) { return a.taken > b.taken; });
  const std::vector<std::string> advice = hints(from, to, two_agents, two_processes, plugins);
  const bool found = !ways.empty() && ways.front().taken;
  const char* const op = args.read ? "READ" : "WRITE";
  const char* const where = !two_agents     ? "by one agent"
                            : two_processes ? "between two processes of this host"
                                            : "between two agents of one process";

  if (args.json) {
    nlohmann::ordered_json all = {{"operation", op},       {"from", from.text},
                                  {"to", to.text},         {"bytes", *bytes},
                                  {"pieces", args.pieces}, {"where", where},
                                  {"taken", nullptr},      {"paths", nlohmann::json::array()},
                                  {"hints", advice}};
    if (found) all["taken"] = ways.front().backend;
    if (!trouble.empty()) all["problem"] = trouble;
    if (!explained.empty()) all["explained"] = explained;
    for (const Way& way : ways) {
      nlohmann::ordered_json entry = {{"backend", way.backend},
                                      {"taken", way.taken},
                                      {"possible", way.possible},
                                      {"why", way.why}};
      if (way.predicts) entry["predicted_us"] = way.predicted_us;
      if (way.measured_us > 0) entry["measured_us"] = way.measured_us;
      all["paths"].push_back(std::move(entry));
    }
    std::cout << all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    return found ? tools::kDone : tools::kFailed;
  }

  const Terminal terminal;
  terminal.title(std::string(op) + " of " + tools::formatSize(*bytes) + " in " +
                 counted(args.pieces, "piece", "pieces") + ", " + from.text +
                 (args.read ? " from " : " to ") + to.text + ", " + where);
  if (!trouble.empty()) terminal.pair("no path", trouble, kColumn, Colour::BAD);
  for (const Way& way : ways) {
    std::string text = way.backend;
    if (way.measured_us > 0) text += ": " + speed(way.measured_us, *bytes) + " measured";
    if (way.predicts) text += ", " + speed(way.predicted_us, *bytes) + " predicted";
    if (!way.why.empty()) text += (way.possible ? "; " : ": ") + way.why;
    terminal.pair(way.taken ? "taken" : way.possible ? "not taken" : "impossible", text, kColumn,
                  way.taken ? Colour::GOOD : Colour::NONE);
  }
  if (!advice.empty()) {
    std::cout << '\n';
    terminal.title("What could be better here");
    for (const std::string& hint : advice) terminal.paragraph("- " + hint, 2, Colour::HINT);
  }
  return found ? tools::kDone : tools::kFailed;
}

}  // namespace nixl::info
