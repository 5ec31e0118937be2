// plugin/error_text.h - what plugins say went wrong, made fit to be shown.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "nixl/plugin_abi.h"

namespace nixl::plugin {

// The Errc of a plugin's negative result. A number that means nothing to us is BACKEND.
Errc errcOf(int32_t code);

// Text that came from a plugin, as valid UTF-8 in one line: whatever else is in it becomes '?'.
std::string readable(std::string_view text);

// Only inside a catch block: the failure of `what`, because something was thrown across the
// boundary, which its rules forbid.
Status thrownStatus(std::string_view what);

// The buffer that one call into a plugin writes its error to. Making one is cheap; only words() and
// status() allocate.
class ErrorText {
 public:
  ErrorText() {
    text_[0] = '\0';
    raw_.struct_size = sizeof raw_;
    raw_.native_code = 0;
    raw_.text = text_;
    raw_.capacity = sizeof text_;
  }
  ErrorText(const ErrorText&) = delete;
  ErrorText& operator=(const ErrorText&) = delete;

  nixl_error* raw() { return &raw_; }

  // What the plugin wrote, whether or not it ended it with a NUL, and its library's own number.
  std::string words() const;

  // The failure `code` of `what`: "what: words".
  Status status(std::string_view what, int32_t code) const;

 private:
  nixl_error raw_;
  char text_[1024];
};

}  // namespace nixl::plugin
