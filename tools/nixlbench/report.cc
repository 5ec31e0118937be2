#include "nixlbench/report.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "common/sizes.h"
#include "nixl/agent.h"

namespace nixl::bench {

namespace {

__attribute__((format(printf, 1, 2))) std::string print(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return text;
}

const char* opName(OpType op) { return op == OpType::WRITE ? "WRITE" : "READ"; }
const char* deviceName(MemType type) { return type == MemType::VRAM ? "gpu" : "cpu"; }

const char* peersName(Peers peers) {
  return peers == Peers::ONE_PROCESS ? "one process"
         : peers == Peers::CONNECT   ? "two hosts"
                                     : "two processes";
}

// "DRAM -> DRAM (Remote)", "VRAM (GPU 0, Remote) -> DRAM": the remote one is the target's.
std::string memoryTypes(const Options& o) {
  std::string src = describe(o.src), dst = describe(o.dst);
  if (o.peers != Peers::ONE_PROCESS) {
    std::string& target = o.op == OpType::WRITE ? dst : src;
    target = target.back() == ')' ? target.substr(0, target.size() - 1) + ", Remote)"
                                  : target + " (Remote)";
  }
  return src + " -> " + dst;
}

std::string blocks(const Shape& shape) {
  return print("%llu x %s, %s", static_cast<unsigned long long>(shape.count),
               tools::formatSize(shape.block).c_str(), shape.scattered ? "scattered" : "in order");
}

std::string cpu(const Result& r) {
  std::string text = print("%.0f %% of a core", r.cpu_percent);
  if (r.target_cpu_percent) text += print(", target %.0f %%", *r.target_cpu_percent);
  return text;
}

double perSecond(const Result& r) { return 1e6 / r.latency.mean; }

constexpr int kColumns[] = {11, 9, 12, 8, 8};  // characters wide

std::string row(const std::string (&cells)[5]) {
  std::string line;
  for (int i = 0; i < 5; ++i)
    line +=
        (i == 0 ? "" : " | ") + (i == 4 ? cells[i] : print("%-*s", kColumns[i], cells[i].c_str()));
  return line + '\n';
}

}  // namespace

std::string formatTime(double us) {
  if (us < 1000) return print("%.*f us", us < 10 ? 2 : 1, us);
  if (us < 1e6) return print("%.*f ms", us < 10e3 ? 2 : 1, us / 1e3);
  return print("%.2f s", us / 1e6);
}

std::string formatRate(double gigabytes) {
  if (gigabytes >= 10) return print("%.1f GB/s", gigabytes);
  if (gigabytes >= 0.1) return print("%.2f GB/s", gigabytes);
  return print("%.*f MB/s", gigabytes < 0.01 ? 2 : 1, gigabytes * 1e3);
}

std::string textReport(const Options& o, const Result& r) {
  std::string text;
  auto line = [&](const char* name, const std::string& value) {
    text += std::string(name) + ": " + value + '\n';
  };
  line("Transfer size", tools::formatSize(r.shape.bytes(), true));
  line("Iterations", std::to_string(r.latency.count));
  line("Avg bandwidth", formatRate(r.gigabytesPerSecond()));
  line("Min latency", formatTime(r.latency.min));
  line("Max latency", formatTime(r.latency.max));
  line("Std dev", formatTime(r.latency.stddev));
  text += '\n';
  line("Avg latency", formatTime(r.latency.mean));
  line("P50, P95, P99 latency", formatTime(r.latency.p50) + ", " + formatTime(r.latency.p95) +
                                    ", " + formatTime(r.latency.p99));
  line("Operation", std::string(opName(o.op)) + ", " + memoryTypes(o) + ", " + peersName(o.peers));
  if (r.shape.count > 1) line("Blocks", blocks(r.shape));
  line("Backend", r.backend);
  line("CPU", cpu(r));
  line("Data",
       r.verified ? tools::formatSize(*r.verified) + " compared, all equal" : "not verified");
  return text;
}

std::string tableTitle(const Options& o, const Result& first) {
  std::string text = "=== NIXL Benchmark Results ===\n";
  text += "Backend: " + first.backend + '\n';
  text += "Memory Type: " + memoryTypes(o) + '\n';
  text += std::string("Operation: ") + opName(o.op) + '\n';
  if (o.blocks != Options::Blocks::NONE)
    text += "Blocks: " +
            (o.blocks == Options::Blocks::OF_A_SIZE ? tools::formatSize(first.shape.block)
                                                    : std::to_string(first.shape.count)) +
            (first.shape.scattered ? ", scattered\n" : ", in order\n");
  text += '\n';
  text += "Buffer Size | Bandwidth | Latency (μs) | P95 (μs) | P99 (μs)\n";
  for (size_t i = 0; i < 5; ++i)
    text += std::string(static_cast<size_t>(kColumns[i]) + (i == 0 ? 1 : 2), '-') +
            (i == 4 ? "\n" : "|");
  return text;
}

std::string tableRow(const Result& r) {
  return row({tools::formatSize(r.shape.bytes()), formatRate(r.gigabytesPerSecond()),
              print("%.1f", r.latency.mean), print("%.1f", r.latency.p95),
              print("%.1f", r.latency.p99)});
}

std::string tableEnd(const Options& o, const std::vector<Result>& results) {
  std::string text = "\nOperations per second: ";
  const auto fastest = std::max_element(
      results.begin(), results.end(), [](auto& a, auto& b) { return perSecond(a) < perSecond(b); });
  const auto busiest = std::max_element(results.begin(), results.end(), [](auto& a, auto& b) {
    return a.cpu_percent < b.cpu_percent;
  });
  text +=
      print("%.0f at %s\n", perSecond(*fastest), tools::formatSize(fastest->shape.bytes()).c_str());
  text += "CPU Utilization: " + cpu(*busiest) + '\n';
  uint64_t verified = 0;
  for (const Result& r : results) verified += r.verified.value_or(0);
  text += "Consistency: " +
          (o.verify ? tools::formatSize(verified) + " compared, all equal" : "not checked");
  return text + '\n';
}

nlohmann::ordered_json jsonReport(const Options& o, const Result& r, const Machine& m) {
  auto ms = [](double us) { return us / 1e3; };
  nlohmann::ordered_json j = {
      {"size", r.shape.bytes()},
      {"iterations", r.latency.count},
      {"bandwidth_gbps", r.gigabytesPerSecond()},  // 1e9 bytes per second
      {"avg_latency_ms", ms(r.latency.mean)},
      {"min_latency_ms", ms(r.latency.min)},
      {"max_latency_ms", ms(r.latency.max)},
      {"std_dev_ms", ms(r.latency.stddev)},
      {"p50_latency_ms", ms(r.latency.p50)},
      {"p95_latency_ms", ms(r.latency.p95)},
      {"p99_latency_ms", ms(r.latency.p99)},
      {"operations_per_second", perSecond(r)},
      {"op", opName(o.op)},
      {"block_size", r.shape.block},
      {"block_count", r.shape.count},
      {"scattered", r.shape.scattered},
      {"src", {{"type", deviceName(o.src.type)}, {"device", o.src.device}}},
      {"dst", {{"type", deviceName(o.dst.type)}, {"device", o.dst.device}}},
      {"peers", peersName(o.peers)},
      {"backend", r.backend},
      {"path", r.explanation},
      {"warmup", o.warmup},
      {"poll_us", o.poll.count()},
      {"seed", r.seed},
      {"verified", r.verified.has_value()},
      {"bytes_verified", r.verified.value_or(0)},
      {"cpu_percent", r.cpu_percent},
      {"target_cpu_percent", nullptr},
      {"nixl_version", versionText()},
      {"machine",
       {{"cpu", m.cpu},
        {"cores", m.cores},
        {"memory", m.memory},
        {"kernel", m.kernel},
        {"load", m.load}}},
  };
  if (r.target_cpu_percent) j["target_cpu_percent"] = *r.target_cpu_percent;
  return j;
}

}  // namespace nixl::bench
