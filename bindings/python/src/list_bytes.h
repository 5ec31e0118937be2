// list_bytes.h - upstream's serialised form of descriptor lists, which pickles carry. It comes from
// peers: nothing in it is trusted. Knows nothing of Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/types.h"

namespace nixl::python {

// Rows of address, length, device: 3 numbers each.
std::string writeRows(MemType type, const std::vector<uint64_t>& numbers);
std::string writeRanges(MemType type, const std::vector<MemDescriptor>& ranges);

// False for bytes that are cut or of another kind: the list is empty then, and the type is that of
// the bytes where it can be read. What stands behind a whole list is not looked at.
bool readRows(std::string_view bytes, MemType& type, std::vector<uint64_t>& numbers);
bool readRanges(std::string_view bytes, MemType& type, std::vector<MemDescriptor>& ranges);

}  // namespace nixl::python
