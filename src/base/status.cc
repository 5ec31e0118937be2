#include "base/status.h"

#include <errno.h>
#include <string.h>

#include <cstdio>
#include <cstdlib>

namespace nixl {

Status::Status(Errc code, std::string message) {
  if (code != Errc::OK) failure_ = std::make_unique<Failure>(Failure{code, std::move(message)});
}

Status::Status(const Status& other)
    : failure_(other.failure_ ? std::make_unique<Failure>(*other.failure_) : nullptr) {}

Status& Status::operator=(const Status& other) {
  if (this != &other)
    failure_ = other.failure_ ? std::make_unique<Failure>(*other.failure_) : nullptr;
  return *this;
}

const std::string& Status::message() const noexcept {
  static const std::string* const empty = new std::string;  // leaked: usable while exiting
  return failure_ ? failure_->message : *empty;
}

Status Status::within(std::string_view what) && {
  if (failure_) {
    std::string& message = failure_->message;
    message.insert(0, message.empty() ? "" : ": ").insert(0, what);
  }
  return std::move(*this);
}

namespace base {

namespace {

// strerror_r is one of two functions, by libc and feature macros; overloads tell which it was.
[[maybe_unused]] const char* textFrom(const char* text, const char*) { return text; }
[[maybe_unused]] const char* textFrom(int failed, const char* buffer) {
  return failed == 0 ? buffer : "";
}

}  // namespace

std::string errnoText(int error) {
  char buffer[256] = "";
  std::string text = textFrom(strerror_r(error, buffer, sizeof(buffer)), buffer);
  return text.empty() ? "error " + std::to_string(error) : text;
}

Errc errnoCode(int error) {
  switch (error) {
    case 0:
      return Errc::OK;
    case EINVAL:
    case ENAMETOOLONG:
    case EFAULT:
      return Errc::INVALID_PARAM;
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ENXIO:
    case ESRCH:
      return Errc::NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
      return Errc::NOT_ALLOWED;
    case ENOSYS:
    case EOPNOTSUPP:
    case EAFNOSUPPORT:
      return Errc::NOT_SUPPORTED;
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ECONNABORTED:
    case ENOTCONN:
    case EHOSTUNREACH:
    case ENETUNREACH:
      return Errc::REMOTE_DISCONNECT;
    case ETIMEDOUT:
      return Errc::TIMEOUT;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
      return Errc::LIMIT;
    default:
      return Errc::BACKEND;
  }
}

Status errnoStatus(std::string_view what, int error) {
  return Status(errnoCode(error), errnoText(error)).within(what);
}

void detail::valueOfFailure(const Status& status) {
  std::fprintf(stderr, "nixl: value() of a Result that holds a failure: %s\n",
               status.message().c_str());
  std::abort();
}

}  // namespace base
}  // namespace nixl
