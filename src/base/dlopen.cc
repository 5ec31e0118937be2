#include "base/dlopen.h"

#include <dlfcn.h>

#include <utility>

namespace nixl::base {

namespace {

// The loader keeps its last error per thread, and gives it once.
std::string loaderError() {
  const char* text = dlerror();
  return text ? text : "the dynamic loader gave no reason";
}

}  // namespace

Result<SharedLibrary> SharedLibrary::open(const std::string& path, Flags flags) {
  // dlopen("") gives the program itself, which nobody means who has read a path from somewhere.
  if (path.empty()) return {Errc::INVALID_PARAM, "open library: the path is empty"};

  int mode = (flags.now ? RTLD_NOW : RTLD_LAZY) | (flags.global ? RTLD_GLOBAL : RTLD_LOCAL);
  if (flags.nodelete) mode |= RTLD_NODELETE;
  if (flags.noload) mode |= RTLD_NOLOAD;

  dlerror();
  void* handle = dlopen(path.c_str(), mode);
  if (!handle && flags.noload)  // says nothing where the library is merely not loaded
    return {Errc::NOT_FOUND, "open library \"" + path + "\": not loaded in this process"};
  if (!handle) return {Errc::NOT_FOUND, "open library \"" + path + "\": " + loaderError()};
  return SharedLibrary(handle, path, flags.nodelete);
}

SharedLibrary::SharedLibrary(void* handle, std::string path, bool keep) noexcept
    : handle_(handle), path_(std::move(path)), keep_(keep) {}

SharedLibrary::SharedLibrary(SharedLibrary&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)),
      path_(std::move(other.path_)),
      keep_(other.keep_) {}

SharedLibrary& SharedLibrary::operator=(SharedLibrary&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(path_, other.path_);
  std::swap(keep_, other.keep_);
  return *this;
}

SharedLibrary::~SharedLibrary() {
  if (handle_ && !keep_) dlclose(handle_);
}

Result<void*> SharedLibrary::symbol(const std::string& name) const {
  dlerror();
  void* address = dlsym(handle_, name.c_str());
  // A symbol may be null by right; only the loader's error tells, and a null is of no use to us.
  if (!address)
    return {Errc::NOT_FOUND, "find \"" + name + "\" in \"" + path_ + "\": " + loaderError()};
  return address;
}

}  // namespace nixl::base
