// common/library.h - a vendor's library, opened at run time because it may not be there.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

namespace nixl {

// Never closed: drivers leave threads and handlers behind.
//
// Errors: BackendFailure; NOT_FOUND where there is none, with everything that was tried.
class Library {
 public:
  // `chosen` is what the user says, a file or a folder that holds `file_name`, and `variable` where
  // he says it. When it is empty: the one that the process has already, the system's, and then
  // those in `places`.
  static Library open(const std::string& file_name, const std::string& chosen,
                      const std::string& variable, const std::vector<std::string>& places);

  const std::string& path() const { return path_; }  // as it was opened
  void* symbol(const char* name) const;              // null: it has none of that name

  // Sets `function`, or throws with the name.
  template <typename Function>
  void bind(const char* name, Function& function) const {
    function = reinterpret_cast<std::remove_reference_t<Function>>(required(name));
  }

 private:
  Library(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  void* required(const char* name) const;

  void* handle_;
  std::string path_;
};

}  // namespace nixl
