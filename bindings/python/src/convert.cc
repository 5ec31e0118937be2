#include "convert.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "errors.h"

namespace nb = nanobind;

namespace nixl::python {
namespace {

// The letter of a buffer's item in native byte order; 0 when there is more to it than a letter.
char letter(const Py_buffer& view) {
  const char* format = view.format ? view.format : "B";
  if (*format == '@' || *format == '=' ||
      (*format == '<' && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__))
    ++format;
  return format[0] && !format[1] ? format[0] : 0;
}

bool isInteger(char c) { return std::string_view("bhilqn").find(c) != std::string_view::npos; }
bool isUnsigned(char c) { return std::string_view("BHILQN").find(c) != std::string_view::npos; }

// NumPy's booleans are numbers where descriptors are read, yet have no __index__.
bool isNumpyBool(PyObject* o) {
  const std::string_view type = Py_TYPE(o)->tp_name;
  return type == "numpy.bool" || type == "numpy.bool_";
}

[[noreturn]] void noNumber(PyObject* o, const char* why) {
  throw std::runtime_error("cannot use " + std::string(nb::repr(nb::handle(o)).c_str()) + " (" +
                           Py_TYPE(o)->tp_name + ") as a number of a descriptor: " + why);
}

}  // namespace

nb::str toStr(std::string_view text) {
  PyObject* s =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
  if (!s) throw nb::python_error();
  return nb::steal<nb::str>(s);
}

nb::bytes toBytes(std::string_view text) { return nb::bytes(text.data(), text.size()); }

uint64_t toNumber(PyObject* o) {
  nb::object index;
  if (!PyLong_Check(o)) {
    if (isNumpyBool(o)) return PyObject_IsTrue(o) == 1;
    if (!PyIndex_Check(o)) noNumber(o, "not an integer");
    index = nb::steal(PyNumber_Index(o));
    if (!index.is_valid()) {
      PyErr_Clear();
      noNumber(o, "not an integer");
    }
    o = index.ptr();
  }
  const unsigned long long n = PyLong_AsUnsignedLongLong(o);
  if (n == static_cast<unsigned long long>(-1) && PyErr_Occurred()) {
    PyErr_Clear();
    noNumber(o, "must be 0 to 2^64 - 1");
  }
  return n;
}

std::string toMeta(PyObject* o) {
  if (PyBytes_Check(o))
    return std::string(PyBytes_AS_STRING(o), static_cast<size_t>(PyBytes_GET_SIZE(o)));
  if (PyByteArray_Check(o))
    return std::string(PyByteArray_AS_STRING(o), static_cast<size_t>(PyByteArray_GET_SIZE(o)));
  if (PyUnicode_Check(o)) {
    nb::object encoded = nb::steal(PyUnicode_AsEncodedString(o, "utf-8", "surrogateescape"));
    if (!encoded.is_valid()) throw nb::python_error();
    return toMeta(encoded.ptr());
  }
  throw std::runtime_error(std::string("cannot use a ") + Py_TYPE(o)->tp_name +
                           " as meta information: must be str, bytes or bytearray");
}

Table::Table(nb::handle array, unsigned columns) {
  const std::string shape = columns ? "Nx" + std::to_string(columns) : "Nx3 or Nx5";
  const bool text = PyBytes_Check(array.ptr()) || PyByteArray_Check(array.ptr());
  if (text || !PyObject_CheckBuffer(array.ptr()))
    throw nb::type_error(("descs must be a list or a " + shape + " numpy array, not a " +
                          Py_TYPE(array.ptr())->tp_name)
                             .c_str());
  const std::string wanted = "descs must be a " + shape + " numpy array of uint64 or int64";
  if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES)) {
    PyErr_Clear();
    throw nb::value_error(wanted.c_str());
  }
  const char type = letter(view_);
  const char* wrong = nullptr;
  signed_ = isInteger(type);
  if (view_.ndim != 2 ||
      (columns ? view_.shape[1] != columns : view_.shape[1] != 3 && view_.shape[1] != 5) ||
      view_.itemsize != 8 || !(signed_ || isUnsigned(type)))
    wrong = wanted.c_str();
  else if (!PyBuffer_IsContiguous(&view_, 'C'))
    wrong = "descs must be a C-contiguous numpy array";
  if (wrong) {
    PyBuffer_Release(&view_);
    throw nb::value_error(wrong);
  }
}

template <typename T>
void Indices::copyFrom(const void* items, size_t count) {
  const T* from = static_cast<const T*>(items);
  own_.resize(count);
  bool fits = true;
  for (size_t i = 0; i < count; ++i) {
    own_[i] = static_cast<int32_t>(from[i]);
    fits &= static_cast<T>(own_[i]) == from[i] && (own_[i] < 0) == (from[i] < T{});
  }
  if (!fits) {
    size_t bad = 0;
    while (static_cast<T>(own_[bad]) == from[bad] && (own_[bad] < 0) == (from[bad] < T{})) ++bad;
    raise(Errc::INVALID_PARAM, "index " + std::to_string(from[bad]) + " at position " +
                                   std::to_string(bad) + " does not fit into 32 bits");
  }
}

Indices::Indices(nb::handle source) {
  PyObject* o = source.ptr();
  const bool text = PyUnicode_Check(o) || PyBytes_Check(o) || PyByteArray_Check(o);
  nb::object array;  // keeps what numpy made of it
  if (!text && !PyList_Check(o) && !PyTuple_Check(o) && PyObject_CheckBuffer(o)) {
    if (PyObject_GetBuffer(o, &view_, PyBUF_FORMAT | PyBUF_STRIDES)) throw nb::python_error();
    viewing_ = true;
    auto known = [&] {
      const char c = letter(view_);
      return PyBuffer_IsContiguous(&view_, 'C') && (isInteger(c) || isUnsigned(c)) &&
             (view_.itemsize == 4 || view_.itemsize == 8);
    };
    const int dimensions = view_.ndim;
    if (dimensions == 1 && !known()) {
      // Other widths, floats, foreign byte orders, steps: numpy knows how.
      PyBuffer_Release(&view_);
      viewing_ = false;
      array = nb::module_::import_("numpy").attr("ascontiguousarray")(source, "int64");
      if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES))
        throw nb::python_error();
      viewing_ = true;
    }
    auto release = [&] {
      PyBuffer_Release(&view_);
      viewing_ = false;
    };
    if (dimensions > 1) {
      release();
      throw nb::value_error("indices must have one dimension");
    }
    if (dimensions == 0) {
      release();
      throw std::runtime_error("indices must be a list or a one-dimensional array, not a scalar");
    }
    size_ = static_cast<size_t>(view_.shape[0]);
    const bool is_signed = isInteger(letter(view_));
    if (is_signed && view_.itemsize == 4) {
      data_ = static_cast<const int32_t*>(view_.buf);
      return;
    }
    try {
      if (view_.itemsize == 4)
        copyFrom<uint32_t>(view_.buf, size_);
      else if (is_signed)
        copyFrom<int64_t>(view_.buf, size_);
      else
        copyFrom<uint64_t>(view_.buf, size_);
    } catch (...) {
      release();
      throw;
    }
    release();
    data_ = own_.data();
    return;
  }

  nb::object items = text ? nb::object() : nb::steal(PySequence_Fast(o, ""));
  if (!items.is_valid()) {
    PyErr_Clear();
    throw std::runtime_error(std::string("cannot use a ") + Py_TYPE(o)->tp_name +
                             " as indices: must be integers in a list, an array or the like");
  }
  size_ = static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
  own_.resize(size_);
  for (size_t i = 0; i < size_; ++i) {
    // An __index__() of the program's own may shorten the list, and let go of its item.
    if (i >= static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr())))
      throw std::runtime_error("the list of indices changed while it was read");
    const nb::object kept =
        nb::borrow(PySequence_Fast_GET_ITEM(items.ptr(), static_cast<Py_ssize_t>(i)));
    PyObject* const item = kept.ptr();
    const Py_ssize_t n = PyIndex_Check(item) ? PyNumber_AsSsize_t(item, PyExc_OverflowError) : -1;
    const bool broken = !PyIndex_Check(item) || (n == -1 && PyErr_Occurred());
    if (broken || n > std::numeric_limits<int32_t>::max() ||
        n < std::numeric_limits<int32_t>::min()) {
      PyErr_Clear();
      throw std::runtime_error("cannot use " + std::string(nb::repr(nb::handle(item)).c_str()) +
                               " as an index: must be an integer of 32 bits");
    }
    own_[i] = static_cast<int32_t>(n);
  }
  data_ = own_.data();
}

Indices::~Indices() {
  if (viewing_) PyBuffer_Release(&view_);
}

}  // namespace nixl::python

bool nanobind::detail::type_caster<nixl::python::Flag>::from_python(handle source, uint8_t,
                                                                   cleanup_list*) noexcept {
  PyObject* o = source.ptr();
  const PyNumberMethods* number = Py_TYPE(o)->tp_as_number;
  if (o != Py_None && !(number && number->nb_bool)) return false;
  const int truth = PyObject_IsTrue(o);
  if (truth < 0) PyErr_Clear();
  value.value = truth == 1;
  return truth >= 0;
}

bool nanobind::detail::type_caster<nixl::python::Text>::from_python(
    handle source, uint8_t, cleanup_list* cleanup) noexcept {
  PyObject* o = source.ptr();
  if (PyUnicode_Check(o)) {
    Py_ssize_t size = 0;
    if (const char* utf8 = PyUnicode_AsUTF8AndSize(o, &size)) {
      value.view = {utf8, static_cast<size_t>(size)};
      return true;
    }
    PyErr_Clear();
  } else if (!PyBytes_Check(o) && !PyByteArray_Check(o)) {
    return false;
  }
  if (!PyBytes_Check(o)) {  // a copy, which lives until the call ends
    if (!cleanup) return false;
    o = PyUnicode_Check(o) ? PyUnicode_AsEncodedString(o, "utf-8", "surrogateescape")
                           : PyBytes_FromObject(o);
    if (!o) {
      PyErr_Clear();
      return false;
    }
    cleanup->append(o);
  }
  value.view = {PyBytes_AS_STRING(o), static_cast<size_t>(PyBytes_GET_SIZE(o))};
  return true;
}
