// core/planner.h - from two resolved lists and a choice of positions to the pieces of a transfer.
// Pure: nothing here looks at an engine, a peer or a clock.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "core/desc_list.h"
#include "nixl/types.h"

namespace nixl::core {

// A list whose ranges have been found in an engine's registrations.
struct ResolvedList {
  const DescList* list = nullptr;
  // Index into the side's table of regions: one for all, or one a range (a row, when strided).
  const std::vector<uint32_t>* region = nullptr;
};

struct PlanLimits {
  uint64_t max_piece = 0;  // bytes; longer pieces are split; 0: none
  bool merge = false;      // join neighbours
};

// Pieces as parallel arrays, ready to be handed to an engine. Movable; owns its one allocation.
class Plan {
 public:
  OpType op = OpType::READ;
  MemType local_kind = MemType::DRAM, remote_kind = MemType::DRAM;
  uint64_t count = 0;        // pieces
  uint64_t bytes = 0;        // of all of them
  uint64_t descriptors = 0;  // after merging, before splitting: what telemetry shows

  const uint64_t* local_address() const { return numbers_.get(); }
  const uint64_t* remote_address() const { return numbers_.get() + capacity_; }
  const uint64_t* length() const { return numbers_.get() + 2 * capacity_; }
  // nullptr: all pieces are in region `only_*_region`.
  const uint32_t* local_region() const { return local_region_.get(); }
  const uint32_t* remote_region() const { return remote_region_.get(); }
  uint32_t only_local_region = 0, only_remote_region = 0;

 private:
  friend class PlanBuilder;
  uint64_t capacity_ = 0;
  std::unique_ptr<uint64_t[]> numbers_;
  std::unique_ptr<uint32_t[]> local_region_, remote_region_;
};

// Pairs local[local_indices[i]] with remote[remote_indices[i]] for i < count, in that order. A
// nullptr for indices means all of the list in its order. Neighbours are joined only where both
// indices grow by one inside one row and region, lengths are equal and both sides touch.
//
// INVALID_PARAM: nothing to move, an index out of range, lengths or counts that differ.
Result<Plan> makePlan(OpType op, const ResolvedList& local, const int32_t* local_indices,
                      const ResolvedList& remote, const int32_t* remote_indices, uint64_t count,
                      const PlanLimits& limits);

}  // namespace nixl::core
