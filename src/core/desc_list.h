// core/desc_list.h - a list of memory ranges as the user gave it, in compact columns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "nixl/types.h"

namespace nixl::core {

// `count` ranges of `length` bytes, `stride` bytes apart.
struct StridedRow {
  uint64_t address, length, device, stride, count;

  uint64_t span() const { return count == 0 ? 0 : (count - 1) * stride + length; }
};

// Ranges in the user's order, either one by one (flat) or as strided rows, which stay rows: a list
// of 64 rows of 100,000 blocks each is 64 rows here. Columns in which all values are equal hold
// one, and addresses that grow by equal steps are two numbers: a cache in address order takes no
// memory a block. A value; immutable once made.
class DescList {
 public:
  // Copies the table. INVALID_PARAM: a number of columns other than 3 and 5, a range that wraps
  // past 2^64, an index beyond 2^31. NOT_FOUND, as programs expect it: no rows, or a strided row
  // with no blocks, empty blocks, or blocks that overlap (stride < length).
  static Result<DescList> fromRows(const Rows& rows);

  MemType type() const { return type_; }
  bool strided() const { return !rows_.empty(); }
  uint64_t size() const { return size_; }    // ranges
  uint64_t bytes() const { return bytes_; }  // of all of them, modulo 2^64

  // Flat lists.
  uint64_t address(uint64_t i) const { return stepped() ? base_ + i * step_ : address_[i]; }
  uint64_t length(uint64_t i) const { return length_[length_.size() == 1 ? 0 : i]; }
  uint64_t device(uint64_t i) const { return device_[device_.size() == 1 ? 0 : i]; }
  // Address i is base() + i * step(), and all lengths and devices are equal; else addresses().
  bool stepped() const { return address_.empty() && !strided(); }
  uint64_t base() const { return base_; }
  uint64_t step() const { return step_; }
  const uint64_t* addresses() const { return address_.data(); }
  const std::vector<uint64_t>& lengths() const { return length_; }  // one, or one a range

  // Strided lists.
  const std::vector<StridedRow>& rows() const { return rows_; }
  const std::vector<uint64_t>& firstIndex() const { return first_index_; }  // of each row, and end

  // "descriptor 17 (address 0x7f00, 4096 bytes, device 0)"
  std::string describe(uint64_t index) const;

  size_t memory() const;  // bytes that it takes

 private:
  MemType type_ = MemType::DRAM;
  uint64_t size_ = 0;
  uint64_t bytes_ = 0;
  uint64_t base_ = 0, step_ = 0;
  std::vector<uint64_t> address_, length_, device_;
  std::vector<StridedRow> rows_;
  std::vector<uint64_t> first_index_;
};

}  // namespace nixl::core
