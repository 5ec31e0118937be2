// convert.h - Python's numbers, texts, tables and indices as the library takes them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/types.h"

namespace nixl::python {

// A name or message: str (as UTF-8; what is no UTF-8 comes and goes as surrogates), bytes or
// bytearray. Points into the argument, so it is good for the duration of the call.
struct Text {
  std::string_view view;
  operator std::string_view() const { return view; }  // NOLINT: it is one
  std::string str() const { return std::string(view); }
};

// What counts as true or false in an argument: True, False, None and numbers, no containers.
struct Flag {
  bool value;
  operator bool() const { return value; }  // NOLINT: it is one
};

nanobind::str toStr(std::string_view text);
nanobind::bytes toBytes(std::string_view text);

// An unsigned number of 64 bits. RuntimeError where upstream has it: negative, too large, no
// integer.
uint64_t toNumber(PyObject* number);

// The bytes of a descriptor's meta information: str, bytes or bytearray; else RuntimeError.
std::string toMeta(PyObject* meta);

// A C-contiguous N x 3 or N x 5 array of uint64 or int64, read in place while this lives.
class Table {
 public:
  explicit Table(nanobind::handle array, unsigned columns = 0);  // 0: either; ValueError, TypeError
  ~Table() { PyBuffer_Release(&view_); }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  const uint64_t* data() const { return static_cast<const uint64_t*>(view_.buf); }
  size_t rows() const { return static_cast<size_t>(view_.shape[0]); }
  unsigned columns() const { return static_cast<unsigned>(view_.shape[1]); }
  bool isSigned() const { return signed_; }

 private:
  Py_buffer view_;
  bool signed_ = false;
};

// Positions in a side. A contiguous int32 array is read in place; everything else that counts is
// copied and checked against 32 bits.
class Indices {
 public:
  explicit Indices(nanobind::handle source);
  ~Indices();
  Indices(const Indices&) = delete;
  Indices& operator=(const Indices&) = delete;

  const int32_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  template <typename T>
  void copyFrom(const void* items, size_t count);

  Py_buffer view_{};
  bool viewing_ = false;
  std::vector<int32_t> own_;
  const int32_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nixl::python

template <>
struct nanobind::detail::type_caster<nixl::python::Flag> {
  NB_TYPE_CASTER(nixl::python::Flag, const_name("bool"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept;
  static handle from_cpp(const nixl::python::Flag& flag, rv_policy, cleanup_list*) noexcept {
    return handle(flag.value ? Py_True : Py_False).inc_ref();
  }
};

template <>
struct nanobind::detail::type_caster<nixl::python::Text> {
  NB_TYPE_CASTER(nixl::python::Text, const_name("str | bytes"))

  bool from_python(handle source, uint8_t, cleanup_list* cleanup) noexcept;
  static handle from_cpp(const nixl::python::Text& text, rv_policy, cleanup_list*) noexcept {
    return nixl::python::toBytes(text.view).release();
  }
};
