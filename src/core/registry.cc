#include "core/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

namespace nixl::core {
namespace {

bool isBytes(MemType type) { return type == MemType::DRAM || type == MemType::VRAM; }

Extent extentOf(const Region& region, uint32_t value) {
  return {region.device, region.address,    region.length, region.length,
          1,             value,             region.length == 0 && !isBytes(region.type),
          region.generation};
}

// Numbers values 0, 1, ... by first use.
class Numbering {
 public:
  uint32_t of(uint32_t value, std::vector<uint32_t>& values) {
    if (value == last_) return last_number_;
    const auto [where, fresh] = numbers_.try_emplace(value, static_cast<uint32_t>(values.size()));
    if (fresh) values.push_back(value);
    last_ = value;
    return last_number_ = where->second;
  }

 private:
  uint32_t last_ = UINT32_MAX, last_number_ = 0;
  std::unordered_map<uint32_t, uint32_t> numbers_;
};

}  // namespace

Lookup lookUp(const DescList& list, const CoverIndex& index) {
  Lookup found;
  Numbering numbering;
  uint32_t hint = CoverIndex::kNone;
  if (list.stepped()) {
    // One region around all of it spares looking at each.
    const uint64_t reach = (list.size() - 1) * list.step() + list.length(0);
    const uint32_t position = index.find(list.device(0), list.base(), reach, hint);
    if (position != CoverIndex::kNone) {
      found.values.assign(1, index.at(position).value);
      found.region.assign(1, 0);
      return found;
    }
  }
  const uint64_t count = list.strided() ? list.rows().size() : list.size();
  bool one = true;  // so far all ranges are in the same region
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t position;
    if (list.strided()) {
      const StridedRow& row = list.rows()[i];
      position = index.find(row.device, row.address, row.span(), hint);
    } else {
      position = index.find(list.device(i), list.address(i), list.length(i), hint);
    }
    if (position == CoverIndex::kNone) {
      found.missing = i;
      return found;
    }
    const uint32_t number = numbering.of(index.at(position).value, found.values);
    if (one && number != 0) {
      one = false;
      found.region.reserve(count);
      found.region.assign(i, 0);
    }
    if (!one) found.region.push_back(number);
  }
  if (one) found.region.assign(1, 0);
  return found;
}

Status notCovered(const DescList& list, uint64_t missing, const std::string& where) {
  if (list.strided()) {
    const StridedRow& row = list.rows()[missing];
    return Status(Errc::NOT_FOUND,
                  fmt::format("row {} (address {:#x}, {} blocks over {} bytes, device {}) does not "
                              "lie inside one {} registration {}",
                              missing, row.address, row.count, row.span(), row.device,
                              memTypeName(list.type()), where));
  }
  return Status(Errc::NOT_FOUND, fmt::format("{} does not lie inside one {} registration {}",
                                             list.describe(missing), memTypeName(list.type()),
                                             where));
}

std::shared_ptr<Region> Registry::again(MemType type, uint64_t address, uint64_t length,
                                        uint64_t device) {
  // Two registrations of one file range may name different files or modes: never the same.
  if (!isBytes(type)) return nullptr;
  base::WriterLock lock(mu_);
  Section& section = sections_[static_cast<size_t>(type)];
  auto [first, last] = section.index.exact(device, address, length);
  if (first == last) return nullptr;
  auto& region = section.regions[section.index.at(first).value];
  ++region->uses;
  return region;
}

void Registry::add(const std::vector<std::shared_ptr<Region>>& regions) {
  base::WriterLock lock(mu_);
  std::array<std::vector<Extent>, kMemTypes> extents;
  for (const auto& region : regions) {
    Section& section = sections_[static_cast<size_t>(region->type)];
    uint32_t value;
    if (!section.free.empty()) {
      value = section.free.back();
      section.free.pop_back();
      section.regions[value] = region;
    } else {
      value = static_cast<uint32_t>(section.regions.size());
      section.regions.push_back(region);
    }
    extents[static_cast<size_t>(region->type)].push_back(extentOf(*region, value));
  }
  for (size_t type = 0; type < kMemTypes; ++type)
    sections_[type].index.add(std::move(extents[type]));
  changes_.fetch_add(1, std::memory_order_seq_cst);
}

Status Registry::noSuch(const MemDescriptor& range) {
  return Status(Errc::NOT_FOUND,
                fmt::format("{} range (address {:#x}, {} bytes, device {}) is not registered; it "
                            "must match a registration exactly",
                            memTypeName(range.type), range.address, range.length, range.device));
}

std::vector<std::shared_ptr<Region>> Registry::drop(
    const std::array<std::vector<uint32_t>, kMemTypes>& values) {
  std::vector<std::shared_ptr<Region>> gone;
  for (size_t type = 0; type < kMemTypes; ++type) {
    Section& section = sections_[type];
    if (values[type].size() == 1) {  // the common case needs no pass over everything
      const uint32_t value = values[type][0];
      section.index.remove(extentOf(*section.regions[value], value));
    } else {
      section.index.removeValues(values[type]);
    }
    for (uint32_t value : values[type]) {
      gone.push_back(std::move(section.regions[value]));
      section.regions[value] = nullptr;
      section.free.push_back(value);
      gone.back()->live.store(false, std::memory_order_release);
    }
  }
  changes_.fetch_add(1, std::memory_order_seq_cst);
  return gone;
}

Result<std::vector<std::shared_ptr<Region>>> Registry::remove(
    const std::vector<MemDescriptor>& ranges) {
  base::WriterLock lock(mu_);
  // First find a registration for every range, counting repeats, so that a failure changes nothing.
  std::vector<std::pair<size_t, uint32_t>> found;  // section, value
  std::unordered_map<const Region*, uint32_t> taken;
  for (const MemDescriptor& range : ranges) {
    const size_t type = static_cast<size_t>(range.type);
    Section& section = sections_[type];
    auto [first, last] = section.index.exact(range.device, range.address, range.length);
    bool matched = false;
    for (; first < last && !matched; ++first) {
      const uint32_t value = section.index.at(first).value;
      const Region* region = section.regions[value].get();
      if (taken[region] >= region->uses) continue;
      ++taken[region];
      found.emplace_back(type, value);
      matched = true;
    }
    if (!matched) return noSuch(range);
  }
  std::array<std::vector<uint32_t>, kMemTypes> values;
  for (auto [type, value] : found)
    if (--sections_[type].regions[value]->uses == 0) values[type].push_back(value);
  return drop(values);
}

std::vector<std::shared_ptr<Region>> Registry::remove(
    const std::vector<std::shared_ptr<Region>>& regions) {
  base::WriterLock lock(mu_);
  std::array<std::vector<uint32_t>, kMemTypes> values;
  for (const auto& region : regions) {
    if (!region->live.load(std::memory_order_relaxed) || region->uses == 0 || --region->uses > 0)
      continue;
    const size_t type = static_cast<size_t>(region->type);
    Section& section = sections_[type];
    auto [first, last] = section.index.exact(region->device, region->address, region->length);
    for (; first < last; ++first) {
      const uint32_t value = section.index.at(first).value;
      if (section.regions[value] != region) continue;
      values[type].push_back(value);
      break;
    }
  }
  return drop(values);
}

std::vector<std::shared_ptr<Region>> Registry::removeAll() {
  base::WriterLock lock(mu_);
  std::vector<std::shared_ptr<Region>> gone;
  for (Section& section : sections_) {
    for (auto& region : section.regions) {
      if (!region) continue;
      region->live.store(false, std::memory_order_release);
      gone.push_back(std::move(region));
    }
    section = {};
  }
  changes_.fetch_add(1, std::memory_order_seq_cst);
  return gone;
}

Result<Resolution> Registry::resolve(const DescList& list) const {
  base::ReaderLock lock(mu_);
  const Section& section = sections_[static_cast<size_t>(list.type())];
  Lookup found = lookUp(list, section.index);
  if (found.missing != UINT64_MAX) return notCovered(list, found.missing, "of this agent");
  Resolution resolution;
  resolution.region = std::move(found.region);
  resolution.handles.reserve(found.values.size());
  resolution.owners.reserve(found.values.size());
  for (uint32_t value : found.values) {
    resolution.handles.push_back(section.regions[value]->handle);
    resolution.owners.push_back(section.regions[value]);
  }
  return resolution;
}

bool Registry::covers(const DescList& list) const {
  base::ReaderLock lock(mu_);
  return lookUp(list, sections_[static_cast<size_t>(list.type())].index).missing == UINT64_MAX;
}

bool Registry::has(MemType type) const {
  base::ReaderLock lock(mu_);
  return sections_[static_cast<size_t>(type)].index.size() > 0;
}

std::vector<std::shared_ptr<Region>> Registry::all() const {
  base::ReaderLock lock(mu_);
  std::vector<std::shared_ptr<Region>> regions;
  for (const Section& section : sections_)
    for (const Extent& extent : section.index.extents())
      regions.push_back(section.regions[extent.value]);
  return regions;
}

Result<std::vector<std::shared_ptr<Region>>> Registry::find(
    const std::vector<MemDescriptor>& ranges) const {
  base::ReaderLock lock(mu_);
  std::vector<std::shared_ptr<Region>> regions;
  regions.reserve(ranges.size());
  for (const MemDescriptor& range : ranges) {
    const Section& section = sections_[static_cast<size_t>(range.type)];
    auto [first, last] = section.index.exact(range.device, range.address, range.length);
    if (first == last) return noSuch(range);
    regions.push_back(section.regions[section.index.at(first).value]);
  }
  return regions;
}

}  // namespace nixl::core
