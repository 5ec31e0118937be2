// What is refused, before any byte moves, and with which code.

#include <algorithm>
#include <array>

#include "cases.h"

namespace nixl::conformance {

namespace {

constexpr uint64_t kSize = 64 * 1024;

using List = std::vector<MemDescriptor>;

Errc prepareCode(Ends& ends, const List& local, const List& remote) {
  return codeOf([&] {
    ends.agent->prepareTransfer(OpType::WRITE, local, remote, ends.target->name(), ends.options());
  });
}

Errc sideCode(Ends& ends, const std::string& peer, std::vector<uint64_t> table, unsigned columns) {
  const MemType kind = peer.empty() ? ends.backend.local : ends.backend.remote;
  const Rows rows{kind, table.data(), table.size() / columns, columns};
  return codeOf([&] { ends.agent->prepareSide(peer, rows, {ends.backend.name}); });
}

void agreesWithItsFacts(const Given& given) {
  Ends ends(given, kSize, kSize);
  const BackendUnderTest& backend = given.backend;
  const BackendInfo info = ends.agent->backendInfo(backend.name);
  EXPECT_EQ(info.name, backend.name);
  EXPECT_EQ(info.local, backend.within_agent);
  EXPECT_EQ(info.remote, backend.remote_agents);
  EXPECT_EQ(info.notifications, backend.notifications);
  EXPECT_EQ(info.params, backend.params);
  for (const MemType kind : {backend.local, backend.remote})
    EXPECT_NE(std::ranges::find(info.mems, kind), info.mems.end()) << memTypeName(kind);
  EXPECT_FALSE(info.version.empty());
  EXPECT_FALSE(info.summary.empty());
  EXPECT_EQ(ends.agent->backends(), (std::vector<std::string>{backend.name}));
  // Every option that was given is one that the plugin knows.
  for (const auto& [name, value] : backend.params)
    EXPECT_TRUE(pluginInfo(backend.name).params.contains(name)) << name;
}

void refusesASecondOfItsKind(const Given& given) {
  Ends ends(given, kSize, kSize);
  EXPECT_EQ(codeOf([&] { ends.agent->createBackend(given.backend.name, given.backend.params); }),
            Errc::INVALID_PARAM);
}

void refusesMemoryThatIsNotRegistered(const Given& given) {
  Ends ends(given, kSize, kSize);
  const auto other = Area::make(given.backend.local, kSize, given.backend.local_device);
  const MemDescriptor good_local = ends.area->part(0, 100), good_remote = ends.target->part(0, 100);
  EXPECT_EQ(prepareCode(ends, {other->part(0, 100)}, {good_remote}), Errc::NOT_FOUND);
  // One byte beyond the end, and one before the begin.
  EXPECT_EQ(prepareCode(ends, {ends.area->part(kSize - 99, 100)}, {good_remote}), Errc::NOT_FOUND);
  EXPECT_EQ(prepareCode(ends, {good_local}, {ends.target->part(kSize - 99, 100)}), Errc::NOT_FOUND);
  if (good_remote.address > 0) {
    MemDescriptor before = good_remote;
    before.address -= 1;
    EXPECT_EQ(prepareCode(ends, {good_local}, {before}), Errc::NOT_FOUND);
  }
  // A good one before a bad one changes nothing.
  EXPECT_EQ(prepareCode(ends, {good_local, other->part(0, 100)}, {good_remote, good_remote}),
            Errc::NOT_FOUND);
  // The very end is inside.
  EXPECT_EQ(
      prepareCode(ends, {ends.area->part(kSize - 100, 100)}, {ends.target->part(kSize - 100, 100)}),
      Errc::OK);
}

void refusesRangesThatWrap(const Given& given) {
  Ends ends(given, kSize, kSize);
  const MemDescriptor l = ends.area->whole(), r = ends.target->whole();
  const auto refused = [](Errc code) {
    return code == Errc::NOT_FOUND || code == Errc::INVALID_PARAM;
  };
  for (const std::string& peer : {std::string(), ends.target->name()}) {
    const MemDescriptor& whole = peer.empty() ? l : r;
    const std::vector<std::array<uint64_t, 3>> flat = {
        {UINT64_MAX, 2, whole.device},
        {UINT64_MAX - 10, 100, whole.device},
        {whole.address, UINT64_MAX, whole.device},
        {whole.address, UINT64_MAX - whole.address + 1, whole.device},
        {whole.address + 8, UINT64_MAX - 7, whole.device},  // its end is the begin
    };
    for (const auto& row : flat)
      EXPECT_TRUE(refused(sideCode(ends, peer, {row.begin(), row.end()}, 3)))
          << (peer.empty() ? "local " : "remote ") << row[0] << " " << row[1];
    const std::vector<std::array<uint64_t, 5>> strided = {
        {whole.address, 16, whole.device, UINT64_MAX, 2},
        {whole.address, 16, whole.device, uint64_t{1} << 63, 3},  // the third block is the first
        {whole.address, 16, whole.device, 16, UINT64_MAX / 16 + 2},
        {whole.address, 16, whole.device, uint64_t{1} << 32, (uint64_t{1} << 32) + 1},
        {whole.address, 16, whole.device, 16, kSize / 16 + 1},  // one block too many
    };
    for (const auto& row : strided)
      EXPECT_TRUE(refused(sideCode(ends, peer, {row.begin(), row.end()}, 5)))
          << (peer.empty() ? "local " : "remote ") << row[3] << " x " << row[4];
  }
}

void refusesListsThatDiffer(const Given& given) {
  Ends ends(given, kSize, kSize);
  const auto l = [&](uint64_t length) { return ends.area->part(0, length); };
  const auto r = [&](uint64_t length) { return ends.target->part(0, length); };
  EXPECT_EQ(prepareCode(ends, {l(100)}, {r(101)}), Errc::INVALID_PARAM);
  EXPECT_EQ(prepareCode(ends, {l(100)}, {r(0)}), Errc::INVALID_PARAM);
  EXPECT_EQ(prepareCode(ends, {l(100), l(50)}, {r(150)}), Errc::INVALID_PARAM);
  EXPECT_EQ(prepareCode(ends, {l(100), l(50)}, {r(50), r(100)}), Errc::INVALID_PARAM);
}

void refusesEmptyLists(const Given& given) {
  Ends ends(given, kSize, kSize);
  EXPECT_EQ(prepareCode(ends, {}, {}), Errc::NOT_FOUND);
  EXPECT_EQ(sideCode(ends, "", {}, 3), Errc::NOT_FOUND);
  EXPECT_EQ(sideCode(ends, ends.target->name(), {}, 3), Errc::NOT_FOUND);
}

void refusesIndicesThatDoNotFit(const Given& given) {
  Ends ends(given, kSize, kSize);
  const auto table = [](const MemDescriptor& whole) {
    return std::vector<uint64_t>{whole.address,       100, whole.device,
                                 whole.address + 100, 100, whole.device,
                                 whole.address + 200, 60,  whole.device};
  };
  const auto local = table(ends.area->whole()), remote = table(ends.target->whole());
  const Side here = ends.agent->prepareSide("", {given.backend.local, local.data(), 3, 3});
  const Side there =
      ends.agent->prepareSide(ends.target->name(), {given.backend.remote, remote.data(), 3, 3});
  const auto code = [&](Side a, std::vector<int32_t> ia, Side b, std::vector<int32_t> ib) {
    return codeOf([&] {
      ends.agent->makeTransfer(OpType::WRITE, a, ia.data(), b, ib.data(), ia.size(),
                               ends.options());
    });
  };
  EXPECT_EQ(code(here, {0, 1, 2}, there, {1, 0, 2}), Errc::OK);
  EXPECT_EQ(code(here, {3}, there, {0}), Errc::INVALID_PARAM);
  EXPECT_EQ(code(here, {0}, there, {3}), Errc::INVALID_PARAM);
  EXPECT_EQ(code(here, {-1}, there, {0}), Errc::INVALID_PARAM);
  EXPECT_EQ(code(here, {0}, there, {INT32_MIN}), Errc::INVALID_PARAM);
  EXPECT_EQ(code(here, {0}, there, {2}), Errc::INVALID_PARAM);  // lengths differ
  EXPECT_EQ(code(here, {}, there, {}), Errc::INVALID_PARAM);
  EXPECT_EQ(code(there, {0}, here, {0}), Errc::INVALID_PARAM);  // sides swapped
  ends.agent->releaseSide(here);
  EXPECT_EQ(code(here, {0}, there, {0}), Errc::INVALID_PARAM);
  EXPECT_EQ(codeOf([&] { ends.agent->releaseSide(here); }), Errc::INVALID_PARAM);
}

void refusesPeersThatItHasNotMet(const Given& given) {
  Ends ends(given, kSize, kSize);
  const MemDescriptor l = ends.area->part(0, 10), r = ends.target->part(0, 10);
  EXPECT_EQ(codeOf([&] {
              ends.agent->prepareTransfer(OpType::WRITE, List{l}, List{r}, "nobody",
                                          ends.options());
            }),
            Errc::NOT_FOUND);
  EXPECT_EQ(codeOf([&] { ends.agent->invalidatePeer("nobody"); }), Errc::NOT_FOUND);
  EXPECT_FALSE(ends.agent->checkPeer("nobody"));
  EXPECT_TRUE(ends.agent->checkPeer(ends.target->name()));
}

void forgetsHandlesThatWereReleased(const Given& given) {
  Ends ends(given, kSize, kSize);
  const Transfer transfer = ends.prepare(OpType::WRITE, 100, ends.options());
  EXPECT_EQ(ends.agent->checkTransfer(transfer), XferState::PREPARED);
  ends.agent->releaseTransfer(transfer);
  for (const Transfer bad : {transfer, Transfer{}, Transfer{UINT64_MAX}}) {
    EXPECT_EQ(codeOf([&] { ends.agent->checkTransfer(bad); }), Errc::INVALID_PARAM);
    EXPECT_EQ(codeOf([&] { ends.agent->postTransfer(bad); }), Errc::INVALID_PARAM);
    EXPECT_EQ(codeOf([&] { ends.agent->cancelTransfer(bad); }), Errc::INVALID_PARAM);
    EXPECT_EQ(codeOf([&] { ends.agent->releaseTransfer(bad); }), Errc::INVALID_PARAM);
  }
}

void countsMemoryThatIsRegisteredTwice(const Given& given) {
  Ends ends(given, kSize, kSize);
  // The same again, and a part of it: either may go without taking the other with it.
  const Memory again = ends.agent->registerMemory({ends.area->whole()}, given.backend.name.c_str());
  const Memory part =
      ends.agent->registerMemory({ends.area->part(100, 1000)}, given.backend.name.c_str());
  ends.agent->deregisterMemory(again);
  ends.agent->deregisterMemory(part);
  const Transfer transfer = ends.prepare(OpType::WRITE, kSize, ends.options());
  EXPECT_EQ(ends.postAndWait(transfer), XferState::DONE) << ends.errorOf(transfer);
  EXPECT_EQ(codeOf([&] { ends.agent->deregisterMemory(part); }), Errc::INVALID_PARAM);
  EXPECT_EQ(
      codeOf([&] { ends.agent->deregisterMemory({ends.area->part(1, 10)}, {given.backend.name}); }),
      Errc::NOT_FOUND);
}

}  // namespace

std::vector<Case> argumentCases() {
  return {
      {"AgreesWithItsFacts", kNothing, agreesWithItsFacts},
      {"RefusesASecondOfItsKind", kNothing, refusesASecondOfItsKind},
      {"RefusesMemoryThatIsNotRegistered", kNothing, refusesMemoryThatIsNotRegistered},
      {"RefusesRangesThatWrap", kNothing, refusesRangesThatWrap},
      {"RefusesListsThatDiffer", kNothing, refusesListsThatDiffer},
      {"RefusesEmptyLists", kNothing, refusesEmptyLists},
      {"RefusesIndicesThatDoNotFit", kNothing, refusesIndicesThatDoNotFit},
      {"RefusesPeersThatItHasNotMet", kNothing, refusesPeersThatItHasNotMet},
      {"ForgetsHandlesThatWereReleased", kNothing, forgetsHandlesThatWereReleased},
      {"CountsMemoryThatIsRegisteredTwice", kNothing, countsMemoryThatIsRegisteredTwice},
  };
}

}  // namespace nixl::conformance
