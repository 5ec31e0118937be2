// base/fork.h - notices that the process has forked.
#pragma once

#include <atomic>
#include <cstdint>

namespace nixl::base {

namespace detail {
extern std::atomic<uint64_t> fork_generation;  // 0 until the handler is installed
uint64_t installForkHandler();
}  // namespace detail

// A number that is another one in a child after fork() than it was in its parent. An object keeps
// it from when it was made, and is somebody else's once it differs. One atomic load after the first
// call. Not noticed: vfork(), and clone() called directly; neither runs fork handlers.
inline uint64_t forkGeneration() {
  uint64_t generation = detail::fork_generation.load(std::memory_order_relaxed);
  return generation != 0 ? generation : detail::installForkHandler();
}

}  // namespace nixl::base
