// metadata/quiet_thread.h - starts a thread that takes none of the user's signals.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <system_error>
#include <thread>
#include <utility>

#include "base/status.h"

namespace nixl::metadata {

// `name`: at most 15 characters, for top and debuggers.
template <typename Function>
Result<std::thread> startQuietThread(const char* name, Function function) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Result<std::thread> thread = [&]() -> Result<std::thread> {
    try {
      return std::thread(std::move(function));
    } catch (const std::system_error& error) {
      return base::errnoStatus(std::string("start thread ") + name, error.code().value());
    }
  }();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (thread.has_value()) pthread_setname_np(thread->native_handle(), name);
  return thread;
}

}  // namespace nixl::metadata
