// metadata/directory_store.h - a store in a directory: for processes of one host, with no service.
#pragma once

#include <memory>
#include <string>

#include "metadata/store.h"

namespace nixl::metadata {

// Made for its owner alone when it is not there: what agents publish is secret. Processes must be
// on one host, because leases end by its clock; containers may share the directory.
Result<std::unique_ptr<Store>> openDirectoryStore(const std::string& path);

// The name of a key's file: letters, digits, '-', '_' and %XX, at most 200 bytes.
std::string fileNameOfKey(std::string_view key);

}  // namespace nixl::metadata
