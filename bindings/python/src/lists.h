// lists.h - nixlXferDList, nixlRegDList and nixlRemoteDList.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "convert.h"
#include "nixl/types.h"

namespace nixl::python {

// What a transfer covers: rows of address, length, device, as the library reads them.
struct TransferList {
  MemType type = MemType::DRAM;
  std::vector<uint64_t> numbers;  // 3 a row
  nanobind::object owners{};      // what keeps the memory alive, if anybody said
  bool read_only = false;         // some of it must not be written

  size_t size() const { return numbers.size() / 3; }
  Rows rows() const { return {type, numbers.data(), size(), 3}; }
};

// What is registered: ranges of one kind, with their meta information.
struct RegistrationList {
  MemType type = MemType::DRAM;
  std::vector<MemDescriptor> ranges;
  nanobind::object owners;  // what keeps the memory alive, if anybody said
  bool read_only = false;   // some of it must not be written

  size_t size() const { return ranges.size(); }
};

// Ranges of several peers; for memory views only.
struct RemoteList {
  struct Row {
    uint64_t address = 0, length = 0, device = 0;
    std::string agent;
    bool operator==(const Row&) const = default;
  };
  MemType type = MemType::DRAM;
  std::vector<Row> rows;

  size_t size() const { return rows.size(); }
};

// Upstream's serialised form, which pickles carry. A text that is not one gives an empty list.
std::string serialise(const TransferList& list);
std::string serialise(const RegistrationList& list);
TransferList readTransferList(std::string_view bytes);
RegistrationList readRegistrationList(std::string_view bytes);

// The same bytes as two lists of equally many, equally long ranges, by splitting ranges where the
// other side has a boundary. INVALID_PARAM when the sides cover different amounts.
std::pair<TransferList, TransferList> splitToMatch(const TransferList& a, const TransferList& b);

void addLists(nanobind::module_& m);

}  // namespace nixl::python
