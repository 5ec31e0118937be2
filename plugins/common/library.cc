#include "common/library.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "nixl/backend.h"

namespace nixl {
namespace {

constexpr int kHow = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;

std::string lastError() {
  const char* text = ::dlerror();
  return text != nullptr ? text : "unknown error";
}

}  // namespace

Library Library::open(const std::string& file_name, const std::string& chosen,
                      const std::string& variable, const std::vector<std::string>& places) {
  if (!chosen.empty()) {
    std::error_code ignored;
    const bool folder = std::filesystem::is_directory(chosen, ignored);
    const std::string path = folder ? chosen + "/" + file_name : chosen;
    if (void* handle = ::dlopen(path.c_str(), kHow)) return {handle, path};
    throw BackendFailure(Errc::NOT_FOUND, variable + " is \"" + chosen + "\": " + lastError());
  }
  if (void* handle = ::dlopen(file_name.c_str(), kHow)) return {handle, file_name};
  const std::string why = lastError();
  for (const std::string& place : places) {
    const std::string path = place + "/" + file_name;
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) continue;
    if (void* handle = ::dlopen(path.c_str(), kHow)) return {handle, path};
  }
  throw BackendFailure(Errc::NOT_FOUND, why);
}

void* Library::symbol(const char* name) const { return ::dlsym(handle_, name); }

void* Library::required(const char* name) const {
  void* found = symbol(name);
  if (found == nullptr)
    throw BackendFailure(Errc::NOT_SUPPORTED, path_ + " has no " + name + "; it is too old");
  return found;
}

}  // namespace nixl
