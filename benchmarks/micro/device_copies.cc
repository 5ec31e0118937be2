// What do copies with a GPU cost through the library, beside the driver's own asynchronous calls?
//
//   device_copies [--json] [--device N] [--rounds N] [--megabytes N]
//
// Each case is run by both sides in turn, with the same pinned buffers: the driver's copies into a
// stream and an event that is asked until it is there, and a transfer that is posted and polled.
// The figure is the median of the rounds; the bytes are compared at the end.
#include <getopt.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/gpu.h"
#include "nixl/agent.h"
#include "nixl/backend.h"

namespace {

using namespace nixl;
using Clock = std::chrono::steady_clock;

struct Settings {
  bool json = false;
  unsigned device = 0;
  int rounds = 31;
  uint64_t megabytes = 256;
};

struct Case {
  const char* way;
  gpu::Way kind;
  uint64_t piece, count;
  uint64_t bytes() const { return piece * count; }
};

struct Figure {
  double driver_us, ours_us;
};

class Bench {
 public:
  explicit Bench(const Settings& settings)
      : settings_(settings), size_(settings.megabytes << 20), driver_(gpu::open()) {
    check(driver_.retain(settings.device));
    gpu::Scope scope(driver_, settings.device);
    check(scope.code());
    void* host = nullptr;
    check(driver_.allocateHost(size_, &host));
    host_ = reinterpret_cast<uint64_t>(host);
    check(driver_.allocate(size_, &first_));
    check(driver_.allocate(size_, &second_));
    check(driver_.makeStream(&stream_));
    check(driver_.makeEvent(&event_));
    AgentConfig config;
    config.backends.clear();
    agent_ = std::make_unique<Agent>("device-copies", config);
    agent_->createBackend("DEVICE");
    agent_->registerMemory({MemDescriptor(first_, size_, settings.device, MemType::VRAM),
                            MemDescriptor(second_, size_, settings.device, MemType::VRAM)});
    agent_->registerMemory({MemDescriptor(host_, size_)});
  }

  std::string name() const { return driver_.facts(settings_.device).name; }
  std::string version() const { return driver_.version(); }

  Figure measure(const Case& c) {
    const std::vector<gpu::Copy> copies = copiesOf(c);
    const Transfer transfer = transferOf(c, copies);
    fill(c);
    std::vector<double> driver, ours;
    for (int round = -1; round < settings_.rounds; ++round) {  // the first one does not count
      const double one = timed([&] { byDriver(c, copies); });
      const double other = timed([&] { byLibrary(transfer); });
      if (round < 0) continue;
      driver.push_back(one);
      ours.push_back(other);
    }
    compare(c, copies);
    agent_->releaseTransfer(transfer);
    return {median(driver), median(ours)};
  }

 private:
  void check(int code) const {
    if (code != 0) throw std::runtime_error(driver_.say(code));
  }
  static double timed(const std::function<void()>& work) {
    const auto begin = Clock::now();
    work();
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  }
  static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  }

  // Pieces one behind another; many are each a piece's length apart, so that nothing joins them.
  std::vector<gpu::Copy> copiesOf(const Case& c) const {
    const uint64_t step = c.count > 1 ? 2 * c.piece : c.piece;
    const uint64_t from = c.kind == gpu::Way::IN ? host_ : first_;
    const uint64_t to = c.kind == gpu::Way::OUT ? host_ : c.kind == gpu::Way::IN ? first_ : second_;
    std::vector<gpu::Copy> copies;
    for (uint64_t i = 0; i < c.count; ++i)
      copies.push_back({to + i * step, from + i * step, c.piece});
    return copies;
  }

  Transfer transferOf(const Case& c, const std::vector<gpu::Copy>& copies) {
    std::vector<MemDescriptor> local, remote;
    auto place = [&](uint64_t address, bool host) {
      return host ? MemDescriptor(address, c.piece)
                  : MemDescriptor(address, c.piece, settings_.device, MemType::VRAM);
    };
    for (const gpu::Copy& copy : copies) {
      local.push_back(place(copy.from, c.kind == gpu::Way::IN));
      remote.push_back(place(copy.to, c.kind == gpu::Way::OUT));
    }
    return agent_->prepareTransfer(OpType::WRITE, local, remote, agent_->name());
  }

  void byDriver(const Case& c, const std::vector<gpu::Copy>& copies) {
    gpu::Scope scope(driver_, settings_.device);
    for (const gpu::Copy& copy : copies) {  // one call each, as programs do it
      uint64_t started = 0;
      check(driver_.copy(stream_, c.kind, &copy, 1, settings_.device, &started));
    }
    check(driver_.record(event_, stream_));
    int code = 0;
    while (driver_.isPending(code = driver_.query(event_))) {
    }
    check(code);
  }

  void byLibrary(Transfer transfer) {
    XferState state = agent_->postTransfer(transfer);
    while (state == XferState::POSTED) state = agent_->checkTransfer(transfer);
    if (state == XferState::DONE) return;
    std::string text;
    agent_->transferError(transfer, &text);
    throw std::runtime_error(text);
  }

  void fill(const Case& c) {
    auto* words = reinterpret_cast<uint64_t*>(host_);
    for (uint64_t i = 0; i < size_ / 8; ++i) words[i] = i * 0x9E3779B97F4A7C15u;
    if (c.kind == gpu::Way::IN) return;
    gpu::Scope scope(driver_, settings_.device);
    check(driver_.copyNow(gpu::Way::IN, {first_, host_, size_}));
    if (c.kind == gpu::Way::OUT) std::memset(reinterpret_cast<void*>(host_), 0, size_);
  }

  void compare(const Case& c, const std::vector<gpu::Copy>& copies) {
    std::vector<uint64_t> target(size_ / 8);
    gpu::Scope scope(driver_, settings_.device);
    if (c.kind == gpu::Way::OUT)
      std::memcpy(target.data(), reinterpret_cast<const void*>(host_), size_);
    else
      check(driver_.copyNow(gpu::Way::OUT, {reinterpret_cast<uint64_t>(target.data()),
                                            c.kind == gpu::Way::IN ? first_ : second_, size_}));
    const uint64_t base = copies[0].to;
    for (const gpu::Copy& copy : copies)
      for (uint64_t at = copy.to - base; at + 8 <= copy.to - base + copy.bytes; at += 8)
        if (target[at / 8] != at / 8 * 0x9E3779B97F4A7C15u)
          throw std::runtime_error("other bytes arrived than were sent");
  }

  const Settings settings_;
  const uint64_t size_;
  gpu::Driver& driver_;
  uint64_t host_ = 0, first_ = 0, second_ = 0;
  gpu::Stream stream_ = nullptr;
  gpu::Event event_ = nullptr;
  std::unique_ptr<Agent> agent_;
};

std::string sizeText(uint64_t bytes) {
  if (bytes >= 1 << 20) return std::to_string(bytes >> 20) + " MB";
  return std::to_string(bytes >> 10) + " KB";
}

void run(const Settings& settings) {
  Bench bench(settings);
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  if (!settings.json) {
    std::printf("%s, %s\n\n", bench.name().c_str(), bench.version().c_str());
    std::printf("Way     | Pieces         | Driver us (GB/s)   | NIXL us (GB/s)     | Ratio\n");
    std::printf("--------|----------------|--------------------|--------------------|------\n");
  }
  const uint64_t largest = settings.megabytes << 20;
  for (const auto& [way, kind] : {std::pair("in", gpu::Way::IN), std::pair("out", gpu::Way::OUT),
                                  std::pair("within", gpu::Way::WITHIN)}) {
    std::vector<Case> cases;
    for (uint64_t piece :
         {uint64_t{4} << 10, uint64_t{64} << 10, uint64_t{1} << 20, uint64_t{16} << 20, largest})
      if (piece <= largest) cases.push_back({way, kind, piece, 1});
    cases.push_back({way, kind, 4 << 10, std::min<uint64_t>(4096, largest / (8 << 10))});
    cases.push_back({way, kind, 256 << 10, std::min<uint64_t>(256, largest / (512 << 10))});
    for (const Case& c : cases) {
      const Figure f = bench.measure(c);
      auto rate = [&](double us) { return static_cast<double>(c.bytes()) / us / 1e3; };
      if (settings.json) {
        all.push_back({{"way", c.way},
                       {"piece", c.piece},
                       {"count", c.count},
                       {"driver_us", f.driver_us},
                       {"nixl_us", f.ours_us},
                       {"ratio", f.ours_us / f.driver_us}});
        continue;
      }
      const std::string pieces = std::to_string(c.count) + " x " + sizeText(c.piece);
      std::printf("%-7s | %-14s | %9.1f (%6.2f) | %9.1f (%6.2f) | %5.2f\n", c.way, pieces.c_str(),
                  f.driver_us, rate(f.driver_us), f.ours_us, rate(f.ours_us),
                  f.ours_us / f.driver_us);
      std::fflush(stdout);
    }
  }
  if (settings.json)
    std::printf("%s\n",
                nlohmann::ordered_json(
                    {{"device", bench.name()}, {"driver", bench.version()}, {"results", all}})
                    .dump(2)
                    .c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  const option options[] = {{"json", no_argument, nullptr, 'j'},
                            {"device", required_argument, nullptr, 'd'},
                            {"rounds", required_argument, nullptr, 'r'},
                            {"megabytes", required_argument, nullptr, 'm'},
                            {}};
  for (int c; (c = ::getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    if (c == 'j')
      settings.json = true;
    else if (c == 'd')
      settings.device = static_cast<unsigned>(std::atoi(optarg));
    else if (c == 'r')
      settings.rounds = std::max(1, std::atoi(optarg));
    else if (c == 'm')
      settings.megabytes = static_cast<uint64_t>(std::max(1, std::atoi(optarg)));
    else
      return 2;
  }
  try {
    run(settings);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "device_copies: %s\n", error.what());
    return 1;
  }
}
