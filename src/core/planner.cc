#include "core/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace nixl::core {
namespace {

struct Range {
  uint64_t address, length;
  uint32_t region;
  uint32_t row;  // neighbours are joined only inside one
};

class FlatCursor {
 public:
  explicit FlatCursor(const ResolvedList& side)
      : address_(side.list->addresses()),
        length_(side.list->lengths().data()),
        region_(side.region->data()),
        one_length_(side.list->lengths().size() == 1),
        one_region_(side.region->size() == 1) {}

  Range at(uint32_t i) {
    return {address_[i], length_[one_length_ ? 0 : i], region_[one_region_ ? 0 : i], 0};
  }

 private:
  const uint64_t* address_;
  const uint64_t* length_;
  const uint32_t* region_;
  bool one_length_, one_region_;
};

class SteppedCursor {
 public:
  explicit SteppedCursor(const ResolvedList& side)
      : base_(side.list->base()),
        step_(side.list->step()),
        length_(side.list->lengths()[0]),
        region_(side.region->data()),
        one_region_(side.region->size() == 1) {}

  Range at(uint32_t i) {
    return {base_ + i * step_, length_, region_[one_region_ ? 0 : i], 0};
  }

 private:
  uint64_t base_, step_, length_;
  const uint32_t* region_;
  bool one_region_;
};

class StridedCursor {
 public:
  explicit StridedCursor(const ResolvedList& side)
      : rows_(side.list->rows()),
        first_(side.list->firstIndex()),
        region_(side.region->data()),
        one_region_(side.region->size() == 1),
        blocks_(rows_[0].count) {
    for (const StridedRow& row : rows_)
      if (row.count != blocks_) blocks_ = 0;
    enter(0);
  }

  Range at(uint32_t i) {
    // Positions come row by row in practice: the row of the last one is tried first.
    if (i - row_first_ >= row_blocks_) [[unlikely]]
      enter(find(i));
    return {row_address_ + (i - row_first_) * row_stride_, row_length_, row_region_, row_number_};
  }

 private:
  uint32_t find(uint32_t i) const {
    if (blocks_ != 0) return i / static_cast<uint32_t>(blocks_);
    const auto after = std::upper_bound(first_.begin(), first_.end(), i);
    return static_cast<uint32_t>(after - first_.begin()) - 1;
  }
  void enter(uint32_t number) {
    const StridedRow& row = rows_[number];
    row_number_ = number;
    row_first_ = static_cast<uint32_t>(first_[number]);
    row_blocks_ = static_cast<uint32_t>(row.count);
    row_address_ = row.address;
    row_stride_ = row.stride;
    row_length_ = row.length;
    row_region_ = region_[one_region_ ? 0 : number];
  }

  const std::vector<StridedRow>& rows_;
  const std::vector<uint64_t>& first_;
  const uint32_t* region_;
  bool one_region_;
  uint64_t blocks_;  // of each row; 0: they differ
  uint32_t row_number_ = 0, row_first_ = 0, row_blocks_ = 0, row_region_ = 0;
  uint64_t row_address_ = 0, row_stride_ = 0, row_length_ = 0;
};

Status outOfRange(const char* side, uint64_t position, int32_t index, uint64_t size) {
  return Status(Errc::INVALID_PARAM, fmt::format("index {} at position {} of the {} side is out of "
                                                 "range: the list has {} descriptors",
                                                 index, position, side, size));
}

}  // namespace

class PlanBuilder {
 public:
  template <typename Local, typename Remote>
  static Result<Plan> build(const ResolvedList& local, const int32_t* local_indices,
                            const ResolvedList& remote, const int32_t* remote_indices,
                            uint64_t count, bool merge) {
    Local local_cursor(local);
    Remote remote_cursor(remote);
    const uint64_t local_size = local.list->size(), remote_size = remote.list->size();
    const bool local_regions = local.region->size() > 1, remote_regions = remote.region->size() > 1;

    Plan plan;
    allocate(plan, count, local_regions, remote_regions);
    uint64_t* const local_out = plan.numbers_.get();
    uint64_t* const remote_out = local_out + plan.capacity_;
    uint64_t* const length_out = remote_out + plan.capacity_;
    uint32_t* const local_region_out = plan.local_region_.get();
    uint32_t* const remote_region_out = plan.remote_region_.get();
    plan.only_local_region = (*local.region)[0];
    plan.only_remote_region = (*remote.region)[0];

    uint64_t pieces = 0, bytes = 0;
    uint32_t next_local = 0, next_remote = 0;  // positions that would continue the last piece
    Range last_local{}, last_remote{};
    for (uint64_t i = 0; i < count; ++i) {
      const uint32_t li = local_indices ? static_cast<uint32_t>(local_indices[i])
                                        : static_cast<uint32_t>(i);
      const uint32_t ri = remote_indices ? static_cast<uint32_t>(remote_indices[i])
                                         : static_cast<uint32_t>(i);
      if (li >= local_size) [[unlikely]]
        return outOfRange("local", i, static_cast<int32_t>(li), local_size);
      if (ri >= remote_size) [[unlikely]]
        return outOfRange("remote", i, static_cast<int32_t>(ri), remote_size);
      const Range l = local_cursor.at(li), r = remote_cursor.at(ri);
      if (l.length != r.length) [[unlikely]]
        return Status(Errc::INVALID_PARAM,
                      fmt::format("position {}: local {} and remote {} differ in length", i,
                                  local.list->describe(li), remote.list->describe(ri)));
      bytes += l.length;
      if (merge && pieces > 0 && li == next_local && ri == next_remote &&
          l.address == last_local.address + last_local.length &&
          r.address == last_remote.address + last_remote.length &&
          l.length == last_local.length && l.row == last_local.row && r.row == last_remote.row &&
          l.region == last_local.region && r.region == last_remote.region) {
        length_out[pieces - 1] += l.length;
      } else {
        local_out[pieces] = l.address;
        remote_out[pieces] = r.address;
        length_out[pieces] = l.length;
        if (local_region_out) local_region_out[pieces] = l.region;
        if (remote_region_out) remote_region_out[pieces] = r.region;
        ++pieces;
      }
      next_local = li + 1;
      next_remote = ri + 1;
      last_local = l;
      last_remote = r;
    }
    plan.count = pieces;
    plan.descriptors = pieces;
    plan.bytes = bytes;
    return plan;
  }

  // Splits pieces longer than `max_piece`, and gives back what merging left over.
  static void fit(Plan& plan, uint64_t max_piece) {
    uint64_t wanted = plan.count;
    if (max_piece != 0) {
      wanted = 0;
      for (uint64_t i = 0; i < plan.count; ++i) {
        const uint64_t length = plan.length()[i];  // rounding it up could wrap
        wanted += std::max<uint64_t>(1, length / max_piece + (length % max_piece != 0));
      }
    }
    if (wanted == plan.count && plan.count * 4 >= plan.capacity_) return;
    Plan fitted;
    allocate(fitted, wanted, plan.local_region() != nullptr, plan.remote_region() != nullptr);
    uint64_t to = 0;
    for (uint64_t i = 0; i < plan.count; ++i) {
      uint64_t offset = 0;
      do {
        const uint64_t left = plan.length()[i] - offset;
        const uint64_t length = max_piece != 0 ? std::min(left, max_piece) : left;
        fitted.numbers_[to] = plan.local_address()[i] + offset;
        fitted.numbers_[fitted.capacity_ + to] = plan.remote_address()[i] + offset;
        fitted.numbers_[2 * fitted.capacity_ + to] = length;
        if (plan.local_region()) fitted.local_region_[to] = plan.local_region()[i];
        if (plan.remote_region()) fitted.remote_region_[to] = plan.remote_region()[i];
        ++to;
        offset += length;
      } while (offset < plan.length()[i]);
    }
    plan.numbers_ = std::move(fitted.numbers_);
    plan.local_region_ = std::move(fitted.local_region_);
    plan.remote_region_ = std::move(fitted.remote_region_);
    plan.capacity_ = fitted.capacity_;
    plan.count = wanted;
  }

 private:
  static void allocate(Plan& plan, uint64_t capacity, bool local_regions, bool remote_regions) {
    plan.capacity_ = capacity;
    plan.numbers_.reset(new uint64_t[3 * capacity]);  // not zeroed: written before it is read
    if (local_regions) plan.local_region_.reset(new uint32_t[capacity]);
    if (remote_regions) plan.remote_region_.reset(new uint32_t[capacity]);
  }
};

Result<Plan> makePlan(OpType op, const ResolvedList& local, const int32_t* local_indices,
                      const ResolvedList& remote, const int32_t* remote_indices, uint64_t count,
                      const PlanLimits& limits) {
  if (count == 0)
    return Status(Errc::INVALID_PARAM, "no indices: a transfer needs at least one descriptor");
  const uint64_t locals = local_indices ? count : local.list->size();
  const uint64_t remotes = remote_indices ? count : remote.list->size();
  if (locals != count || remotes != count)
    return Status(Errc::INVALID_PARAM, fmt::format("{} local descriptors and {} remote ones: there "
                                                   "must be equally many",
                                                   locals, remotes));
  // The loop over the pieces is made once for each pair of forms, so that none of it asks again.
  auto pair = [&]<typename L, typename R>() {
    return PlanBuilder::build<L, R>(local, local_indices, remote, remote_indices, count,
                                    limits.merge);
  };
  auto with = [&]<typename L>() {
    if (remote.list->strided()) return pair.template operator()<L, StridedCursor>();
    if (remote.list->stepped()) return pair.template operator()<L, SteppedCursor>();
    return pair.template operator()<L, FlatCursor>();
  };
  auto plan = local.list->strided()   ? with.operator()<StridedCursor>()
              : local.list->stepped() ? with.operator()<SteppedCursor>()
                                      : with.operator()<FlatCursor>();
  if (!plan.has_value()) return plan;
  PlanBuilder::fit(*plan, limits.max_piece);
  plan->op = op;
  plan->local_kind = local.list->type();
  plan->remote_kind = remote.list->type();
  return plan;
}

}  // namespace nixl::core
