// nixlbench/process_link.h - the link to a target in a process of its own, which it starts and
// ends.
#pragma once

#include <sys/types.h>

#include "nixlbench/link.h"

namespace nixl::bench {

class ProcessLink final : public Link {
 public:
  // Starts this program again as the target.
  explicit ProcessLink(const Options& options);
  // Waits until the process has ended; kills it when it takes longer than five seconds.
  ~ProcessLink() override;

  void keepAlive() override;

 private:
  Json exchange(const Json& request, std::chrono::milliseconds patience) override;
  std::string reap(std::chrono::milliseconds patience);  // how it ended

  int fd_ = -1;
  pid_t pid_ = -1;  // -1: reaped
};

}  // namespace nixl::bench
