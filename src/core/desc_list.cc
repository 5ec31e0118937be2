#include "core/desc_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>

namespace nixl::core {
namespace {

bool wraps(uint64_t address, uint64_t length) { return length > UINT64_MAX - address; }

// A column of which most lists have one value: stays one number until a second one comes.
class Column {
 public:
  void add(std::vector<uint64_t>& column, uint64_t value, size_t index, size_t capacity) {
    if (index == 0) {
      column.assign(1, value);
      return;
    }
    if (uniform_) {
      if (value == column[0]) return;
      uniform_ = false;
      column.reserve(capacity);
      column.resize(index, column[0]);
    }
    column.push_back(value);
  }

 private:
  bool uniform_ = true;
};

}  // namespace

Result<DescList> DescList::fromRows(const Rows& rows) {
  DescList list;
  list.type_ = rows.type;
  if (static_cast<unsigned>(rows.type) >= kMemTypes)
    return Status(Errc::INVALID_PARAM, fmt::format("memory kind {} does not exist",
                                                   static_cast<unsigned>(rows.type)));
  if (rows.count == 0) return Status(Errc::NOT_FOUND, "the list of descriptors is empty");
  if (rows.columns == 3) {
    if (rows.count > INT_MAX)
      return Status(Errc::INVALID_PARAM,
                    fmt::format("{} descriptors in one list; at most {} can be numbered: use "
                                "strided rows, or several lists",
                                rows.count, INT_MAX));
    list.size_ = rows.count;
    const uint64_t* row = rows.data;
    list.base_ = row[0];
    list.step_ = rows.count > 1 ? row[3] - row[0] : 0;
    size_t alike = 0;  // rows from the start with equal steps, lengths and devices
    for (uint64_t next = row[0]; alike < rows.count; ++alike, next += list.step_) {
      const uint64_t* r = row + 3 * alike;
      if (r[0] != next || r[1] != row[1] || r[2] != row[2] || wraps(r[0], r[1])) break;
    }
    // Only upwards and without a gap in the numbers: then the first and the last bound them all.
    const auto reach = static_cast<unsigned __int128>(rows.count - 1) * list.step_ + row[1];
    if (alike == rows.count && reach <= UINT64_MAX - list.base_) {
      list.length_.assign(1, row[1]);
      list.device_.assign(1, row[2]);
      list.bytes_ = rows.count * row[1];
      return list;
    }
    list.address_.resize(rows.count);
    Column lengths, devices;
    for (size_t i = 0; i < rows.count; ++i, row += 3) {
      if (wraps(row[0], row[1]))
        return Status(Errc::INVALID_PARAM,
                      fmt::format("descriptor {} (address {:#x}, {} bytes) wraps past 2^64", i,
                                  row[0], row[1]));
      list.address_[i] = row[0];
      lengths.add(list.length_, row[1], i, rows.count);
      devices.add(list.device_, row[2], i, rows.count);
      list.bytes_ += row[1];
    }
    return list;
  }
  if (rows.columns != 5)
    return Status(Errc::INVALID_PARAM,
                  fmt::format("a table of {} columns; 3 (address, length, device) or 5 (with "
                              "stride and count) are known",
                              rows.columns));

  list.rows_.reserve(rows.count);
  list.first_index_.reserve(rows.count + 1);
  const uint64_t* row = rows.data;
  for (size_t i = 0; i < rows.count; ++i, row += 5) {
    const StridedRow r{row[0], row[1], row[2], row[3], row[4]};
    auto refuse = [&](const char* why) {
      return Status(Errc::NOT_FOUND,
                    fmt::format("strided row {} (address {:#x}, {} bytes, stride {}, {} blocks) {}",
                                i, r.address, r.length, r.stride, r.count, why));
    };
    if (r.count == 0) return refuse("has no blocks");
    if (r.length == 0) return refuse("has empty blocks");
    if (r.stride < r.length) return refuse("has blocks that overlap: stride < length");
    // In 128 bits: a negative stride or count reinterpreted as unsigned must not wrap into range.
    const auto span = static_cast<unsigned __int128>(r.count - 1) * r.stride + r.length;
    if (span > UINT64_MAX - r.address) return refuse("wraps past 2^64");
    if (r.count > INT_MAX || list.size_ + r.count > INT_MAX)
      return refuse("takes the list beyond 2^31 blocks, which cannot be numbered");
    list.first_index_.push_back(list.size_);
    list.size_ += r.count;
    list.bytes_ += r.count * r.length;
    list.rows_.push_back(r);
  }
  list.first_index_.push_back(list.size_);
  return list;
}

std::string DescList::describe(uint64_t index) const {
  if (!strided())
    return fmt::format("descriptor {} (address {:#x}, {} bytes, device {})", index, address(index),
                       length(index), device(index));
  const auto after = std::upper_bound(first_index_.begin(), first_index_.end(), index);
  const size_t number = static_cast<size_t>(after - first_index_.begin()) - 1;
  const StridedRow& row = rows_[number];
  return fmt::format("block {} of row {} (address {:#x}, {} bytes, device {})",
                     index - first_index_[number], number,
                     row.address + (index - first_index_[number]) * row.stride, row.length,
                     row.device);
}

size_t DescList::memory() const {
  return (address_.capacity() + length_.capacity() + device_.capacity() +
          first_index_.capacity()) *
             sizeof(uint64_t) +
         rows_.capacity() * sizeof(StridedRow);
}

}  // namespace nixl::core
