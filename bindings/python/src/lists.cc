#include "lists.h"

#include <algorithm>
#include <new>
#include <stdexcept>

#include "errors.h"
#include "list_bytes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nixl::python {
namespace {

// --- rows from and to Python --------------------------------------------------------------------

// What the three kinds of list have in common, said once: `kMembers` of a tuple, and how one row is
// read, written and compared.
template <typename List>
struct Shape;

template <typename List>
size_t checked(const List& list, size_t i) {
  if (i >= list.size())
    throw nb::index_error(("index " + std::to_string(i) + " is out of range: the list has " +
                           std::to_string(list.size()) + " descriptors")
                              .c_str());
  return i;
}

// Numbers may have an __index__() of the program's own, which can do anything, clear the list too:
// what is looked up comes after they have been read.
template <>
struct Shape<TransferList> {
  static constexpr const char* kName = "nixlXferDList";
  static constexpr Py_ssize_t kMembers = 3;
  static constexpr size_t kIndexed = 3;

  static void resize(TransferList& list, size_t n) {
    if (n > list.numbers.max_size() / 3) throw std::bad_alloc();
    list.numbers.resize(n * 3);
  }
  static void reserve(TransferList& list, size_t n) { list.numbers.reserve(n * 3); }
  static void append(TransferList& list, PyObject* const* members) {
    const uint64_t address = toNumber(members[0]), length = toNumber(members[1]);
    const uint64_t device = toNumber(members[2]);
    list.numbers.insert(list.numbers.end(), {address, length, device});
  }
  static void put(TransferList& list, size_t i, PyObject* const* members) {
    TransferList row;
    append(row, members);
    std::copy_n(row.numbers.begin(), 3, &list.numbers[checked(list, i) * 3]);
  }
  static nb::tuple get(const TransferList& list, size_t i) {
    const uint64_t* row = &list.numbers[i * 3];
    return nb::make_tuple(row[0], row[1], row[2]);
  }
  static void erase(TransferList& list, size_t i) {
    const auto at = list.numbers.begin() + static_cast<std::ptrdiff_t>(i * 3);
    list.numbers.erase(at, at + 3);
  }
  static bool covers(const TransferList& list, size_t i, const uint64_t* range) {
    return std::equal(range, range + 3, &list.numbers[i * 3]);
  }
  static bool equal(const TransferList& a, const TransferList& b) { return a.numbers == b.numbers; }
  static void clear(TransferList& list) { list.numbers.clear(); }
};

template <>
struct Shape<RegistrationList> {
  static constexpr const char* kName = "nixlRegDList";
  static constexpr Py_ssize_t kMembers = 4;

  static void resize(RegistrationList& list, size_t n) {
    list.ranges.resize(n, MemDescriptor(uint64_t{0}, 0, 0, list.type));
  }
  static void reserve(RegistrationList& list, size_t n) { list.ranges.reserve(n); }
  static MemDescriptor read(const RegistrationList& list, PyObject* const* members) {
    const uint64_t address = toNumber(members[0]), length = toNumber(members[1]);
    return {address, length, toNumber(members[2]), list.type, toMeta(members[3])};
  }
  static void append(RegistrationList& list, PyObject* const* members) {
    list.ranges.push_back(read(list, members));
  }
  static void put(RegistrationList& list, size_t i, PyObject* const* members) {
    MemDescriptor range = read(list, members);
    list.ranges[checked(list, i)] = std::move(range);
  }
  static nb::tuple get(const RegistrationList& list, size_t i) {
    const MemDescriptor& range = list.ranges[i];
    return nb::make_tuple(range.address, range.length, range.device, toBytes(range.info));
  }
  static void erase(RegistrationList& list, size_t i) {
    list.ranges.erase(list.ranges.begin() + static_cast<std::ptrdiff_t>(i));
  }
  static bool covers(const RegistrationList& list, size_t i, const uint64_t* range) {
    const MemDescriptor& r = list.ranges[i];
    return r.address == range[0] && r.length == range[1] && r.device == range[2];
  }
  static bool equal(const RegistrationList& a, const RegistrationList& b) {
    return std::equal(a.ranges.begin(), a.ranges.end(), b.ranges.begin(), b.ranges.end(),
                      [](const MemDescriptor& x, const MemDescriptor& y) {
                        return x.address == y.address && x.length == y.length &&
                               x.device == y.device && x.info == y.info;
                      });
  }
  static void clear(RegistrationList& list) { list.ranges.clear(); }
};

template <>
struct Shape<RemoteList> {
  static constexpr const char* kName = "nixlRemoteDList";
  static constexpr Py_ssize_t kMembers = 4;

  static void resize(RemoteList& list, size_t n) { list.rows.resize(n); }
  static void reserve(RemoteList& list, size_t n) { list.rows.reserve(n); }
  static RemoteList::Row read(PyObject* const* members) {
    const uint64_t address = toNumber(members[0]), length = toNumber(members[1]);
    return {address, length, toNumber(members[2]), toMeta(members[3])};
  }
  static void append(RemoteList& list, PyObject* const* members) {
    list.rows.push_back(read(members));
  }
  static void put(RemoteList& list, size_t i, PyObject* const* members) {
    RemoteList::Row row = read(members);
    list.rows[checked(list, i)] = std::move(row);
  }
  static nb::tuple get(const RemoteList& list, size_t i) {
    const RemoteList::Row& row = list.rows[i];
    return nb::make_tuple(row.address, row.length, row.device, toStr(row.agent));
  }
  static void erase(RemoteList& list, size_t i) {
    list.rows.erase(list.rows.begin() + static_cast<std::ptrdiff_t>(i));
  }
  static bool equal(const RemoteList& a, const RemoteList& b) { return a.rows == b.rows; }
  static void clear(RemoteList& list) { list.rows.clear(); }
};

PyObject* const* membersOf(PyObject* tuple) { return &PyTuple_GET_ITEM(tuple, 0); }

template <typename List>
List fromTuples(MemType type, PyObject* tuples) {
  List list;
  list.type = type;
  const Py_ssize_t count = PyList_GET_SIZE(tuples);
  Shape<List>::reserve(list, static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tuples); ++i) {
    // Kept: a number's __index__() may take it off the list.
    const nb::object kept = nb::borrow(PyList_GET_ITEM(tuples, i));
    PyObject* tuple = kept.ptr();
    if (!PyTuple_Check(tuple))
      throw nb::type_error(
          ("descriptor " + std::to_string(i) + " is a " + Py_TYPE(tuple)->tp_name + ", not a tuple")
              .c_str());
    if (PyTuple_GET_SIZE(tuple) != Shape<List>::kMembers)
      throw nb::value_error(("descriptor " + std::to_string(i) + " has " +
                             std::to_string(PyTuple_GET_SIZE(tuple)) + " members, not " +
                             std::to_string(Shape<List>::kMembers))
                                .c_str());
    Shape<List>::append(list, membersOf(tuple));
  }
  return list;
}

TransferList fromTable(MemType type, nb::handle array, TransferList*) {
  const Table table(array, 3);
  return {type, {table.data(), table.data() + table.rows() * 3}};
}

RegistrationList fromTable(MemType type, nb::handle array, RegistrationList*) {
  const Table table(array, 3);
  RegistrationList list{type, {}, {}};
  list.ranges.reserve(table.rows());
  for (size_t i = 0; i < table.rows(); ++i) {
    const uint64_t* row = table.data() + i * 3;
    list.ranges.emplace_back(row[0], row[1], row[2], type);
  }
  return list;
}

// The first members of a tuple, of which there may be more.
template <typename List>
PyObject* const* leadingMembers(nb::tuple tuple) {
  if (PyTuple_GET_SIZE(tuple.ptr()) < Shape<List>::kMembers)
    throw nb::index_error(("tuple index out of range: a descriptor has " +
                           std::to_string(Shape<List>::kMembers) + " members")
                              .c_str());
  return membersOf(tuple.ptr());
}

template <typename List>
nb::class_<List> addList(nb::module_& m) {
  using S = Shape<List>;
  nb::class_<List> cls(m, S::kName, nb::is_weak_referenceable());
  cls.def(
         "__init__",
         [](List* self, MemType type, nb::int_ init_size) {
           const Py_ssize_t n = PyLong_AsSsize_t(init_size.ptr());
           if (n == -1 && PyErr_Occurred()) throw nb::python_error();
           if (n < 0) throw nb::value_error("init_size must not be negative");
           List list;
           list.type = type;
           S::resize(list, static_cast<size_t>(n));
           new (self) List(std::move(list));
         },
         "type"_a.noconvert(), "init_size"_a = 0)
      .def("getType", [](const List& list) { return list.type; })
      .def("descCount", [](const List& list) { return list.size(); })
      .def("isEmpty", [](const List& list) { return list.size() == 0; })
      .def("clear", [](List& list) { S::clear(list); })
      .def("print",
           [](const List& list) {
             std::string text = std::string(S::kName) + ": " + std::to_string(list.size()) +
                                " descriptors of " + memTypeName(list.type) + "\n";
             for (size_t i = 0; i < list.size(); ++i)
               text.append("  ").append(nb::repr(S::get(list, i)).c_str()).append("\n");
             nb::print(text.c_str(), nb::str(""));
           })
      .def("remDesc",
           [](List& list, nb::int_ index) {
             const Py_ssize_t i = PyLong_AsSsize_t(index.ptr());
             if (i == -1 && PyErr_Occurred()) PyErr_Clear();
             S::erase(list, checked(list, static_cast<size_t>(i)));
           })
      .def("__getitem__", [](const List& list, size_t i) { return S::get(list, checked(list, i)); })
      .def("__setitem__",
           [](List& list, size_t i, nb::tuple tuple) {
             S::put(list, i, leadingMembers<List>(tuple));
           })
      .def("__len__", [](const List& list) { return list.size(); })
      // Empty lists are true, as where they have no length.
      .def("__bool__", [](const List&) { return true; })
      .def(
          "__eq__", [](const List& a, const List& b) { return a.type == b.type && S::equal(a, b); },
          nb::is_operator())
      .def("__repr__", [](const List& list) {
        return std::string("<") + S::kName + " of " + std::to_string(list.size()) + " x " +
               memTypeName(list.type) + ">";
      });
  for (const char* name : {"addDesc", "append"})
    cls.def(name,
            [](List& list, nb::tuple tuple) { S::append(list, leadingMembers<List>(tuple)); });
  if constexpr (requires(List* l) { fromTable(MemType::DRAM, nb::handle(), l); }) {
    cls.def(
        "__init__",
        [](List* self, MemType type, nb::object descs) {
          new (self) List(PyList_Check(descs.ptr()) ? fromTuples<List>(type, descs.ptr())
                                                    : fromTable(type, descs, self));
        },
        "type"_a.noconvert(), "descs"_a);
    cls.def("index", [](const List& list, nb::tuple tuple) {
      PyObject* const* members = leadingMembers<List>(tuple);
      if (S::kMembers == 4) toMeta(members[3]);  // is not compared, yet must be one
      const uint64_t range[] = {toNumber(members[0]), toNumber(members[1]), toNumber(members[2])};
      for (size_t i = 0; i < list.size(); ++i)
        if (S::covers(list, i, range)) return i;
      raise(Errc::NOT_FOUND, "the list has no such descriptor");
    });
    // Works for every protocol of pickle, for copy and deepcopy, and keeps subclasses.
    cls.def("__reduce_ex__", [](nb::handle self, int) {
      return nb::make_tuple(nb::module_::import_("copyreg").attr("__newobj__"),
                            nb::make_tuple(self.type()), self.attr("__getstate__")());
    });
    cls.def("__getstate__", [](const List& list) { return toBytes(serialise(list)); });
  } else {
    cls.def(
        "__init__",
        [](List* self, MemType type, nb::list descs) {
          new (self) List(fromTuples<List>(type, descs.ptr()));
        },
        "type"_a.noconvert(), "descs"_a);
  }
  cls.attr("__hash__") = nb::none();
  return cls;
}

// Whose memory it is, as the package's Python part knows it.
template <typename List>
void addOwners(nb::class_<List>& cls) {
  cls.def_prop_rw(
         "_owners",
         [](const List& list) { return list.owners.is_valid() ? list.owners : nb::none(); },
         [](List& list, nb::object owners) { list.owners = std::move(owners); },
         nb::arg("owners").none())
      .def_rw("_read_only", &List::read_only);
}

// --- the serialised form ------------------------------------------------------------------------

void complain(const char* list) {
  nb::module_::import_("logging")
      .attr("getLogger")("nixl.bindings")
      .attr("error")(nb::str("cannot read a serialised %s: the bytes are cut or of another kind; "
                             "the list stays empty"),
                     nb::str(list));
}

}  // namespace

std::string serialise(const TransferList& list) { return writeRows(list.type, list.numbers); }

std::string serialise(const RegistrationList& list) { return writeRanges(list.type, list.ranges); }

TransferList readTransferList(std::string_view bytes) {
  TransferList list;
  if (!readRows(bytes, list.type, list.numbers)) complain("nixlXferDList");
  return list;
}

RegistrationList readRegistrationList(std::string_view bytes) {
  RegistrationList list;
  if (!readRanges(bytes, list.type, list.ranges)) complain("nixlRegDList");
  return list;
}

std::pair<TransferList, TransferList> splitToMatch(const TransferList& a, const TransferList& b) {
  TransferList x{a.type, {}, a.owners, a.read_only}, y{b.type, {}, b.owners, b.read_only};
  size_t i = 0, j = 0;
  uint64_t at_a = 0, at_b = 0;  // bytes of the current range that are taken
  while (i < a.size() && j < b.size()) {
    const uint64_t *row_a = &a.numbers[i * 3], *row_b = &b.numbers[j * 3];
    const uint64_t n = std::min(row_a[1] - at_a, row_b[1] - at_b);
    x.numbers.insert(x.numbers.end(), {row_a[0] + at_a, n, row_a[2]});
    y.numbers.insert(y.numbers.end(), {row_b[0] + at_b, n, row_b[2]});
    at_a += n;
    at_b += n;
    if (at_a == row_a[1]) ++i, at_a = 0;
    if (at_b == row_b[1]) ++j, at_b = 0;
  }
  if (i < a.size() || j < b.size())
    raise(Errc::INVALID_PARAM, "the two sides of the transfer do not cover equally many bytes");
  return {std::move(x), std::move(y)};
}

void addLists(nb::module_& m) {
  auto transfer = addList<TransferList>(m);
  transfer.def("__setstate__", [](TransferList& self, nb::bytes state) {
    new (&self)
        TransferList(readTransferList({static_cast<const char*>(state.data()), state.size()}));
  });

  auto registration = addList<RegistrationList>(m);
  registration
      .def("__setstate__",
           [](RegistrationList& self, nb::bytes state) {
             new (&self) RegistrationList(
                 readRegistrationList({static_cast<const char*>(state.data()), state.size()}));
           })
      .def("trim",
           [](const RegistrationList& list) {
             TransferList trimmed{list.type, {}, list.owners, list.read_only};
             trimmed.numbers.reserve(list.size() * 3);
             for (const MemDescriptor& r : list.ranges)
               trimmed.numbers.insert(trimmed.numbers.end(), {r.address, r.length, r.device});
             return trimmed;
           });
  addOwners(transfer);
  addOwners(registration);

  addList<RemoteList>(m);
  m.def("_split_to_match", [](const TransferList& a, const TransferList& b) {
    auto [x, y] = splitToMatch(a, b);
    return nb::make_tuple(std::move(x), std::move(y));
  });

  // One call for what nearly every transfer answers with yes: two transfer lists of numbers.
  m.def("_plain", [](nb::handle a, nb::handle b) {
    const auto plain = [](nb::handle object) {
      const TransferList* list = nullptr;
      return nb::try_cast(object, list) && list != nullptr && !list->owners.is_valid() &&
             !list->read_only;
    };
    return plain(a) && plain(b);
  }, nb::arg().none(), nb::arg().none());

  // Pickles name the class by this path, because upstream's peers look for it there.
  for (const char* name : {"nixlXferDList", "nixlRegDList"})
    m.attr(name).attr("__module__") = "nixl_cu12._bindings";
}

}  // namespace nixl::python
