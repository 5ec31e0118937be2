#include "nixlbench/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "common/exit_code.h"
#include "common/sizes.h"
#include "nixl/agent.h"

namespace nixl::bench {

namespace {

constexpr uint64_t kMostIterations = 10'000'000;
constexpr uint64_t kMostBlocks = 4 << 20;
constexpr const char* kDefaultSizes = "4KB,64KB,1MB,16MB,256MB";

// Arguments that do not fit together; becomes an EarlyEnd.
class Misuse : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What CLI11 fills in, still as text where our own rules decide.
struct Raw {
  std::string mode = "p2p", op = "WRITE", output = "text", src_type = "cpu", dst_type = "cpu";
  std::vector<std::string> sizes, block_sizes;
  uint64_t block_count = 0;
  bool scattered = false, one_process = false;
  std::string listen, connect;
  uint64_t poll_us = 0, timeout_s = 60;
  bool verify = false, no_verify = false;
  bool has_warmup = false, has_listen = false;
};

std::vector<uint64_t> sizesOf(const char* option, const std::vector<std::string>& texts) {
  std::vector<uint64_t> sizes;
  for (const std::string& text : texts) {
    const std::optional<uint64_t> bytes = tools::parseSize(text);
    if (!bytes || *bytes == 0)
      throw Misuse(std::string(option) + ": \"" + text + "\" is no size; write 4096, 64KB, 1GB");
    sizes.push_back(*bytes);
  }
  return sizes;
}

uint16_t portOf(const char* option, std::string_view text) {
  uint16_t port = 0;
  auto got = std::from_chars(text.data(), text.data() + text.size(), port);
  if (got.ec != std::errc() || got.ptr != text.data() + text.size() || port == 0)
    throw Misuse(std::string(option) + ": \"" + std::string(text) + "\" is no port; 1 to 65535");
  return port;
}

// "host:5555", "[::1]:5555".
void splitAddress(const std::string& text, Options& o) {
  const size_t colon = text.rfind(':');
  std::string host = text.substr(0, colon == std::string::npos ? 0 : colon);
  if (host.size() > 1 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  if (host.empty()) throw Misuse("--connect: \"" + text + "\" is not HOST:PORT");
  o.host = host;
  o.port = portOf("--connect", std::string_view(text).substr(colon + 1));
}

// One shape for each size and block size.
std::vector<Shape> shapesOf(const Raw& raw) {
  const std::vector<uint64_t> blocks = sizesOf("--block-size", raw.block_sizes);
  std::vector<uint64_t> sizes = sizesOf("--size", raw.sizes);
  const uint64_t count = raw.block_count;
  if (raw.scattered && blocks.empty() && count == 0)
    throw Misuse("--scattered shuffles blocks; add --block-size or --block-count");
  if (!sizes.empty() && !blocks.empty() && count != 0)
    throw Misuse("--size, --block-size and --block-count: give two of them, the third follows");

  std::vector<Shape> shapes;
  if (count != 0 && !blocks.empty()) {
    for (uint64_t block : blocks) {
      if (block > UINT64_MAX / count) throw Misuse("--block-count: the transfer is too large");
      shapes.push_back({block, count, raw.scattered});
    }
    return shapes;
  }
  if (sizes.empty()) sizes = sizesOf("--size", CLI::detail::split(kDefaultSizes, ','));
  auto must_divide = [](uint64_t size, uint64_t by, const std::string& option) {
    if (size % by != 0)
      throw Misuse("--size " + tools::formatSize(size) + " is not a multiple of " + option);
  };
  for (uint64_t block : blocks) {
    for (uint64_t size : sizes) {
      must_divide(size, block, "--block-size " + tools::formatSize(block));
      shapes.push_back({block, size / block, raw.scattered});
    }
  }
  if (!blocks.empty()) return shapes;
  const uint64_t parts = std::max<uint64_t>(count, 1);
  for (uint64_t size : sizes) {
    must_divide(size, parts, "--block-count " + std::to_string(parts));
    shapes.push_back({size / parts, parts, raw.scattered});
  }
  return shapes;
}

// Help of 80 columns: the option's own text on the left, a line or two on the right.
CLI::Option* describe(CLI::Option* option, const char* group, const char* value) {
  return option->option_text(value)->group(group);
}

void addWorkload(CLI::App& app, Raw& raw) {
  constexpr const char* kGroup = "What is moved";
  describe(
      app.add_option("--size", raw.sizes,
                     std::string("bytes per transfer, in units of 1024\n[") + kDefaultSizes + "]")
          ->delimiter(','),
      kGroup, "SIZE,...");
  describe(app.add_option("--op", raw.op, "to the target, or from it [WRITE]")
               ->transform(CLI::IsMember({"WRITE", "READ"}, CLI::ignore_case)),
           kGroup, "WRITE|READ");
  describe(app.add_option("--block-size", raw.block_sizes, "cut each transfer into blocks")
               ->delimiter(','),
           kGroup, "SIZE,...");
  describe(app.add_option("--block-count", raw.block_count,
                          "blocks per transfer, with one of\n--size and --block-size")
               ->check(CLI::Range(uint64_t{1}, kMostBlocks)),
           kGroup, "N");
  describe(app.add_flag("--scattered", raw.scattered,
                        "shuffle the blocks on both sides\n[they are neighbours, in order]"),
           kGroup, " ");
}

void addMemory(CLI::App& app, Options& o, Raw& raw) {
  constexpr const char* kGroup = "Memory";
  auto type = [&](const char* name, std::string& value, const char* help) {
    describe(app.add_option(name, value, help)
                 ->transform(CLI::IsMember({"cpu", "gpu"}, CLI::ignore_case)),
             kGroup, "cpu|gpu");
  };
  type("--src-type", raw.src_type, "where the bytes come from [cpu]");
  type("--dst-type", raw.dst_type, "where they go [cpu]");
  describe(app.add_option("--src-device", o.src.device, "number of the GPU [0]"), kGroup, "N");
  describe(app.add_option("--dst-device", o.dst.device, "number of the GPU [0]"), kGroup, "N");
}

void addMeasurement(CLI::App& app, Options& o, Raw& raw) {
  constexpr const char* kGroup = "Measurement";
  describe(app.add_option("--mode", raw.mode, "one initiator, one target [p2p]")
               ->transform(CLI::IsMember({"p2p"}, CLI::ignore_case)),
           kGroup, "p2p");
  describe(app.add_option("--backend", o.backend,
                          "in any case; transfers use it alone\n"
                          "[the default one, or the better path\nthat the library finds]"),
           kGroup, "NAME");
  describe(app.add_option("--iterations", o.iterations, "timed transfers per size [100]")
               ->check(CLI::Range(uint64_t{1}, kMostIterations)),
           kGroup, "N");
  describe(app.add_option("--warmup", o.warmup, "untimed ones before [a tenth as many]")
               ->check(CLI::Range(uint64_t{0}, kMostIterations)),
           kGroup, "N");
  describe(app.add_option("--poll-us", raw.poll_us, "sleep between polls [0: no pause]")
               ->check(CLI::Range(uint64_t{0}, uint64_t{1'000'000})),
           kGroup, "US");
  describe(app.add_option("--seed", o.seed, "of data and order [1]"), kGroup, "N");
  describe(app.add_option("--timeout", raw.timeout_s,
                          "longest wait for a transfer, or for the\nother side [60]")
               ->check(CLI::Range(uint64_t{1}, uint64_t{86400})),
           kGroup, "S");
  auto* verify =
      describe(app.add_flag("--verify", raw.verify,
                            "compare every byte after the timing\n[this is the default]"),
               kGroup, " ");
  describe(app.add_flag("--no-verify", raw.no_verify, "do not"), kGroup, " ")->excludes(verify);
}

void addPeers(CLI::App& app, Options& o, Raw& raw) {
  constexpr const char* kGroup = "The other side [a second process, started by this one]";
  describe(app.add_flag("--one-process", raw.one_process, "two agents in this process"), kGroup,
           " ");
  describe(
      app.add_option("--listen", raw.listen, "be the target of one run [8888]")->expected(0, 1),
      kGroup, "[PORT]");
  describe(app.add_option("--connect", raw.connect, "where nixlbench --listen runs"), kGroup,
           "HOST:PORT");
  describe(app.add_option("--serve", o.serve_fd), "", "FD");  // hidden: we are the second process
}

void finish(Options& o, const Raw& raw) {
  if ((raw.one_process ? 1 : 0) + (raw.has_listen ? 1 : 0) + (raw.connect.empty() ? 0 : 1) > 1)
    throw Misuse("--one-process, --listen and --connect exclude each other");
  o.op = raw.op == "READ" ? OpType::READ : OpType::WRITE;
  o.src.type = raw.src_type == "gpu" ? MemType::VRAM : MemType::DRAM;
  o.dst.type = raw.dst_type == "gpu" ? MemType::VRAM : MemType::DRAM;
  o.verify = !raw.no_verify;
  o.poll = std::chrono::microseconds(raw.poll_us);
  o.timeout = std::chrono::seconds(raw.timeout_s);
  o.output = raw.output == "json"    ? Output::JSON
             : raw.output == "table" ? Output::TABLE
                                     : Output::TEXT;
  if (!raw.has_warmup) o.warmup = (o.iterations + 9) / 10;

  if (raw.one_process) o.peers = Peers::ONE_PROCESS;
  if (raw.has_listen) {
    o.peers = Peers::LISTEN;
    o.port = raw.listen.empty() ? AgentConfig().listen_port : portOf("--listen", raw.listen);
  }
  if (!raw.connect.empty()) {
    o.peers = Peers::CONNECT;
    splitAddress(raw.connect, o);
  }
  if (o.serve_fd >= 0) o.peers = Peers::SERVE;

  o.shapes = shapesOf(raw);
  if (raw.block_count != 0)
    o.blocks = Options::Blocks::OF_A_COUNT;
  else if (!raw.block_sizes.empty())
    o.blocks = Options::Blocks::OF_A_SIZE;
  for (const Shape& shape : o.shapes)
    if (shape.count > kMostBlocks)
      throw Misuse(std::to_string(shape.count) + " blocks in one transfer; at most " +
                   std::to_string(kMostBlocks));
}

}  // namespace

uint64_t Options::largest() const {
  uint64_t bytes = 0;
  for (const Shape& shape : shapes) bytes = std::max(bytes, shape.bytes());
  return bytes;
}

std::variant<Options, tools::EarlyEnd> parseOptions(std::vector<std::string> args) {
  Options o;
  Raw raw;
  CLI::App app("Measures transfers between two agents, and checks every byte that they moved.",
               "nixlbench");
  app.set_version_flag("--version", std::string("nixlbench ") + versionText());
  addWorkload(app, raw);
  addMemory(app, o, raw);
  addMeasurement(app, o, raw);
  addPeers(app, o, raw);
  describe(app.add_option("--output", raw.output, "[text; a table of several sizes]")
               ->transform(CLI::IsMember({"text", "table", "json"}, CLI::ignore_case)),
           "Output", "text|table|json");

  try {
    std::reverse(args.begin(), args.end());  // as CLI11 wants them
    app.parse(args);
    raw.has_warmup = app.count("--warmup") != 0;
    raw.has_listen = app.count("--listen") != 0;
    finish(o, raw);
  } catch (const CLI::ParseError& e) {
    return tools::earlyEnd(app, e);
  } catch (const Misuse& e) {
    return tools::EarlyEnd{tools::kUsage, "", std::string("nixlbench: ") + e.what() + '\n'};
  }
  return o;
}

}  // namespace nixl::bench
