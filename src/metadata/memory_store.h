// metadata/memory_store.h - a store within this process: for tests, and for agents that share one.
#pragma once

#include <memory>
#include <string>

#include "metadata/store.h"

namespace nixl::metadata {

// Stores of one name share what they hold, until the last of them is closed.
Result<std::unique_ptr<Store>> openMemoryStore(const std::string& name);

}  // namespace nixl::metadata
