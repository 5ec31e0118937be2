// Tables of descriptors, N x 3 and strided, and the plans that are made of two of them: lengths,
// indices and what wraps past 2^64.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/desc_list.h"
#include "core/planner.h"
#include "fuzz.h"

namespace {

using namespace nixl;
using namespace nixl::core;
using fuzz::Input;
using fuzz::require;
using fuzz::Wide;

constexpr uint64_t kMostPieces = 4096;  // in one plan: each is looked at

struct TableOfRows {
  MemType type;
  unsigned columns;
  size_t count;
  std::vector<uint64_t> numbers;

  Rows rows() const { return {type, numbers.data(), count, columns}; }
};

// First byte: kind of memory, columns. Second: rows. Third: how rows follow from the one before.
TableOfRows readTable(Input& in) {
  const uint8_t head = in.byte();
  TableOfRows table{static_cast<MemType>(head % 8), head & 8 ? 5u : 3u, in.below(48), {}};
  if (head >= 250) table.columns = head % 7;
  const uint8_t follows = in.byte();
  for (size_t i = 0; i < table.count; ++i) {
    for (size_t column = 0; column < table.columns; ++column) {
      const size_t above = table.numbers.size() - table.columns;
      if (i == 0 || follows & (1u << column)) {
        table.numbers.push_back(in.number());
      } else if (column == 0 && table.columns > 1 && follows & 0x80) {  // behind it
        table.numbers.push_back(table.numbers[above] + table.numbers[above + 1]);
      } else if (column == 0 && follows & 0x40 && i > 1) {  // by equal steps
        table.numbers.push_back(2 * table.numbers[above] - table.numbers[above - table.columns]);
      } else {
        table.numbers.push_back(table.numbers[above]);
      }
    }
  }
  return table;
}

// Why the table must be refused, or OK. Written without an eye on how the library does it.
Errc expected(const TableOfRows& table) {
  if (static_cast<unsigned>(table.type) >= kMemTypes) return Errc::INVALID_PARAM;
  if (table.count == 0) return Errc::NOT_FOUND;
  if (table.columns != 3 && table.columns != 5) return Errc::INVALID_PARAM;
  Wide blocks = 0;
  for (size_t i = 0; i < table.count; ++i) {
    const uint64_t* row = &table.numbers[i * table.columns];
    const Wide address = row[0], length = row[1];
    if (table.columns == 3) {
      if (address + length > UINT64_MAX) return Errc::INVALID_PARAM;
      continue;
    }
    const Wide stride = row[3], count = row[4];
    blocks += count;
    if (count == 0 || length == 0 || stride < length || blocks > INT32_MAX ||
        address + (count - 1) * stride + length > UINT64_MAX)
      return Errc::NOT_FOUND;
  }
  return Errc::OK;
}

struct Block {
  uint64_t address, length, device;
};

Block blockOf(const TableOfRows& table, uint64_t index) {
  if (table.columns == 3) {
    const uint64_t* row = &table.numbers[index * 3];
    return {row[0], row[1], row[2]};
  }
  const uint64_t* row = table.numbers.data();
  for (; index >= row[4]; row += 5) index -= row[4];
  return {row[0] + index * row[3], row[1], row[2]};
}

uint64_t blocksOf(const TableOfRows& table) {
  if (table.columns == 3) return table.count;
  uint64_t blocks = 0;
  for (size_t i = 0; i < table.count; ++i) blocks += table.numbers[i * 5 + 4];
  return blocks;
}

void checkList(const TableOfRows& table, const DescList& list) {
  require(list.size() == blocksOf(table), "another number of ranges");
  require(list.strided() == (table.columns == 5), "another kind of list");
  uint64_t bytes = 0;
  for (size_t i = 0; i < table.count; ++i) {
    const uint64_t* row = &table.numbers[i * table.columns];
    bytes += row[1] * (table.columns == 5 ? row[4] : 1);
  }
  require(list.bytes() == bytes, "another number of bytes");
  if (!list.strided())
    for (size_t i = 0; i < table.count; ++i) {
      const Block block = blockOf(table, i);
      require(list.address(i) == block.address && list.length(i) == block.length &&
                  list.device(i) == block.device,
              "a range that is not what was given");
    }
  for (const uint64_t i : {uint64_t{0}, list.size() / 2, list.size() - 1}) {
    char address[32];
    std::snprintf(address, sizeof address, "0x%llx,",
                  static_cast<unsigned long long>(blockOf(table, i).address));
    require(list.describe(i).find(address) != std::string::npos, "described as another range");
  }
}

// Indices, mostly such that exist.
std::vector<int32_t> readIndices(Input& in, uint64_t count, uint64_t of) {
  std::vector<int32_t> indices;
  const uint8_t how = in.byte();
  auto next = static_cast<int32_t>(in.number() % of);
  for (uint64_t i = 0; i < count; ++i) {
    indices.push_back(next);
    if (how < 128)
      next = static_cast<int32_t>((static_cast<uint64_t>(next) + how % 4) % of);
    else if (how < 250)
      next = static_cast<int32_t>(in.number() % of);
    else
      next = static_cast<int32_t>(in.number());
  }
  return indices;
}

// Walks over the plan's pieces and the blocks that were asked for, side by side.
void checkPlan(const Plan& plan, const TableOfRows& local,
               const std::vector<int32_t>& local_indices, const TableOfRows& remote,
               const std::vector<int32_t>& remote_indices, uint64_t count, uint64_t max_piece) {
  uint64_t piece = 0, done = 0, bytes = 0;  // done: bytes of the piece
  for (uint64_t i = 0; i < count; ++i) {
    const Block from = blockOf(local, local_indices.empty() ? i : local_indices[i]);
    const Block to = blockOf(remote, remote_indices.empty() ? i : remote_indices[i]);
    bytes += from.length;
    for (uint64_t at = 0; at < from.length;) {
      require(piece < plan.count, "a plan that ends too early");
      require(plan.local_address()[piece] + done == from.address + at &&
                  plan.remote_address()[piece] + done == to.address + at,
              "a piece of other memory");
      const uint64_t n = std::min(plan.length()[piece] - done, from.length - at);
      require(n > 0, "an empty piece");
      at += n;
      done += n;
      if (done == plan.length()[piece]) ++piece, done = 0;
    }
    if (from.length == 0 && piece < plan.count && plan.length()[piece] == 0) ++piece;
  }
  require(piece == plan.count && done == 0, "a plan that goes on for too long");
  require(bytes == plan.bytes, "a plan of another number of bytes");
  for (uint64_t i = 0; i < plan.count; ++i)
    require(max_piece == 0 || plan.length()[i] <= max_piece, "a piece that is too long");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  const TableOfRows tables[] = {readTable(in), readTable(in)};
  std::vector<DescList> lists;
  for (const TableOfRows& table : tables) {
    Result<DescList> list = DescList::fromRows(table.rows());
    const Errc wanted = expected(table);
    require(list.has_value() == (wanted == Errc::OK), "a table that should (not) be refused");
    if (!list.has_value()) {
      require(list.error().code() == wanted, "refused with another code");
      return 0;
    }
    checkList(table, *list);
    lists.push_back(std::move(*list));
  }

  const uint8_t how = in.byte();
  PlanLimits limits{how & 1 ? 1 + in.number() : 0, (how & 2) != 0};
  const uint64_t count = how & 4 ? std::min(lists[0].size(), lists[1].size()) : in.below(64);
  std::vector<int32_t> indices[2];
  for (int side : {0, 1})
    if (how & (8 << side))
      indices[side] = readIndices(in, std::min(count, kMostPieces), lists[side].size());
  const bool ordered = indices[0].empty() || indices[1].empty();
  if (count > kMostPieces || (ordered && count == 0)) return 0;

  bool fits = count > 0;
  Wide pieces = 0;
  for (uint64_t i = 0; i < count && fits; ++i) {
    uint64_t lengths[2];
    for (int side : {0, 1}) {
      const int64_t index = indices[side].empty() ? static_cast<int64_t>(i) : indices[side][i];
      fits = fits && index >= 0 && static_cast<uint64_t>(index) < lists[side].size();
      if (fits) lengths[side] = blockOf(tables[side], static_cast<uint64_t>(index)).length;
    }
    fits = fits && lengths[0] == lengths[1];
    if (fits && limits.max_piece) pieces += Wide{lengths[0]} / limits.max_piece;
  }
  // A list that is not indexed is taken as a whole.
  for (int side : {0, 1}) fits = fits && (!indices[side].empty() || lists[side].size() == count);
  if (pieces > kMostPieces) return 0;

  const std::vector<uint32_t> one_region = {0};
  const Result<Plan> plan = makePlan(
      OpType::WRITE, {&lists[0], &one_region}, indices[0].empty() ? nullptr : indices[0].data(),
      {&lists[1], &one_region}, indices[1].empty() ? nullptr : indices[1].data(), count, limits);
  require(plan.has_value() == fits, "a pair of lists that should (not) make a plan");
  if (!plan.has_value()) {
    require(plan.error().code() == Errc::INVALID_PARAM, "refused with another code");
    return 0;
  }
  checkPlan(*plan, tables[0], indices[0], tables[1], indices[1], count, limits.max_piece);
  return 0;
}
