// base/dlopen.h - libraries that are opened at run time, because they may not be there.
#pragma once

#include <string>

#include "base/status.h"

namespace nixl::base {

// An open shared library. Closes it when destroyed, unless it was opened with nodelete.
class SharedLibrary {
 public:
  struct Flags {
    bool now = true;        // resolve all symbols at once: a library that lacks one fails here
    bool global = false;    // let libraries opened later see its symbols
    bool nodelete = false;  // never unload: for libraries that leave threads or handlers behind
    bool noload = false;    // only if something has loaded it already
  };

  // `path` is a path or a plain name that the system's search finds. NOT_FOUND, with the loader's
  // own words.
  static Result<SharedLibrary> open(const std::string& path, Flags flags);
  static Result<SharedLibrary> open(const std::string& path) { return open(path, Flags{}); }

  SharedLibrary(SharedLibrary&& other) noexcept;
  SharedLibrary& operator=(SharedLibrary&& other) noexcept;
  ~SharedLibrary();

  // The address of a symbol, of this library or of one that it needs.
  Result<void*> symbol(const std::string& name) const;

  // The same as a function: library.function<int(int)>("abs").
  template <typename Signature>
  Result<Signature*> function(const std::string& name) const {
    NIXL_ASSIGN_OR_RETURN(void* address, symbol(name));
    return reinterpret_cast<Signature*>(address);
  }

  // As given to open().
  const std::string& path() const noexcept { return path_; }

 private:
  SharedLibrary(void* handle, std::string path, bool keep) noexcept;

  void* handle_;
  std::string path_;
  bool keep_;  // opened with nodelete
};

}  // namespace nixl::base
