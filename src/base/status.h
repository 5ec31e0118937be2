// base/status.h - Status and Result<T>: how everything below the faces reports failure.
#pragma once

#include <cassert>
#include <concepts>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "nixl/types.h"

namespace nixl {

// A code and a sentence, or OK. The sentence grows as the Status rises: each layer adds what it was
// doing with within(). OK is one null pointer; a failure owns one allocation. A value: copies do
// not share, and one that was moved from is OK.
class [[nodiscard]] Status {
 public:
  Status() noexcept = default;

  // Errc::OK gives an OK status, and then drops the message.
  Status(Errc code, std::string message);

  Status(const Status& other);
  Status& operator=(const Status& other);
  Status(Status&&) noexcept = default;
  Status& operator=(Status&&) noexcept = default;
  ~Status() = default;

  bool ok() const noexcept { return failure_ == nullptr; }
  Errc code() const noexcept { return failure_ ? failure_->code : Errc::OK; }

  // Empty when OK. Valid until this status is changed or destroyed.
  const std::string& message() const noexcept;

  // The same failure with "what: " before its message; OK stays OK.
  Status within(std::string_view what) &&;
  Status within(std::string_view what) const& { return Status(*this).within(what); }

 private:
  struct Failure {
    Errc code;
    std::string message;
  };
  std::unique_ptr<Failure> failure_;
};

namespace base {

// The system's text for an errno value ("Permission denied"). Unlike strerror safe from any thread.
std::string errnoText(int error);

// The code that users should see for an errno value; BACKEND where none fits better.
Errc errnoCode(int error);

// "what: Permission denied", with errnoCode(error).
Status errnoStatus(std::string_view what, int error);

namespace detail {
[[noreturn]] void valueOfFailure(const Status& status);
}  // namespace detail
}  // namespace base

// A T or the Status that says why there is none. Shaped like std::expected, which our oldest
// compiler lacks. T may be move-only; it may not be a reference or Status.
template <typename T>
class [[nodiscard]] Result {
  static_assert(std::is_object_v<T> && !std::is_same_v<std::remove_cv_t<T>, Status>);

 public:
  // From a T, or from what converts to one (a string literal, a unique_ptr to a derived class).
  template <typename U = T>
    requires(std::convertible_to<U&&, T> && !std::same_as<std::remove_cvref_t<U>, Result> &&
             !std::same_as<std::remove_cvref_t<U>, Status>)
  Result(U&& value) : state_(std::in_place_index<0>, std::forward<U>(value)) {}

  // From a failure. An OK status has no value to give: that is a mistake of the caller.
  Result(Status failure) : state_(std::in_place_index<1>, std::move(failure)) {
    assert(!std::get<1>(state_).ok() && "a Result without a value needs a Status that is not OK");
    if (std::get<1>(state_).ok())
      std::get<1>(state_) = Status(Errc::UNKNOWN, "no value, and no reason was given");
  }
  Result(Errc code, std::string message) : Result(Status(code, std::move(message))) {}

  // NOLINTBEGIN(readability-identifier-naming): std::expected's names
  bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  // Only when has_value(); checked in debug builds.
  T& operator*() & noexcept { return *get(); }
  const T& operator*() const& noexcept { return *get(); }
  T&& operator*() && noexcept { return std::move(*get()); }
  T* operator->() noexcept { return get(); }
  const T* operator->() const noexcept { return get(); }

  // Aborts with the failure's message when there is no value.
  T& value() & { return *checked(); }
  const T& value() const& { return *checked(); }
  T&& value() && { return std::move(*checked()); }

  template <typename U>
  T value_or(U&& fallback) const& {
    return has_value() ? **this : static_cast<T>(std::forward<U>(fallback));
  }
  template <typename U>
  T value_or(U&& fallback) && {
    return has_value() ? std::move(*get()) : static_cast<T>(std::forward<U>(fallback));
  }
  // NOLINTEND(readability-identifier-naming)

  // Only when !has_value().
  Status& error() & { return std::get<1>(state_); }
  const Status& error() const& { return std::get<1>(state_); }
  Status&& error() && { return std::get<1>(std::move(state_)); }

  // OK, or a copy of the failure: for callers that need only know whether it worked.
  Status status() const { return has_value() ? Status() : error(); }

 private:
  T* get() noexcept {
    assert(has_value() && "the Result holds a failure");
    return std::get_if<0>(&state_);
  }
  const T* get() const noexcept { return const_cast<Result*>(this)->get(); }

  T* checked() {
    if (!has_value()) base::detail::valueOfFailure(std::get<1>(state_));
    return std::get_if<0>(&state_);
  }
  const T* checked() const { return const_cast<Result*>(this)->checked(); }

  std::variant<T, Status> state_;
};

}  // namespace nixl

// Leaves the function with the Status of the expression unless it is OK. The function may return a
// Status or any Result.
#define NIXL_TRY(...)                                                          \
  do {                                                                         \
    if (::nixl::Status nixl_try_status = (__VA_ARGS__); !nixl_try_status.ok()) \
      return nixl_try_status;                                                  \
  } while (false)

// NIXL_ASSIGN_OR_RETURN(Fd fd, Fd::open(path, O_RDONLY)): the value of a Result, or out with its
// Status. Two statements: needs braces under an `if`.
#define NIXL_ASSIGN_OR_RETURN(declaration, ...) \
  NIXL_ASSIGN_OR_RETURN_AS(NIXL_STATUS_JOIN(nixl_result_, __LINE__), declaration, __VA_ARGS__)

#define NIXL_ASSIGN_OR_RETURN_AS(result, declaration, ...)   \
  auto result = (__VA_ARGS__);                               \
  if (!result.has_value()) return std::move(result).error(); \
  declaration = *std::move(result)

#define NIXL_STATUS_JOIN(a, b) NIXL_STATUS_JOIN_EXPANDED(a, b)
#define NIXL_STATUS_JOIN_EXPANDED(a, b) a##b
