#include "metadata/store.h"

#include "metadata/directory_store.h"
#include "metadata/memory_store.h"

namespace nixl::metadata {

namespace {

struct Kind {
  std::string_view scheme;
  Result<std::unique_ptr<Store>> (*open)(const std::string& rest);
};

constexpr Kind kKinds[] = {
    {"memory:", openMemoryStore},
    {"dir:", openDirectoryStore},
};

}  // namespace

Result<std::unique_ptr<Store>> openStore(std::string_view uri) {
  for (const Kind& kind : kKinds) {
    if (!uri.starts_with(kind.scheme)) continue;
    auto store = kind.open(std::string(uri.substr(kind.scheme.size())));
    if (!store.has_value())
      return std::move(store).error().within("open store \"" + std::string(uri) + "\"");
    return store;
  }
  return {Errc::INVALID_PARAM, "open store \"" + std::string(uri) +
                                   "\": no such kind of store; use memory:NAME or dir:PATH"};
}

}  // namespace nixl::metadata
