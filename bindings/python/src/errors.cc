#include "errors.h"

#include <array>
#include <cstring>
#include <utility>

namespace nb = nanobind;

namespace nixl::python {
namespace {

// One exception class a code. `of` names the parent; "" is Exception itself, as programs in the
// field expect of the first twelve.
struct Kind {
  Errc code;
  const char* status;
  const char* name;
  const char* of;
};
constexpr Kind kKinds[] = {
    {Errc::NOT_POSTED, "NIXL_ERR_NOT_POSTED", "nixlNotPostedError", ""},
    {Errc::INVALID_PARAM, "NIXL_ERR_INVALID_PARAM", "nixlInvalidParamError", ""},
    {Errc::BACKEND, "NIXL_ERR_BACKEND", "nixlBackendError", ""},
    {Errc::NOT_FOUND, "NIXL_ERR_NOT_FOUND", "nixlNotFoundError", ""},
    {Errc::MISMATCH, "NIXL_ERR_MISMATCH", "nixlMismatchError", ""},
    {Errc::NOT_ALLOWED, "NIXL_ERR_NOT_ALLOWED", "nixlNotAllowedError", ""},
    {Errc::REPOST_ACTIVE, "NIXL_ERR_REPOST_ACTIVE", "nixlRepostActiveError", ""},
    {Errc::UNKNOWN, "NIXL_ERR_UNKNOWN", "nixlUnknownError", ""},
    {Errc::NOT_SUPPORTED, "NIXL_ERR_NOT_SUPPORTED", "nixlNotSupportedError", ""},
    {Errc::REMOTE_DISCONNECT, "NIXL_ERR_REMOTE_DISCONNECT", "nixlRemoteDisconnectError", ""},
    {Errc::CANCELED, "NIXL_ERR_CANCELED", "nixlCancelledError", ""},
    {Errc::NO_TELEMETRY, "NIXL_ERR_NO_TELEMETRY", "nixlNoTelemetryError", ""},
    // What upstream does not tell apart; whoever catches nixlBackendError gets these too.
    {Errc::TIMEOUT, "NIXL_ERR_TIMEOUT", "nixlTimeoutError", "nixlBackendError"},
    {Errc::STALLED, "NIXL_ERR_STALLED", "nixlStalledError", "nixlBackendError"},
    {Errc::PARTIAL, "NIXL_ERR_PARTIAL", "nixlPartialError", "nixlBackendError"},
    {Errc::NOT_QUIESCED, "NIXL_ERR_NOT_QUIESCED", "nixlNotQuiescedError", "nixlBackendError"},
    {Errc::LIMIT, "NIXL_ERR_LIMIT", "nixlLimitError", "nixlBackendError"},
    {Errc::SHUT_DOWN, "NIXL_ERR_SHUT_DOWN", "nixlShutDownError", "nixlBackendError"},
    {Errc::FORKED, "NIXL_ERR_FORKED", "nixlForkedError", "nixlBackendError"},
};
constexpr int kUnknown = 7;  // its place in kKinds

// Codes run from 1 down to -26. Members and classes live as long as the process.
constexpr int kCodes = 28;
std::array<PyObject*, kCodes> members;
std::array<PyObject*, std::size(kKinds)> classes;

int slot(Errc code) {
  const int place = 1 - static_cast<int>(code);
  return place >= 0 && place < kCodes && members[place] ? place
                                                        : 1 - static_cast<int>(Errc::UNKNOWN);
}

// Sets Python's error indicator.
void setError(Errc code, const char* sentence) {
  int k = kUnknown;
  for (int i = 0; i < static_cast<int>(std::size(kKinds)); ++i)
    if (kKinds[i].code == code) k = i;
  nb::handle cls(classes[k]);
  std::string text = kKinds[k].status;
  if (*sentence) text.append(": ").append(sentence);
  // A name in the sentence may be any bytes.
  auto decoded = [](const char* s, size_t n) {
    return nb::steal(PyUnicode_DecodeUTF8(s, static_cast<Py_ssize_t>(n), "backslashreplace"));
  };
  nb::object error = cls(decoded(text.data(), text.size()));
  error.attr("sentence") = decoded(sentence, std::strlen(sentence));
  PyErr_SetObject(cls.ptr(), error.ptr());
}

}  // namespace

nb::object status(Errc code) { return nb::borrow(members[slot(code)]); }

void raise(Errc code, const std::string& sentence) {
  setError(code, sentence.c_str());
  throw nb::python_error();
}

void addErrors(nb::module_& m) {
  auto statuses = nb::enum_<Errc>(m, "nixl_status_t", nb::is_arithmetic());
  statuses.value("NIXL_IN_PROG", Errc::IN_PROG).value("NIXL_SUCCESS", Errc::OK);
  for (const Kind& kind : kKinds) statuses.value(kind.status, kind.code);
  statuses.export_values();

  members.fill(nullptr);
  auto member = [&](Errc code) {
    members[1 - static_cast<int>(code)] = nb::cast(code).release().ptr();
  };
  member(Errc::IN_PROG);
  member(Errc::OK);
  for (size_t i = 0; i < std::size(kKinds); ++i) {
    const Kind& kind = kKinds[i];
    member(kind.code);
    nb::dict fields;
    fields["code"] = status(kind.code);
    fields["sentence"] = "";
    const std::string name = std::string("nixl._bindings.") + kind.name;
    nb::object parent = *kind.of ? m.attr(kind.of) : nb::borrow(PyExc_Exception);
    if (kind.code == Errc::TIMEOUT)  // as asyncio and sockets call it
      parent = nb::make_tuple(parent, nb::handle(PyExc_TimeoutError));
    nb::object cls = nb::steal(PyErr_NewException(name.c_str(), parent.ptr(), fields.ptr()));
    if (!cls.is_valid()) throw nb::python_error();
    m.attr(kind.name) = cls;
    classes[i] = cls.release().ptr();
  }

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      try {
        setError(e.code(), e.what());
      } catch (nb::python_error& second) {
        second.restore();
      }
    }
  });
}

}  // namespace nixl::python
