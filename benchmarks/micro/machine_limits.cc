// How fast can this machine move bytes between two processes at all? Measured without our library,
// with the calls that its engines make: a figure of theirs is read against the one here.
//
//   machine_limits [--json] [--seconds N] [--only process_vm|mapped|tcp] [--megabytes N]
//
// process_vm_*  batched calls into another process' private memory, 1,024 pieces each
// mapped_*      copies between two shared mappings: memcpy, and stores past the cache
// tcp_*         a plain sender and receiver over the loopback interface; WRITE is done when the
//               receiver has confirmed the last byte, READ when it is here
//
// Each figure is the median of as many rounds as its share of the time allows (3 at least, 31 at
// most), after one that is not counted, with the bytes checked at the end.
#include <getopt.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "memory.h"
#include "peer.h"
#include "workers.h"

namespace {

using namespace nixl::micro;
using Clock = std::chrono::steady_clock;

constexpr unsigned kMostThreads = 2;
constexpr size_t kBatch = 1024;  // pieces of one process_vm call
constexpr int kMostRounds = 31, kFewestRounds = 3;

struct Settings {
  bool json = false;
  double seconds = 20;
  size_t megabytes = 256;
  std::string only;
};

struct Case {
  std::string name;
  size_t shape;  // index
  unsigned threads;
  std::function<void()> prepare, round;
  std::function<bool()> check;
};

struct Figure {
  double p50 = 0, min = 0;  // seconds
  int rounds = 0;
  std::string error;  // why there is no figure
};

// Everything that the cases work on; made once.
class Bench {
 public:
  explicit Bench(size_t bytes)
      : shapes_{contiguous(bytes), scattered(bytes)},
        peer_(shapes_, bytes, kMostThreads),
        workers_(kMostThreads - 1),
        private_(allocate(Kind::PRIVATE, bytes)),
        from_(allocate(Kind::SHARED, bytes)),
        to_(allocate(Kind::SHARED, bytes)) {}

  std::vector<Case> cases();
  const Shape& shape(const Case& c) const { return shapes_[c.shape]; }

 private:
  void addProcessVm(std::vector<Case>& cases, size_t shape, unsigned threads);
  void addMapped(std::vector<Case>& cases, size_t shape, unsigned threads);
  void addTcp(std::vector<Case>& cases, size_t shape, unsigned threads);
  // Shares `pieces` out in batches: whoever is free takes the next.
  void inBatches(unsigned threads, size_t pieces, size_t batch,
                 const std::function<void(size_t first, size_t count)>& work);

  std::vector<Shape> shapes_;
  Peer peer_;  // before the threads, because it forks
  Workers workers_;
  Buffer private_, from_, to_;
};

void Bench::inBatches(unsigned threads, size_t pieces, size_t batch,
                      const std::function<void(size_t, size_t)>& work) {
  std::atomic<size_t> next{0};
  std::exception_ptr error[kMostThreads];
  workers_.run(threads, [&](unsigned self) {
    try {
      for (size_t first; (first = next.fetch_add(batch)) < pieces;)
        work(first, std::min(batch, pieces - first));
    } catch (...) {
      error[self] = std::current_exception();
    }
  });
  for (const std::exception_ptr& e : error)
    if (e) std::rethrow_exception(e);
}

void Bench::addProcessVm(std::vector<Case>& cases, size_t index, unsigned threads) {
  for (Direction direction : {Direction::WRITE, Direction::READ}) {
    const bool write = direction == Direction::WRITE;
    const Shape& shape = shapes_[index];
    auto mine = pieces(private_.data(), shape.block, write ? shape.source : shape.destination);
    auto theirs = pieces(peer_.buffer(), shape.block, write ? shape.destination : shape.source);
    const size_t batch = shape.block == kSmallPiece ? kBatch : 1;
    auto round = [=, this] {
      inBatches(threads, mine.size(), batch, [&](size_t first, size_t count) {
        const auto call = write ? ::process_vm_writev : ::process_vm_readv;
        const ssize_t n =
            call(peer_.pid(), mine.data() + first, count, theirs.data() + first, count, 0);
        if (n != static_cast<ssize_t>(count * shape.block))
          throw std::system_error(n < 0 ? errno : EIO, std::generic_category());
      });
    };
    if (write)
      cases.push_back({"process_vm_writev", index, threads,
                       [this] {
                         fill(private_);
                         peer_.wipe();
                       },
                       round, [=, this] { return peer_.holds(index); }});
    else
      cases.push_back({"process_vm_readv", index, threads,
                       [this] {
                         wipe(private_);
                         peer_.fill();
                       },
                       round, [=, this] { return holds(private_, shapes_[index]); }});
  }
}

void Bench::addMapped(std::vector<Case>& cases, size_t index, unsigned threads) {
  for (bool streaming : {false, true}) {
    if (streaming && !kHasStreaming) continue;
    using Copy = void (*)(std::byte*, const std::byte*, size_t);
    const Copy copy =
        streaming ? streamingCopy : Copy([](std::byte* to, const std::byte* from, size_t n) {
          std::memcpy(to, from, n);
        });
    cases.push_back({streaming ? "mapped_streaming" : "mapped_memcpy", index, threads,
                     [this] {
                       fill(from_);
                       wipe(to_);
                     },
                     [=, this] {
                       const Shape& shape = shapes_[index];
                       const size_t batch = shape.block == kSmallPiece ? kBatch : 1;
                       inBatches(threads, shape.source.size(), batch,
                                 [&](size_t first, size_t count) {
                                   for (size_t i = first; i < first + count; ++i) {
                                     std::byte* to = &to_[shape.destination[i]];
                                     const std::byte* from = &from_[shape.source[i]];
                                     copy(to, from, shape.block);
                                   }
                                 });
                     },
                     [=, this] { return holds(to_, shapes_[index]); }});
  }
}

void Bench::addTcp(std::vector<Case>& cases, size_t index, unsigned threads) {
  for (Direction direction : {Direction::WRITE, Direction::READ}) {
    const bool write = direction == Direction::WRITE;
    const Shape& shape = shapes_[index];
    auto mine = pieces(private_.data(), shape.block, write ? shape.source : shape.destination);
    auto round = [=, this] {
      inBatches(threads, threads, 1, [&](size_t self, size_t) {  // a connection each
        const Part part = partOf(mine.size(), static_cast<unsigned>(self), threads);
        peer_.move(direction, index, static_cast<unsigned>(self), threads,
                   std::span(mine).subspan(part.first, part.count));
      });
    };
    if (write)
      cases.push_back({"tcp_write", index, threads,
                       [this] {
                         fill(private_);
                         peer_.wipe();
                       },
                       round, [=, this] { return peer_.holds(index); }});
    else
      cases.push_back({"tcp_read", index, threads,
                       [this] {
                         wipe(private_);
                         peer_.fill();
                       },
                       round, [=, this] { return holds(private_, shapes_[index]); }});
  }
}

std::vector<Case> Bench::cases() {
  std::vector<Case> all;
  for (auto add : {&Bench::addProcessVm, &Bench::addMapped, &Bench::addTcp})
    for (size_t shape = 0; shape < shapes_.size(); ++shape)
      for (unsigned threads = 1; threads <= kMostThreads; ++threads)
        (this->*add)(all, shape, threads);
  std::stable_sort(all.begin(), all.end(),
                   [](const Case& a, const Case& b) { return a.name < b.name; });
  return all;
}

Figure measure(const Case& c, double seconds) {
  Figure figure;
  std::vector<double> rounds;
  try {
    c.prepare();
    c.round();
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < kMostRounds; ++i) {
      const Clock::time_point start = Clock::now();
      if (i >= kFewestRounds && std::chrono::duration<double>(start - begin).count() > seconds)
        break;
      c.round();
      rounds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    if (!c.check()) figure.error = "the bytes that arrived are wrong";
  } catch (const std::system_error& e) {
    figure.error = e.code() == std::errc::operation_not_permitted
                       ? std::string("not permitted here (") + e.what() + ")"
                       : e.what();
  }
  if (!figure.error.empty()) return figure;
  std::sort(rounds.begin(), rounds.end());
  figure.rounds = static_cast<int>(rounds.size());
  figure.p50 = rounds[rounds.size() / 2];
  figure.min = rounds.front();
  return figure;
}

int run(const Settings& settings) {
  Bench bench(settings.megabytes << 20);
  std::vector<Case> cases = bench.cases();
  std::erase_if(cases, [&](const Case& c) { return c.name.rfind(settings.only, 0) != 0; });
  size_t left = cases.size();
  const Clock::time_point begin = Clock::now();
  auto share = [&] {  // of the time that is left; half of it goes into filling and checking
    const double gone = std::chrono::duration<double>(Clock::now() - begin).count();
    return (settings.seconds - gone) / static_cast<double>(left--) / 2;
  };
  nlohmann::ordered_json limits = nlohmann::ordered_json::array();
  bool failed = false;

  if (!settings.json)
    std::printf("%-18s %-14s %7s %10s %10s %8s\n", "what", "shape", "threads", "p50 (ms)",
                "min (ms)", "GB/s");
  for (const Case& c : cases) {
    const Shape& shape = bench.shape(c);
    const Figure f = measure(c, share());
    failed = failed || !f.error.empty();
    const double rate = f.p50 > 0 ? static_cast<double>(shape.bytes()) / f.p50 / 1e9 : 0;
    if (settings.json) {
      nlohmann::ordered_json entry = {{"name", c.name},
                                      {"shape", shape.name},
                                      {"threads", c.threads},
                                      {"bytes", shape.bytes()}};
      if (f.error.empty())
        entry.update({{"p50_ms", f.p50 * 1e3},
                      {"min_ms", f.min * 1e3},
                      {"gb_per_s", rate},
                      {"rounds", f.rounds}});
      else
        entry["error"] = f.error;
      limits.push_back(std::move(entry));
    } else {
      std::printf("%-18s %-14s %7u ", c.name.c_str(), shape.name.c_str(), c.threads);
      if (f.error.empty())
        std::printf("%10.2f %10.2f %8.2f\n", f.p50 * 1e3, f.min * 1e3, rate);
      else
        std::printf("%s\n", f.error.c_str());
      std::fflush(stdout);
    }
  }
  if (settings.json)
    std::printf("%s\n", nlohmann::ordered_json{{"cores", ::sysconf(_SC_NPROCESSORS_ONLN)},
                                               {"limits", limits}}
                            .dump(2)
                            .c_str());
  return failed ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  const option options[] = {{"json", no_argument, nullptr, 'j'},
                            {"seconds", required_argument, nullptr, 's'},
                            {"only", required_argument, nullptr, 'o'},
                            {"megabytes", required_argument, nullptr, 'm'},
                            {}};
  for (int c; (c = ::getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    if (c == 'j') settings.json = true;
    if (c == 's') settings.seconds = std::atof(optarg);
    if (c == 'o') settings.only = optarg;
    if (c == 'm') settings.megabytes = std::strtoull(optarg, nullptr, 10) & ~size_t{3};
    if (c == '?' || settings.seconds <= 0 || settings.megabytes == 0 ||
        settings.megabytes > 1 << 20) {
      std::fprintf(stderr,
                   "usage: machine_limits [--json] [--seconds N] [--only process_vm|mapped|tcp]"
                   " [--megabytes N]\n");
      return 2;
    }
  }
  try {
    return run(settings);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "machine_limits: %s\n", e.what());
    return 1;
  }
}
