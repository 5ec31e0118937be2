#include "nixlbench/run.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "common/sizes.h"
#include "nixlbench/link.h"
#include "nixlbench/verify.h"

namespace nixl::bench {

using namespace std::chrono_literals;

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// One line on a terminal, rewritten in place and removed at the end; nothing anywhere else.
class ProgressLine {
 public:
  explicit ProgressLine(const Shape& shape) : label_(tools::formatSize(shape.bytes())) {}
  ~ProgressLine() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
  }
  void show(uint64_t done, uint64_t of) {
    if (!terminal_ || Clock::now() - last_ < 100ms) return;
    last_ = Clock::now();
    shown_ = true;
    std::fprintf(stderr, "\r\033[K%s: %llu of %llu transfers", label_.c_str(),
                 static_cast<unsigned long long>(done), static_cast<unsigned long long>(of));
  }

 private:
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  std::string label_;
  Clock::time_point last_ = Clock::now();
  bool shown_ = false;
};

// A transfer that is released whatever happens.
class Prepared {
 public:
  Prepared(Agent& agent, Transfer transfer) : agent_(agent), transfer_(transfer) {}
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;
  ~Prepared() {
    try {
      agent_.releaseTransfer(transfer_);
    } catch (const Error&) {  // the run's own error says more
    }
  }
  operator Transfer() const { return transfer_; }

 private:
  Agent& agent_;
  Transfer transfer_;
};

uint64_t availableMemory() {
  std::ifstream file("/proc/meminfo");
  std::string word;
  uint64_t kilobytes = 0;
  while (file >> word)
    if (word == "MemAvailable:" && file >> kilobytes) return kilobytes * 1024;
  return UINT64_MAX;
}

// Before anything is started: the machine has to have what both sides on it will need.
void requireMemory(const Options& o) {
  const bool both_here = o.peers != Peers::CONNECT;
  requirePlace(o.initiatorPlace());
  if (both_here) requirePlace(o.targetPlace());
  uint64_t needed = 0;
  if (o.initiatorPlace().type == MemType::DRAM) needed += o.largest();
  if (both_here && o.targetPlace().type == MemType::DRAM) needed += o.largest();
  if (const uint64_t available = availableMemory(); needed > available)
    throw Error(Errc::LIMIT, "allocate " + tools::formatSize(needed) + " of host memory: only " +
                                 tools::formatSize(available) + " are available");
}

std::unique_ptr<Agent> makeInitiator(const Options& options) {
  auto agent = makeAgent("nixlbench-" + std::to_string(::getpid()), options);
  if (options.peers != Peers::ONE_PROCESS && !reachesOthers(*agent))
    throw Error(Errc::NOT_SUPPORTED, "backend " + agent->backends().front() +
                                         " reaches no other agent; add --one-process");
  return agent;
}

class Run {
 public:
  explicit Run(const Options& options)
      : options_(options), agent_(makeInitiator(options)), link_(makeLink(options, *agent_)) {
    buffer_ = makeBuffer(options.initiatorPlace(), options.largest());  // after the link's fork
    agent_->registerMemory({{buffer_->address(), buffer_->size(), options.initiatorPlace().device,
                             options.initiatorPlace().type}},
                           chosenBackends(options));
    const Place& there = options.targetPlace();
    const Json answer = link_->hello(*agent_,
                                     {{"do", "hello"},
                                      {"type", static_cast<int>(there.type)},
                                      {"device", there.device},
                                      {"bytes", options.largest()}},
                                     patience(options.largest()));
    remote_address_ = answer.at("address");
  }

  Result measure(const Shape& shape, uint64_t seed);
  void end() { link_->ask({{"do", kFarewell}}, options_.timeout); }

 private:
  using Offsets = std::vector<uint64_t>;

  Transfer prepare(const Offsets& own, const Offsets& theirs, const Shape& shape);
  double transferOnce(Transfer transfer);
  void verify(const Shape& shape, uint64_t seed, const Offsets& own, const Offsets& theirs);

  bool isSource() const { return options_.op == OpType::WRITE; }
  const char* targetRole() const { return isSource() ? "destination" : "source"; }
  // How long the other side may take over so many bytes.
  std::chrono::milliseconds patience(uint64_t bytes) const {
    return options_.timeout + std::chrono::milliseconds(bytes / 100'000);
  }

  const Options& options_;
  std::unique_ptr<Buffer> buffer_;  // outlives the agent that has it registered
  std::unique_ptr<Agent> agent_;
  std::unique_ptr<Link> link_;
  uint64_t remote_address_ = 0;
};

Transfer Run::prepare(const Offsets& own, const Offsets& theirs, const Shape& shape) {
  auto rows = [&](const Offsets& offsets, uint64_t base, uint64_t device) {
    std::vector<uint64_t> numbers;
    numbers.reserve(offsets.size() * 3);
    for (uint64_t offset : offsets)
      numbers.insert(numbers.end(), {base + offset, shape.block, device});
    return numbers;
  };
  const Place &here = options_.initiatorPlace(), &there = options_.targetPlace();
  const auto local = rows(own, buffer_->address(), here.device);
  const auto remote = rows(theirs, remote_address_, there.device);
  TransferOptions how;
  how.backends = chosenBackends(options_);
  how.timeout = options_.timeout;
  return agent_->prepareTransfer(options_.op, {here.type, local.data(), shape.count, 3},
                                 {there.type, remote.data(), shape.count, 3}, link_->peer(), how);
}

// The timed part, and nothing else: post, then poll until done. Microseconds.
double Run::transferOnce(Transfer transfer) {
  const auto limit = options_.timeout + 5s;  // the library's own deadline comes first
  const Clock::time_point start = Clock::now();
  XferState state = agent_->postTransfer(transfer);
  for (unsigned polls = 1; state == XferState::POSTED; ++polls) {
    if (options_.poll.count() != 0) std::this_thread::sleep_for(options_.poll);
    state = agent_->checkTransfer(transfer);
    if ((polls % 256 == 0 || options_.poll.count() != 0) && Clock::now() - start > limit)
      throw Error(Errc::TIMEOUT, "a transfer was still in flight after its deadline");
  }
  const double elapsed = seconds(Clock::now() - start) * 1e6;
  if (state == XferState::DONE) return elapsed;
  std::string text;
  const Errc code = agent_->transferError(transfer, &text);
  throw Error(code, text);
}

void Run::verify(const Shape& shape, uint64_t seed, const Offsets& own, const Offsets& theirs) {
  const Json answer = link_->ask({{"do", "inspect"},
                                  {"block", shape.block},
                                  {"count", shape.count},
                                  {"scattered", shape.scattered},
                                  {"role", targetRole()},
                                  {"seed", seed}},
                                 patience(shape.bytes()));
  const Inspection here = inspect(*buffer_, shape.block, own, isSource() ? own : theirs, seed);

  auto refuse = [](const std::string& whose, const Difference& d) {
    char text[120];
    std::snprintf(text, sizeof text, "byte %llu of the %s memory is 0x%02x and should be 0x%02x",
                  static_cast<unsigned long long>(d.offset), whose.c_str(), d.found, d.expected);
    throw Error(Errc::MISMATCH, text);
  };
  if (answer.contains("offset"))
    refuse("target's", {answer["offset"], answer["expected"], answer["found"]});
  if (here.difference) refuse("initiator's", *here.difference);
  if (answer.at("checksum") != here.checksum)
    throw Error(Errc::MISMATCH, "both sides have what they expect, but not the same bytes");
}

Result Run::measure(const Shape& shape, uint64_t seed) {
  Result result;
  result.shape = shape;
  result.seed = seed;
  const Offsets own = blockOffsets(shape, Side::INITIATOR, seed);
  const Offsets theirs = blockOffsets(shape, Side::TARGET, seed);
  fill(*buffer_, shape.bytes(), isSource() ? Role::SOURCE : Role::DESTINATION, seed);
  link_->ask({{"do", "fill"}, {"bytes", shape.bytes()}, {"role", targetRole()}, {"seed", seed}},
             patience(shape.bytes()));
  const Prepared transfer(*agent_, prepare(own, theirs, shape));

  {
    ProgressLine line(shape);
    Clock::time_point told = Clock::now();
    uint64_t done = 0;
    auto between = [&] {
      line.show(++done, options_.warmup + options_.iterations);
      if (Clock::now() - told < 5s) return;
      told = Clock::now();
      link_->keepAlive();
    };
    for (uint64_t i = 0; i < options_.warmup; ++i) {
      transferOnce(transfer);
      between();
    }

    std::vector<double> latencies;
    latencies.reserve(options_.iterations);
    const double target_before = link_->ask({{"do", "begin"}}, options_.timeout).at("cpu_seconds");
    const double before = cpuSeconds();
    const Clock::time_point start = Clock::now();
    for (uint64_t i = 0; i < options_.iterations; ++i) {
      latencies.push_back(transferOnce(transfer));
      between();
    }
    const double wall = seconds(Clock::now() - start);
    result.cpu_percent = 100 * (cpuSeconds() - before) / wall;
    const double target_after = link_->ask({{"do", "end"}}, options_.timeout).at("cpu_seconds");
    if (options_.peers != Peers::ONE_PROCESS && wall > 0.01)  // else its answers are all it did
      result.target_cpu_percent = 100 * (target_after - target_before) / wall;
    result.latency = summarize(std::move(latencies));
  }

  result.backend = agent_->transferBackend(transfer);
  result.explanation = agent_->explain(transfer);
  if (options_.verify) {
    verify(shape, seed, own, theirs);
    result.verified = shape.bytes();
  }
  return result;
}

}  // namespace

double Result::gigabytesPerSecond() const {
  return static_cast<double>(shape.bytes()) / latency.mean / 1e3;
}

void runBenchmark(const Options& options, const std::function<void(const Result&)>& report) {
  requireMemory(options);
  Run run(options);
  uint64_t seed = options.seed;
  for (const Shape& shape : options.shapes) {
    try {
      report(run.measure(shape, seed++));  // another seed: what an earlier shape left is noticed
    } catch (const Error& e) {
      throw Error(e.code(), std::string(options.op == OpType::WRITE ? "WRITE" : "READ") + " of " +
                                tools::formatSize(shape.bytes()) + ": " + e.what());
    }
  }
  run.end();
}

}  // namespace nixl::bench
