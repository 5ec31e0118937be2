// What the UCX engine is given as text and as bytes: its options, and a peer's connection bytes.
#include <map>
#include <string>

#include "connection_info.h"
#include "fuzz.h"
#include "nixl/backend.h"
#include "options.h"

namespace {

using namespace nixl;
using namespace nixl::ucx;
using fuzz::Input;
using fuzz::require;

constexpr const char* kNames[] = {
    "num_workers", "num_threads", "split_batch_size", "ucx_error_handling_mode",
    "ucx_num_device_channels", "ucx_ep_close_force", "engine_config", "ucx_path", "UCX_TLS",
};

// Pairs of a name (a number for a known one, 0x80 for a text) and a value.
void tryOptions(Input& in) {
  std::map<std::string, std::string> given;
  while (!in.empty() && given.size() < 20) {
    const uint8_t which = in.byte();
    const std::string name(which & 0x80 ? in.text()
                                        : std::string_view(kNames[which % std::size(kNames)]));
    given[name] = in.text();
  }
  given.erase("device_list");  // depends on this machine's devices: see below
  try {
    const Options options = parseOptions(given);
    require(options.workers >= 1 && options.workers <= 256, "a number of workers");
    require(options.threads <= 255 && options.device_channels <= 1024, "a number out of its range");
    require(options.threads == 0 || options.workers > options.threads, "threads without a worker");
    require(options.split_batch_size >= 1, "batches of nothing");
    for (const auto& settings : {options.forced, options.wished})
      for (const Setting& setting : settings) require(!setting.key.empty(), "a setting of no name");
    defaultSettings(Version{1, 22, 0}, Options{});
  } catch (const BackendFailure& refusal) {
    require(std::string(refusal.what()).find("; must be ") != std::string::npos,
            "a refusal that does not say what is accepted");
  }
}

void tryDevices(std::string_view list) {
  const std::vector<std::string> rdma = {"mlx5_0", "mlx5_1"}, net = {"eth0", "lo", "eth0:1"};
  try {
    const std::string devices = netDevices(list, rdma, net);
    // What comes out is what UCX takes: it goes in again unchanged.
    require(netDevices(devices, rdma, net) == devices, "a list of devices that changes again");
  } catch (const BackendFailure&) {
  }
}

uint32_t checksum(std::string_view bytes) {  // as connection_info.cc has it
  uint32_t sum = 2166136261u;
  for (const char c : bytes) sum = (sum ^ static_cast<uint8_t>(c)) * 16777619u;
  return sum;
}

void tryConnection(std::string_view bytes) {
  try {
    const ConnectionInfo info = decode(bytes);
    require(!info.address.empty() && info.address.size() <= kMaxAddress, "an impossible address");
    require(info.host.size() + info.address.size() < bytes.size(), "bytes that were not there");
    const ConnectionInfo again = decode(encode(info));
    require(again.version == info.version && again.peer_errors == info.peer_errors &&
                again.host == info.host && again.pid == info.pid && again.address == info.address,
            "what was encoded decodes to something else");
  } catch (const BackendFailure&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  switch (in.byte() % 3) {
    case 0:
      tryOptions(in);
      break;
    case 1:
      tryDevices(in.rest());
      break;
    case 2: {
      std::string bytes(in.rest());
      tryConnection(bytes);
      constexpr size_t kSumAt = 28, kBodyAt = 32;
      if (bytes.size() < kBodyAt) break;
      // With lengths and checksum made right, to get behind them.
      const auto host = static_cast<uint8_t>(bytes[20]) % 70;
      const uint64_t body = bytes.size() - kBodyAt;
      if (body < static_cast<uint64_t>(host)) break;
      const auto put = [&](size_t at, uint64_t value, size_t n) {
        for (size_t i = 0; i < n; ++i) bytes[at + i] = static_cast<char>(value >> (8 * i) & 0xff);
      };
      put(20, static_cast<uint64_t>(host), 2);
      put(24, body - static_cast<uint64_t>(host), 4);
      put(kSumAt, checksum(bytes.substr(0, kSumAt) + bytes.substr(kBodyAt)), 4);
      tryConnection(bytes);
      break;
    }
  }
  return 0;
}
