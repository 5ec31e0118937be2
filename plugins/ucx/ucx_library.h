// plugins/ucx/ucx_library.h - finds libucp at run time and opens it, once per process.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ucp_abi.h"

namespace nixl::ucx {

struct Version {
  unsigned major = 0, minor = 0, release = 0;
  auto operator<=>(const Version&) const = default;
  std::string text() const;
};

// A libucp that lies on this machine. Found by looking at files; nothing of it has run.
struct Candidate {
  std::string path;
  Version version;     // 0.0.0: the file does not say
  bool rdma = false;   // has a module for RDMA devices
  bool operator==(const Candidate&) const = default;
};

// What choosing depends on, so that tests can say it.
struct SearchPlace {
  std::string option;                      // option ucx_path
  std::string environment;                 // NIXL_UCX_PATH
  std::vector<std::string> mapped;         // libucp files that are mapped in this process
  std::vector<std::string> package_roots;  // folders that may hold libucx/lib
  std::vector<std::string> system_dirs;
  bool rdma_devices = false;  // this host has some

  static SearchPlace ofThisProcess(std::string_view option);
};

// The libucp to open; throws nixl::BackendFailure with a sentence that says where it looked.
// In order: the option, NIXL_UCX_PATH, one that is mapped already, the best of the system's and the
// `libucx` packages: with RDMA devices in the host one that can use them, else the newest.
Candidate choose(const SearchPlace& place);

// Every libucp that choose() would consider, the named one first where one is named.
std::vector<Candidate> candidates(const SearchPlace& place);

// "" or why no libucp can be opened here. Looks, and opens nothing.
std::string whyNoLibrary();

// Reads the version from the file's bytes; 0.0.0 if it is not to be found.
Version versionOf(const std::string& path);

// libucp, open until the process ends: its threads, hooks and exit handlers forbid unloading it.
class Library {
 public:
  // Opens what choose() says. Every call gets the same object; one that asks for another file than
  // the one that is open throws. Any thread.
  static const Library& open(std::string_view option);

  // The one that is open, also where a parent process opened it before fork(); null: none.
  static const Library* opened();

  const abi::Functions& ucp() const { return functions_; }
  const std::string& path() const { return path_; }
  Version version() const { return version_; }
  bool threadSafe() const { return thread_safe_; }  // built for several threads
  const char* hookMode() const { return hook_mode_; }

 private:
  explicit Library(const std::string& path);

  std::string path_;
  abi::Functions functions_;
  Version version_;
  bool thread_safe_ = false;
  const char* hook_mode_ = "";
};

// What UCX wrote to its log since the last call, at most 256 lines. UCX writes to the program's
// standard output by default: unless the user chose a log (UCX_LOG_FILE, UCX_LOG_LEVEL) its
// warnings and errors are kept here, until an engine passes them on.
struct LogLine {
  abi::LogLevel level;
  std::string text;
};
std::vector<LogLine> takeLogLines();
bool anyLogLines();  // one atomic load

// Collects what UCX writes to its log from the calling thread while it lives, so that it becomes
// part of an error sentence.
class LogCapture {
 public:
  LogCapture();
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  const std::string& text() const { return text_; }  // "; " between messages
  // The message, with what UCX said appended.
  std::string explain(std::string sentence) const;

 private:
  static abi::LogResult handle(const char* file, unsigned line, const char* function,
                               abi::LogLevel level, const void* component, const char* format,
                               va_list arguments);
  friend class Library;
  std::string text_;
  LogCapture* outer_;
};

}  // namespace nixl::ucx
