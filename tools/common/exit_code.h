// common/exit_code.h - how every tool of ours ends.
#pragma once

namespace nixl::tools {

enum ExitCode : int {
  kDone = 0,
  kFailed = 1,  // said on stderr why
  kUsage = 2,   // wrong arguments; nothing was done
};

}  // namespace nixl::tools
