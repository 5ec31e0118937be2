#include "options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "nixl/backend.h"

namespace nixl::ucx {
namespace {

struct DeviceCase {
  const char* name;
  const char* list;
  std::optional<std::string> devices;
};

class NetDevices : public testing::TestWithParam<DeviceCase> {};

TEST_P(NetDevices, GetTheirPortsOrAreRefused) {
  const auto& c = GetParam();
  const std::vector<std::string> rdma = {"mlx5_0", "mlx5_1"}, net = {"eth0", "eth0:1", "lo"};
  if (c.devices)
    EXPECT_EQ(netDevices(c.list, rdma, net), *c.devices);
  else
    EXPECT_THROW(netDevices(c.list, rdma, net), BackendFailure);
}

INSTANTIATE_TEST_SUITE_P(
    Lists, NetDevices,
    testing::Values(DeviceCase{"Empty", "", ""}, DeviceCase{"Rdma", "mlx5_0", "mlx5_0:1"},
                    DeviceCase{"RdmaWithPort", "mlx5_1:2", "mlx5_1:2"},
                    DeviceCase{"Interface", "lo", "lo"}, DeviceCase{"All", "all", "all"},
                    DeviceCase{"CommaAndBlank", "mlx5_0, mlx5_1", "mlx5_0:1,mlx5_1:1"},
                    DeviceCase{"Comma", "mlx5_0,eth0", "mlx5_0:1,eth0"},
                    DeviceCase{"AliasedInterface", "eth0:1", "eth0:1"},
                    DeviceCase{"Unknown", "mlx5_7", std::nullopt},
                    DeviceCase{"OneUnknown", "lo,nosuch", std::nullopt}),
    [](const auto& info) { return std::string(info.param.name); });

struct OptionCase {
  const char* name;
  std::map<std::string, std::string> given;
  bool good;
};

class OptionValues : public testing::TestWithParam<OptionCase> {};

TEST_P(OptionValues, AreTakenOrRefused) {
  const auto& c = GetParam();
  if (c.good)
    EXPECT_NO_THROW(parseOptions(c.given));
  else
    EXPECT_THROW(parseOptions(c.given), BackendFailure);
}

INSTANTIATE_TEST_SUITE_P(
    Values, OptionValues,
    testing::Values(
        OptionCase{"NoWorkers", {{"num_workers", "0"}}, true},
        OptionCase{"HexWorkers", {{"num_workers", "0x4"}}, true},
        OptionCase{"EmptyNumber", {{"num_workers", ""}}, false},
        OptionCase{"BlankNumber", {{"num_workers", " 1"}}, false},
        OptionCase{"NegativeNumber", {{"num_workers", "-1"}}, false},
        OptionCase{"Exponent", {{"num_workers", "1e1"}}, false},
        OptionCase{"TooManyWorkers", {{"num_workers", "100000"}}, false},
        OptionCase{"NoneMode", {{"ucx_error_handling_mode", "none"}}, true},
        OptionCase{"OtherMode", {{"ucx_error_handling_mode", "PEER"}}, false},
        OptionCase{"SplitNotReadWithoutThreads", {{"split_batch_size", "x"}}, true},
        OptionCase{"SplitRead", {{"num_threads", "2"}, {"split_batch_size", "x"}}, false},
        OptionCase{"ForceClose", {{"ucx_ep_close_force", "YES"}}, true},
        OptionCase{"ForceCloseMaybe", {{"ucx_ep_close_force", "maybe"}}, false},
        OptionCase{"Unknown", {{"colour", "green"}}, true}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Options, HaveDefaults) {
  const Options options = parseOptions({});
  EXPECT_TRUE(options.peer_errors);
  EXPECT_EQ(options.workers, 1u);
  EXPECT_EQ(options.split_batch_size, 1024u);
  EXPECT_TRUE(options.forced.empty());
}

TEST(Options, RaiseTheWorkersAboveTheThreads) {
  EXPECT_EQ(parseOptions({{"num_threads", "3"}}).workers, 4u);
  EXPECT_EQ(parseOptions({{"num_threads", "3"}, {"num_workers", "9"}}).workers, 9u);
}

TEST(Options, PassUcxKeysOn) {
  const Options options = parseOptions(
      {{"UCX_TLS", "tcp"}, {"engine_config", "RNDV_THRESH=8k,nonsense, MAX_RMA_RAILS=1"}});
  EXPECT_EQ(options.forced, (std::vector<Setting>{{"TLS", "tcp"}}));
  EXPECT_EQ(options.wished,
            (std::vector<Setting>{{"RNDV_THRESH", "8k"}, {"MAX_RMA_RAILS", "1"}}));
}

TEST(Options, DefaultSettingsFollowTheVersion) {
  const auto keys = [](Version version) {
    std::vector<std::string> names;
    for (const Setting& setting : defaultSettings(version, {})) names.push_back(setting.key);
    return names;
  };
  const auto has = [&](Version version, const char* key) {
    const auto names = keys(version);
    return std::find(names.begin(), names.end(), key) != names.end();
  };
  EXPECT_TRUE(has({1, 13, 1}, "RNDV_THRESH"));
  EXPECT_FALSE(has({1, 20, 1}, "MAX_HCA_PER_GPU"));
  EXPECT_TRUE(has({1, 21, 0}, "MAX_HCA_PER_GPU"));
  EXPECT_TRUE(has({1, 22, 0}, "RNDV_PIPELINE_ERROR_HANDLING"));
}

}  // namespace
}  // namespace nixl::ucx
