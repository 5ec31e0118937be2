#include "base/fork.h"

#include <pthread.h>

namespace nixl::base::detail {

std::atomic<uint64_t> fork_generation{0};

uint64_t installForkHandler() {
  static const int installed = pthread_atfork(
      nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(installed);  // fails only when out of memory; then forks go unnoticed
  uint64_t unset = 0;
  fork_generation.compare_exchange_strong(unset, 1, std::memory_order_relaxed);
  return fork_generation.load(std::memory_order_relaxed);
}

}  // namespace nixl::base::detail
