// What arrives: every size and every form of list, read and written, and nothing beside it.

#include <algorithm>
#include <random>

#include "cases.h"

namespace nixl::conformance {

namespace {

constexpr uint64_t kMany = 10'000;

// A form of list. Offsets lie within [0, local_size) and [0, remote_size).
struct Shape {
  const char* name;
  std::vector<Piece> (*pieces)(OpType op, const BackendUnderTest& backend);
  std::vector<Way> ways;
};

std::vector<Piece> single(uint64_t length) { return {{3, 5, length}}; }

std::vector<Piece> apart(uint64_t count, uint64_t length) {
  std::vector<Piece> pieces;
  for (uint64_t i = 0; i < count; ++i)
    pieces.push_back({i * (length + 8), i * (length + 40), length});
  return pieces;
}

const std::vector<Way> kOneWay = {Way::LISTS};
const std::vector<Way> kAllWays = {Way::LISTS, Way::ROWS, Way::MERGED, Way::UNMERGED};
const std::vector<Way> kIndexed = {Way::ROWS, Way::MERGED, Way::UNMERGED};

const std::vector<Shape>& shapes() {
  static const auto& table = *new std::vector<Shape>{
      {"Nothing", [](OpType, const BackendUnderTest&) { return single(0); }, kAllWays},
      {"OneByte", [](OpType, const BackendUnderTest&) { return single(1); }, kAllWays},
      {"AlmostAPage", [](OpType, const BackendUnderTest&) { return single(4095); }, kAllWays},
      {"TheLargest",
       [](OpType, const BackendUnderTest& backend) { return single(backend.largest); }, kOneWay},
      {"ManyNeighbours",
       [](OpType, const BackendUnderTest&) {
         std::vector<Piece> pieces;
         for (uint64_t i = 0; i < kMany; ++i) pieces.push_back({7 + i * 64, 9 + i * 64, 64});
         return pieces;
       },
       kIndexed},
      {"ManyApart", [](OpType, const BackendUnderTest&) { return apart(kMany, 72); }, kIndexed},
      {"ManyShuffled",
       [](OpType, const BackendUnderTest&) {
         auto local = apart(kMany, 48), remote = local;
         std::mt19937 random(1);
         std::ranges::shuffle(local, random);
         std::ranges::shuffle(remote, random);
         for (size_t i = 0; i < kMany; ++i) local[i].remote = remote[i].remote;
         return local;
       },
       kIndexed},
      {"OddSizes",
       [](OpType, const BackendUnderTest&) {
         std::vector<Piece> pieces;
         uint64_t local = 1, remote = 3;
         for (uint64_t i = 0; i < 500; ++i) {
           const uint64_t length = 1 + i * 37 % 5000;
           pieces.push_back({local, remote, length});
           local += length + i % 3;
           remote += length + i % 2;
         }
         return pieces;
       },
       kAllWays},
      {"EmptyPiecesAmongOthers",
       [](OpType, const BackendUnderTest&) {
         std::vector<Piece> pieces;
         for (uint64_t i = 0; i < 200; ++i) pieces.push_back({i * 32, i * 32, i % 3 * 16});
         return pieces;
       },
       kAllWays},
      {"OneSourceForAll",  // spread to many places
       [](OpType op, const BackendUnderTest&) {
         std::vector<Piece> pieces = apart(100, 256);
         for (Piece& piece : pieces) (op == OpType::WRITE ? piece.local : piece.remote) = 11;
         return pieces;
       },
       kAllWays},
      {"ThePieceTwice",
       [](OpType, const BackendUnderTest&) {
         std::vector<Piece> pieces = apart(50, 128), again = pieces;
         pieces.insert(pieces.end(), again.begin(), again.end());
         return pieces;
       },
       kAllWays},
  };
  return table;
}

uint64_t localEnd(const std::vector<Piece>& pieces) {
  uint64_t end = 0;
  for (const Piece& piece : pieces) end = std::max(end, piece.local + piece.length);
  return end;
}

uint64_t remoteEnd(const std::vector<Piece>& pieces) {
  uint64_t end = 0;
  for (const Piece& piece : pieces) end = std::max(end, piece.remote + piece.length);
  return end;
}

// ---- strided lists: rows of {address, length, device, stride, blocks} -----------------------

// A row as offsets; expands to blocks.
struct StridedRow {
  uint64_t offset, length, stride, blocks;
};

std::vector<uint64_t> expand(const std::vector<StridedRow>& rows) {
  std::vector<uint64_t> offsets;
  for (const StridedRow& row : rows)
    for (uint64_t i = 0; i < row.blocks; ++i) offsets.push_back(row.offset + i * row.stride);
  return offsets;
}

std::vector<uint64_t> numbers(const std::vector<StridedRow>& rows, const MemDescriptor& whole) {
  std::vector<uint64_t> table;
  for (const StridedRow& row : rows)
    table.insert(table.end(),
                 {whole.address + row.offset, row.length, whole.device, row.stride, row.blocks});
  return table;
}

// Two rows here, four there: block i belongs to block i all the same.
const std::vector<StridedRow> kLocalRows = {{5, 200, 500, 60}, {40'000, 200, 200, 40}};
const std::vector<StridedRow> kRemoteRows = {
    {0, 200, 300, 10}, {9'000, 200, 200, 30}, {20'000, 200, 1000, 20}, {60'000, 200, 201, 40}};
constexpr uint64_t kStridedLocal = 64'000, kStridedRemote = 80'000;

std::vector<Piece> stridedPieces() {
  const auto local = expand(kLocalRows), remote = expand(kRemoteRows);
  std::vector<Piece> pieces;
  for (size_t i = 0; i < local.size(); ++i) pieces.push_back({local[i], remote[i], 200});
  return pieces;
}

void movesStridedLists(const Given& given, OpType op, bool flat_remote) {
  Ends ends(given, kStridedLocal, kStridedRemote);
  const auto pieces = stridedPieces();
  const auto local = numbers(kLocalRows, ends.area->whole());
  std::vector<uint64_t> remote = numbers(kRemoteRows, ends.target->whole());
  Rows remote_table{given.backend.remote, remote.data(), kRemoteRows.size(), 5};
  if (flat_remote) {
    remote.clear();
    for (const Piece& piece : pieces) {
      const MemDescriptor part = ends.target->part(piece.remote, piece.length);
      remote.insert(remote.end(), {part.address, part.length, part.device});
    }
    remote_table = {given.backend.remote, remote.data(), pieces.size(), 3};
  }
  const Rows local_table{given.backend.local, local.data(), kLocalRows.size(), 5};
  const Transfer transfer = ends.agent->prepareTransfer(op, local_table, remote_table,
                                                        ends.target->name(), ends.options());
  checkMove(ends, op, pieces, [&] {
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  });
}

void movesChosenBlocks(const Given& given, OpType op, bool merge) {
  Ends ends(given, kStridedLocal, kStridedRemote);
  const auto all = stridedPieces();
  const auto local = numbers(kLocalRows, ends.area->whole());
  const auto remote = numbers(kRemoteRows, ends.target->whole());
  const Side local_side = ends.agent->prepareSide(
      "", {given.backend.local, local.data(), kLocalRows.size(), 5}, {given.backend.name});
  const Side remote_side = ends.agent->prepareSide(
      ends.target->name(), {given.backend.remote, remote.data(), kRemoteRows.size(), 5},
      {given.backend.name});
  // Some in a row, some alone, some backwards; across the ends of rows.
  std::vector<int32_t> local_indices, remote_indices;
  for (int32_t i : {0, 1, 2, 3, 58, 59, 60, 61, 62, 99, 98, 97, 30, 10}) local_indices.push_back(i);
  for (int32_t i : {9, 10, 11, 12, 39, 40, 41, 42, 43, 60, 61, 62, 5, 99})
    remote_indices.push_back(i);
  std::vector<Piece> pieces;
  for (size_t i = 0; i < local_indices.size(); ++i)
    pieces.push_back({all[static_cast<size_t>(local_indices[i])].local,
                      all[static_cast<size_t>(remote_indices[i])].remote, 200});
  TransferOptions options = ends.options();
  options.merge = merge;
  const Transfer transfer =
      ends.agent->makeTransfer(op, local_side, local_indices.data(), remote_side,
                               remote_indices.data(), local_indices.size(), options);
  checkMove(ends, op, pieces, [&] {
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  });
}

// ---- one handle, many posts -----------------------------------------------------------------

void movesWhatIsThereAtEachPost(const Given& given, OpType op) {
  constexpr uint64_t kSize = 10'000;
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(op, kSize, ends.options());
  for (uint64_t round = 0; round < 50; ++round) {
    const Bytes sent = pattern(100 + round, kSize);
    if (op == OpType::WRITE)
      ends.area->write(0, sent);
    else
      ends.target->write(0, sent);
    ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
    const Bytes came =
        op == OpType::WRITE ? ends.target->read(0, kSize) : ends.area->read(0, kSize);
    ASSERT_EQ(difference(sent, came), "") << "in round " << round;
  }
}

void movesBetweenSeveralRegistrations(const Given& given, OpType op) {
  // A transfer whose pieces lie in memory that was registered piecemeal.
  Ends ends(given, 4096, 40 * 1024);
  std::vector<std::unique_ptr<Area>> areas;
  std::vector<MemDescriptor> local, remote;
  for (uint64_t i = 0; i < 10; ++i) {
    areas.push_back(Area::make(given.backend.local, 4000, given.backend.local_device));
    areas.back()->write(0, pattern(i, 4000));
    ends.agent->registerMemory({areas.back()->whole()}, given.backend.name.c_str());
    local.push_back(areas.back()->part(i, 2000));
    remote.push_back(ends.target->part(i * 4096, 2000));
  }
  ends.target->write(0, pattern(99, 40 * 1024));
  const Transfer transfer =
      ends.agent->prepareTransfer(op, local, remote, ends.target->name(), ends.options());
  ASSERT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  for (uint64_t i = 0; i < 10; ++i)
    EXPECT_EQ(difference(areas[i]->read(i, 2000), ends.target->read(i * 4096, 2000)), "")
        << "area " << i;
  // They go before their agent does.
  ends.agent->releaseTransfer(transfer);
  for (const auto& area : areas)
    ends.agent->deregisterMemory({area->whole()}, {given.backend.name});
}

}  // namespace

std::vector<Case> dataCases() {
  std::vector<Case> cases;
  for (const OpType op : {OpType::WRITE, OpType::READ}) {
    const std::string verb = op == OpType::WRITE ? "Writes" : "Reads";
    for (const Shape& shape : shapes())
      for (const Way way : shape.ways)
        cases.push_back({verb + shape.name + "_" + wayName(way), kNothing,
                         [&shape, op, way](const Given& given) {
                           const auto pieces = shape.pieces(op, given.backend);
                           // Some room behind the last piece, to see what is written beyond.
                           Ends ends(given, localEnd(pieces) + 100, remoteEnd(pieces) + 100);
                           moveAndCheck(ends, op, pieces, way);
                         }});
    cases.push_back({verb + "StridedLists", kNothing,
                     [op](const Given& given) { movesStridedLists(given, op, false); }});
    cases.push_back({verb + "StridedListsAgainstFlatOnes", kNothing,
                     [op](const Given& given) { movesStridedLists(given, op, true); }});
    for (const bool merge : {true, false})
      cases.push_back({verb + "ChosenBlocksOfStridedLists_" + (merge ? "Merged" : "Unmerged"),
                       kNothing,
                       [op, merge](const Given& given) { movesChosenBlocks(given, op, merge); }});
    cases.push_back({verb + "WhatIsThereAtEachPost", kNothing,
                     [op](const Given& given) { movesWhatIsThereAtEachPost(given, op); }});
    cases.push_back({verb + "MemoryOfSeveralRegistrations", kNothing,
                     [op](const Given& given) { movesBetweenSeveralRegistrations(given, op); }});
  }
  return cases;
}

}  // namespace nixl::conformance
