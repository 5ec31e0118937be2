#include "core/cover_index.h"

#include <algorithm>
#include <tuple>

namespace nixl::core {
namespace {

bool before(const Extent& a, const Extent& b) {
  return std::tie(a.device, a.base, a.length) < std::tie(b.device, b.base, b.length);
}

}  // namespace

uint64_t Extent::end() const {
  return unbounded ? UINT64_MAX : base + (count - 1) * stride + length;
}

bool Extent::covers(uint64_t of_device, uint64_t address, uint64_t size) const {
  if (of_device != device || address < base) return false;
  if (unbounded) return size <= UINT64_MAX - address;
  uint64_t offset = address - base;
  if (count > 1) {
    const uint64_t block = offset / stride;
    if (block >= count) {
      // The end of the last block is still inside for an empty range.
      return size == 0 && address == end();
    }
    offset -= block * stride;
  }
  return offset <= length && size <= length - offset;
}

void CoverIndex::reach(size_t from) {
  farthest_.resize(extents_.size());
  for (size_t i = from; i < extents_.size(); ++i) {
    const uint64_t end = extents_[i].end();
    const bool first = i == 0 || extents_[i - 1].device != extents_[i].device;
    farthest_[i] = first ? end : std::max(end, farthest_[i - 1]);
  }
}

void CoverIndex::add(const Extent& extent) {
  const auto where = std::upper_bound(extents_.begin(), extents_.end(), extent, before);
  const size_t index = static_cast<size_t>(where - extents_.begin());
  extents_.insert(where, extent);
  reach(index);
}

void CoverIndex::add(std::vector<Extent> extents) {
  if (extents.empty()) return;
  if (extents.size() == 1) return add(extents[0]);
  std::stable_sort(extents.begin(), extents.end(), before);
  const size_t old = extents_.size();
  const auto where = std::upper_bound(extents_.begin(), extents_.end(), extents[0], before);
  const size_t from = static_cast<size_t>(where - extents_.begin());
  extents_.insert(extents_.end(), extents.begin(), extents.end());
  std::inplace_merge(extents_.begin() + static_cast<ptrdiff_t>(from),
                     extents_.begin() + static_cast<ptrdiff_t>(old), extents_.end(), before);
  reach(from);
}

bool CoverIndex::remove(const Extent& like) {
  auto [first, last] = exact(like.device, like.base, like.length);
  for (; first < last; ++first) {
    if (extents_[first].value != like.value) continue;
    extents_.erase(extents_.begin() + first);
    reach(first);
    return true;
  }
  return false;
}

void CoverIndex::removeValues(const std::vector<uint32_t>& values) {
  if (values.empty()) return;
  std::vector<bool> gone(*std::max_element(values.begin(), values.end()) + size_t{1});
  for (uint32_t value : values) gone[value] = true;
  std::erase_if(extents_,
                [&](const Extent& e) { return e.value < gone.size() && gone[e.value]; });
  reach(0);
}

namespace {

// Which block of `row` lies at `base` and is of no higher generation; row.count if none.
uint64_t blockAt(const Extent& row, uint64_t base, uint64_t generation) {
  if (base < row.base) return row.count;
  const uint64_t offset = base - row.base;
  uint64_t block = 0;
  if (row.count > 1) {
    if (offset % row.stride != 0) return row.count;
    block = offset / row.stride;
  } else if (offset != 0) {
    return row.count;
  }
  return block < row.count && row.generation + block <= generation ? block : row.count;
}

using Blocks = std::pair<uint64_t, uint64_t>;  // from the first to behind the last

// Which blocks of `row` are among `others`, and of no higher generation.
std::vector<Blocks> common(const Extent& row, const Extent& others) {
  constexpr uint64_t kOneByOne = 65536;
  if (row.device != others.device || row.length != others.length ||
      row.unbounded != others.unbounded || row.base > others.end() || others.base > row.end())
    return {};
  if (row.count > 1 && row.stride == others.stride && others.count > 1) {
    const bool later = others.base >= row.base;
    const uint64_t offset = later ? others.base - row.base : row.base - others.base;
    if (offset % row.stride != 0) return {};
    const uint64_t first = later ? offset / row.stride : 0;
    const uint64_t skipped = later ? 0 : offset / row.stride;
    if (first >= row.count || skipped >= others.count ||
        row.generation + first > others.generation + skipped)
      return {};
    return {{first, first + std::min(row.count - first, others.count - skipped)}};
  }
  if (row.count == 1) {
    const uint64_t at = blockAt(others, row.base, UINT64_MAX);
    if (at == others.count || row.generation > others.generation + at) return {};
    return {{0, 1}};
  }
  if (others.count > kOneByOne) return {{0, row.count}};
  std::vector<Blocks> blocks;
  for (uint64_t i = 0; i < others.count; ++i) {
    const uint64_t at = blockAt(row, others.base + i * others.stride, others.generation + i);
    if (at < row.count) blocks.emplace_back(at, at + 1);
  }
  return blocks;
}

}  // namespace

bool CoverIndex::cut(const Extent& blocks) {
  std::vector<Extent> kept;
  kept.reserve(extents_.size());
  bool any = false;
  for (const Extent& row : extents_) {
    const std::vector<Blocks> gone = common(row, blocks);
    any = any || !gone.empty();
    uint64_t from = 0;
    const auto keep = [&](uint64_t to) {
      if (from >= to) return;
      Extent part = row;
      part.base += from * row.stride;
      part.generation += from;
      part.count = to - from;
      if (part.count == 1) part.stride = part.length;
      kept.push_back(part);
    };
    for (const auto& [first, last] : gone) {
      keep(first);
      from = last;
    }
    if (gone.empty())
      kept.push_back(row);
    else
      keep(row.count);
  }
  if (!any) return false;
  extents_ = std::move(kept);
  std::sort(extents_.begin(), extents_.end(), before);
  reach(0);
  return true;
}

bool CoverIndex::findAnywhere(uint64_t address, uint64_t length, uint32_t& hint) const {
  if (hint < extents_.size() && find(extents_[hint].device, address, length, hint) != kNone)
    return true;
  for (size_t i = 0; i < extents_.size();) {
    const uint64_t device = extents_[i].device;
    if (find(device, address, length, hint) != kNone) return true;
    const Extent last{device, UINT64_MAX, UINT64_MAX, 0, 1, 0, false};
    i = static_cast<size_t>(std::upper_bound(extents_.begin(), extents_.end(), last, before) -
                            extents_.begin());
  }
  return false;
}

uint32_t CoverIndex::find(uint64_t device, uint64_t address, uint64_t length,
                          uint32_t& hint) const {
  if (hint < extents_.size()) {
    if (extents_[hint].covers(device, address, length)) return hint;
    if (hint + 1 < extents_.size() && extents_[hint + 1].covers(device, address, length))
      return ++hint;
  }
  const Extent key{device, address, UINT64_MAX, 0, 1, 0, false};
  auto i = static_cast<size_t>(
      std::upper_bound(extents_.begin(), extents_.end(), key, before) - extents_.begin());
  while (i-- > 0) {
    if (extents_[i].device != device) break;
    if (extents_[i].covers(device, address, length)) return hint = static_cast<uint32_t>(i);
    if (farthest_[i] < address || farthest_[i] - address < length) break;
  }
  return kNone;
}

std::pair<uint32_t, uint32_t> CoverIndex::exact(uint64_t device, uint64_t base,
                                                uint64_t length) const {
  const Extent key{device, base, length, 0, 1, 0, false};
  const auto [first, last] = std::equal_range(extents_.begin(), extents_.end(), key, before);
  return {static_cast<uint32_t>(first - extents_.begin()),
          static_cast<uint32_t>(last - extents_.begin())};
}

}  // namespace nixl::core
