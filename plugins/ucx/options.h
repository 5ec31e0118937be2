// plugins/ucx/options.h - the options of the engine, checked, and what they mean to UCX.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ucx_library.h"

namespace nixl::ucx {

struct Setting {  // a UCX option, without the prefix UCX_
  std::string key, value;
  bool operator==(const Setting&) const = default;
};

struct Options {
  std::string library;  // ucx_path; empty: search
  bool peer_errors = true;
  bool force_close = false;
  unsigned workers = 1;
  unsigned threads = 0;
  uint64_t split_batch_size = 1024;  // pieces
  unsigned device_channels = 4;
  std::vector<Setting> forced;    // win over UCX_* of the environment
  std::vector<Setting> wished;    // engine_config: the environment wins; unknown keys are ignored
  std::vector<std::string> unknown;  // options that mean nothing to us
};

// Throws nixl::BackendFailure (BACKEND) with a sentence for a value that cannot be used.
Options parseOptions(const std::map<std::string, std::string>& given);

// The UCX options that we set where neither the user nor the environment did.
std::vector<Setting> defaultSettings(Version version, const Options& options);

// "mlx5_0, lo" -> "mlx5_0:1,lo": RDMA devices need a port, network interfaces have none. `rdma` and
// `net` are the devices of this host. Throws for names that it does not have.
std::string netDevices(std::string_view list, const std::vector<std::string>& rdma,
                       const std::vector<std::string>& net);

}  // namespace nixl::ucx
