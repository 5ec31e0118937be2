// core/registry.h - what is registered with one engine, and where a range lies in it.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "core/cover_index.h"
#include "core/desc_list.h"
#include "nixl/types.h"

namespace nixl::core {

// A registered range. Lists hold it while they live; `live` turns false when it is deregistered,
// and then nothing may be posted with it any more.
struct Region {
  MemType type = MemType::DRAM;
  uint64_t address = 0, length = 0, device = 0;
  uint64_t generation = 0;
  std::string info;
  void* handle = nullptr;  // the engine's
  std::string key;         // public bytes for peers
  uint32_t uses = 1;       // registrations of exactly this range; guarded by the registry
  std::atomic<bool> live{true};
  std::atomic<bool> told{false};  // it was in metadata: peers may know of it
};

// A side's ranges, found: positions in a table of the engine's handles, one for all ranges or one
// a range (a row, when strided). `owners` keeps what the handles belong to.
struct Resolution {
  std::vector<uint32_t> region;
  std::vector<void*> handles;
  std::vector<std::shared_ptr<void>> owners;
  uint64_t revocations = 0;  // of the peer, before the ranges were looked up
};

// Finds every range of `list` in `index`. Returns the extents' values that were used, in order of
// first use, and fills `region` with positions in that order; or the number of the first range
// (row) that no single extent covers.
struct Lookup {
  std::vector<uint32_t> values;
  std::vector<uint32_t> region;
  uint64_t missing = UINT64_MAX;
};
Lookup lookUp(const DescList& list, const CoverIndex& index);

// "descriptor 3 (...) is not covered by one registration"; for strided lists of row `missing`.
Status notCovered(const DescList& list, uint64_t missing, const std::string& where);

// Threads: any; one lock, a leaf.
class Registry {
 public:
  // Counts a further registration of a range that is there already; nullptr when it is not.
  std::shared_ptr<Region> again(MemType type, uint64_t address, uint64_t length, uint64_t device);
  void add(const std::vector<std::shared_ptr<Region>>& regions);
  // For each range, which must match exactly, one registration less: returns those that have none
  // left, which are no longer found from then on. All or nothing: NOT_FOUND.
  Result<std::vector<std::shared_ptr<Region>>> remove(const std::vector<MemDescriptor>& ranges);
  // The same for regions of which the caller knows that they are registered.
  std::vector<std::shared_ptr<Region>> remove(const std::vector<std::shared_ptr<Region>>& regions);
  std::vector<std::shared_ptr<Region>> removeAll();

  Result<Resolution> resolve(const DescList& list) const;
  bool covers(const DescList& list) const;
  bool has(MemType type) const;

  // All of it, or exactly the given ranges (NOT_FOUND); for metadata.
  std::vector<std::shared_ptr<Region>> all() const;
  Result<std::vector<std::shared_ptr<Region>>> find(const std::vector<MemDescriptor>& ranges) const;

  uint64_t changes() const { return changes_.load(std::memory_order_seq_cst); }

 private:
  struct Section {
    CoverIndex index;
    std::vector<std::shared_ptr<Region>> regions;  // by the extents' value
    std::vector<uint32_t> free;
  };
  // Takes regions out, by section and value; they are dead and cannot be found from then on.
  std::vector<std::shared_ptr<Region>> drop(
      const std::array<std::vector<uint32_t>, kMemTypes>& values) NIXL_REQUIRES(mu_);
  static Status noSuch(const MemDescriptor& range);

  mutable base::SharedMutex mu_;
  std::array<Section, kMemTypes> sections_ NIXL_GUARDED_BY(mu_);
  std::atomic<uint64_t> changes_{0};
};

}  // namespace nixl::core
