// core/cover_index.h - which registered range covers this one?
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "nixl/types.h"

namespace nixl::core {

// A range that was registered, or `count` of them, `stride` bytes apart. `value` is the owner's.
struct Extent {
  uint64_t device, base, length, stride, count;
  uint32_t value;
  bool unbounded;           // length 0 of files, objects and blocks: no end
  uint64_t generation = 0;  // of the registration (the first of a row), where it matters

  uint64_t end() const;  // of the whole row; UINT64_MAX when unbounded
  bool covers(uint64_t of_device, uint64_t address, uint64_t size) const;
  bool sameRange(const Extent& other) const {
    return device == other.device && base == other.base && length == other.length &&
           stride == other.stride && count == other.count;
  }
};

// Extents that may overlap, nest and repeat, sorted, with the farthest end so far beside each: a
// lookup walks back only while something before it could still reach. Neighbouring lookups are
// O(1) through the hint, others O(log n) without nesting.
//
// Not thread-safe: the owner locks.
class CoverIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  void add(const Extent& extent);
  void add(std::vector<Extent> extents);  // sorts once
  // Removes one extent with this range and value; false when there is none.
  bool remove(const Extent& like);
  // Removes all extents with one of these values, in one pass.
  void removeValues(const std::vector<uint32_t>& values);

  // Takes these blocks out where an extent has exactly them and is of no higher generation; rows
  // of which some blocks go are split. More than 65,536 blocks of another stride than the row's
  // take the whole row with them. True when something was taken.
  bool cut(const Extent& blocks);

  // Position of an extent that covers [address, address + length), or kNone. `hint`: any number at
  // first; kept by the caller between neighbouring lookups.
  uint32_t find(uint64_t device, uint64_t address, uint64_t length, uint32_t& hint) const;
  // Whether one covers it on any device; `hint` as for find().
  bool findAnywhere(uint64_t address, uint64_t length, uint32_t& hint) const;
  // Positions [first, last) of extents with exactly this device, base and length (stride ignored).
  std::pair<uint32_t, uint32_t> exact(uint64_t device, uint64_t base, uint64_t length) const;

  const Extent& at(uint32_t position) const { return extents_[position]; }
  Extent& at(uint32_t position) { return extents_[position]; }
  size_t size() const { return extents_.size(); }
  const std::vector<Extent>& extents() const { return extents_; }

 private:
  void reach(size_t from);

  std::vector<Extent> extents_;     // by device, base, length
  std::vector<uint64_t> farthest_;  // greatest end of extents 0..i of the same device
};

}  // namespace nixl::core
