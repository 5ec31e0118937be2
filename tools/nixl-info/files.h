// nixl-info/files.h - the kernel's files as they tell about the machine. What cannot be read is
// told as such, and never an error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nixl::info {

// /proc, /sys, /dev and /etc, below a folder that is the root of the machine, or of a copy of one.
class Files {
 public:
  explicit Files(std::string root) : root_(std::move(root)) {}

  std::string at(const std::string& path) const { return root_ + path; }
  bool exists(const std::string& path) const;

  // The text without blanks at its ends; nothing where it cannot be read.
  std::optional<std::string> text(const std::string& path) const;
  // The same, and in its place why it cannot be read: "not there", "cannot be read: Permission
  // denied".
  std::string textOrWhy(const std::string& path) const;
  std::optional<int64_t> number(const std::string& path) const;

  // What is in a folder, sorted; nothing where it cannot be read.
  std::vector<std::string> entries(const std::string& path) const;

  // What stands behind "key:" or "key=" at the start of a line of a text.
  static std::optional<std::string> valueOf(const std::string& text, const std::string& key);

  // The limits of this process's cgroups, as text, from its own up to the root: v2's `file`, such
  // as "cpu.max"; `v1` is the path of the older kind, such as "memory/memory.limit_in_bytes".
  std::vector<std::string> cgroupLimits(const std::string& file, const std::string& v1) const;

 private:
  std::string root_;
};

}  // namespace nixl::info
