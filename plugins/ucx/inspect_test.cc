// What tools are told about UCX.
#include "inspect.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace nixl::ucx {
namespace {

TEST(UcxResources, AreReadFromWhatUcxPrints) {
  const std::string text =
      "#\n# UCP context\n#\n#     component 0  :  self\n"
      "#            md 0  :  component 0  self \n"
      "#      resource 0  :  md 0  dev 0  flags -- self/memory\n"
      "#      resource 1  :  md 1  dev 1  flags -- tcp/eth0\n"
      "#      resource 9  :  md 4  dev 3  flags -s rc_mlx5/mlx5_0:1 \n#\n";
  EXPECT_EQ(resourcesIn(text),
            (std::vector<Resource>{{"self", "memory"}, {"tcp", "eth0"}, {"rc_mlx5", "mlx5_0:1"}}));
  EXPECT_TRUE(resourcesIn("").empty());
  EXPECT_TRUE(resourcesIn("# resource 1 without a transport\n").empty());
}

TEST(UcxStartAdvice, NamesWhatTheEnvironmentSets) {
  for (const char* name : {"UCX_TLS", "UCX_NET_DEVICES"}) ::unsetenv(name);
  EXPECT_EQ(startAdvice(), "");
  ::setenv("UCX_TLS", "nonsense", 1);
  EXPECT_NE(startAdvice().find("UCX_TLS=nonsense"), std::string::npos) << startAdvice();
  EXPECT_EQ(startAdvice().find("UCX_NET_DEVICES"), std::string::npos) << startAdvice();
  ::unsetenv("UCX_TLS");
}

}  // namespace
}  // namespace nixl::ucx
