#include "core/peers.h"

#include <gtest/gtest.h>

#include "nixl/backend.h"

namespace nixl::core {
namespace {

// An engine that only counts what is asked of it.
class Counting final : public BackendEngine {
 public:
  explicit Counting(const BackendArgs& args)
      : BackendEngine(args, backendFacts({MemType::DRAM}, NIXL_ENGINE_REMOTE | NIXL_ENGINE_NOTIF)) {}
  void* connect(std::string_view, std::string_view info, void*) override {
    if (info == "bad") throw BackendFailure(Errc::BACKEND, "cannot connect to that");
    ++connected;
    return this;
  }
  void disconnect(void*) override { --connected; }
  void* load(void*, MemType, std::string_view) override { return ++loaded, this; }
  void unload(void*) override { --loaded; }
  void* prepare(const nixl_plan&, void*) override { return this; }
  int32_t post(void*, const nixl_post&) override { return 0; }
  void release(void*) override {}

  inline static int connected = 0, loaded = 0;
};

const nixl_plugin* countingPlugin() {
  static const nixl_plugin plugin = [] {
    nixl_plugin p{};
    p.struct_size = sizeof p;
    p.name = "COUNTING";
    p.version = "1";
    p.summary = "";
    static const nixl_facts facts = backendFacts({MemType::DRAM}, 0);
    p.facts = &facts;
    p.create = &BackendGlue::create<Counting>;
    return p;
  }();
  return &plugin;
}

class Peers : public testing::Test {
 protected:
  void SetUp() override {
    Counting::connected = Counting::loaded = 0;
    backend_.name = "COUNTING";
    backend_.engine = *plugin::Engine::create(countingPlugin(), {&backend_.host, "me", {}, true, 0});
  }

  static metadata::Blob blob(uint8_t incarnation, uint64_t sequence = 1) {
    metadata::Blob blob;
    blob.agent = "peer";
    blob.incarnation.bytes[0] = incarnation;
    blob.created_unix_ns = 1'700'000'000'000'000'000ull + incarnation;
    blob.sequence = sequence;
    metadata::BackendSection section;
    section.backend = "COUNTING";
    section.has_connection = true;
    section.connection = "here";
    section.keys = {"key"};
    section.rows = {row(0, 4096, 1)};
    blob.sections.push_back(section);
    return blob;
  }
  static metadata::RegionRow row(uint64_t base, uint64_t length, uint64_t generation,
                                 uint32_t key = 0) {
    metadata::RegionRow row;
    row.base = base;
    row.length = row.stride = length;
    row.generation = generation;
    row.key = key;
    return row;
  }
  static DescList list(uint64_t address, uint64_t length) {
    const uint64_t row[] = {address, length, 0};
    return *DescList::fromRows({MemType::DRAM, row, 1, 3});
  }

  Status load(const metadata::Blob& blob) {
    auto known = table_.current(blob);
    if (!known.has_value()) return known.error();
    if (*known) return (*known)->merge(blob, {&backend_});
    auto fresh = std::make_shared<Peer>(blob.agent, blob);
    NIXL_TRY(fresh->merge(blob, {&backend_}));
    auto adopted = table_.adopt(fresh);
    if (!adopted.has_value()) return adopted.error();
    if (adopted->replaced) adopted->replaced->retire();
    return {};
  }

  Backend backend_;
  PeerTable table_;
};

TEST_F(Peers, OneIncarnationMerges) {
  ASSERT_TRUE(load(blob(1)).ok());
  auto peer = table_.find("peer");
  auto more = blob(1, 2);
  more.partial = true;
  more.sections[0].rows = {row(8192, 4096, 2)};
  ASSERT_TRUE(load(more).ok());
  EXPECT_EQ(table_.find("peer"), peer);
  EXPECT_EQ(Counting::connected, 1);
  EXPECT_TRUE(peer->covers(backend_, list(0, 4096)));
  EXPECT_TRUE(peer->covers(backend_, list(8192, 4096)));
}

TEST_F(Peers, AnotherIncarnationTakesOverAndTheFormerIsRefused) {
  ASSERT_TRUE(load(blob(1)).ok());
  auto former = table_.find("peer");
  ASSERT_TRUE(load(blob(2)).ok());
  EXPECT_NE(table_.find("peer"), former);
  EXPECT_FALSE(former->gate.open());
  EXPECT_EQ(Counting::connected, 1);
  const Status late = load(blob(1));
  EXPECT_EQ(late.code(), Errc::NOT_ALLOWED);
  EXPECT_NE(late.message().find("2023-11-14"), std::string::npos) << late.message();
}

TEST_F(Peers, APeerThatCannotBeUsedIsNeverFound) {
  auto bad = blob(1);
  bad.sections[0].connection = "bad";
  EXPECT_FALSE(load(bad).ok());
  EXPECT_EQ(table_.find("peer"), nullptr);
}

TEST_F(Peers, TwoThreadsThatBringOneIncarnationAgree) {
  auto one = std::make_shared<Peer>("peer", blob(1)), two = std::make_shared<Peer>("peer", blob(1));
  EXPECT_EQ(table_.adopt(one)->peer, one);
  auto second = table_.adopt(two);
  EXPECT_EQ(second->peer, one);
  EXPECT_EQ(second->replaced, nullptr);
}

TEST_F(Peers, APeerThatWasRemovedMayComeBack) {
  ASSERT_TRUE(load(blob(1)).ok());
  table_.remove("peer")->retire();
  EXPECT_EQ(Counting::connected, 0);
  EXPECT_TRUE(load(blob(1)).ok()) << "down or invalidated is not replaced";
  EXPECT_EQ(Counting::connected, 1);
}

TEST_F(Peers, AFormerHolderOfANameIsKnownByItsIncarnation) {
  EXPECT_FALSE(table_.former(blob(1).incarnation)) << "nobody was replaced";
  ASSERT_TRUE(load(blob(1)).ok());
  ASSERT_TRUE(load(blob(2)).ok());
  const auto first = table_.former(blob(1).incarnation), again = table_.former(blob(1).incarnation);
  ASSERT_TRUE(first && again);
  EXPECT_TRUE(first->first);
  EXPECT_FALSE(again->first);
  EXPECT_EQ(first->created_unix_ns, blob(1).created_unix_ns);
  EXPECT_FALSE(table_.former(blob(2).incarnation)) << "the current one";
}

TEST_F(Peers, ARemovedPeerDoesNotComeBackOverItsSuccessor) {
  ASSERT_TRUE(load(blob(1)).ok());
  table_.remove("peer")->retire();
  ASSERT_TRUE(load(blob(2)).ok());
  EXPECT_EQ(load(blob(1)).code(), Errc::NOT_ALLOWED) << "the successor must not lose its name";
  EXPECT_TRUE(load(blob(2)).ok());
}

TEST_F(Peers, LoadingAgainAThousandTimesAddsNothing) {
  for (uint64_t i = 1; i <= 1000; ++i) ASSERT_TRUE(load(blob(1, i)).ok());
  auto* link = table_.find("peer")->through(backend_);
  EXPECT_EQ(link->sections[0].index.size(), 1u);
  EXPECT_EQ(link->sections[0].keys.size(), 1u);
}

TEST_F(Peers, ALowerGenerationNeverReplacesAHigher) {
  auto newer = blob(1, 5);
  newer.sections[0].keys = {"new key"};
  newer.sections[0].rows[0].generation = 9;
  ASSERT_TRUE(load(newer).ok());
  ASSERT_TRUE(load(blob(1, 1)).ok()) << "an old blob that was late";
  auto& section = table_.find("peer")->through(backend_)->sections[0];
  EXPECT_EQ(section.index.at(0).generation, 9u);
  EXPECT_EQ(section.index.at(0).value, section.key_numbers.at("new key"));
}

TEST_F(Peers, AFewKeysAreLoadedAtOnceAndOthersAtFirstUse) {
  auto many = blob(1);
  auto& section = many.sections[0];
  section.rows.clear();
  section.keys.clear();
  for (uint32_t i = 0; i < 20; ++i) {
    section.keys.push_back("key " + std::to_string(i));
    section.rows.push_back(row(4096 * i, 4096, i, i));
  }
  ASSERT_TRUE(load(many).ok());
  EXPECT_EQ(Counting::loaded, 16);
  ASSERT_TRUE(load(many).ok());
  EXPECT_EQ(Counting::loaded, 16) << "again";
  ASSERT_TRUE(table_.find("peer")->resolve(backend_, list(4096 * 19, 64)).has_value());
  EXPECT_EQ(Counting::loaded, 17);
}

TEST_F(Peers, KeysAreHeldByLists) {
  ASSERT_TRUE(load(blob(1)).ok());
  auto peer = table_.find("peer");
  EXPECT_EQ(Counting::loaded, 1);
  {
    auto resolution = peer->resolve(backend_, list(0, 64));
    ASSERT_TRUE(resolution.has_value());
    EXPECT_EQ(Counting::loaded, 1);
    table_.remove(peer);
    peer->retire();
    peer.reset();
    EXPECT_EQ(Counting::loaded, 1) << "a list still refers to it";
  }
  EXPECT_EQ(Counting::loaded, 0);
}

TEST_F(Peers, DamagedRowsAreRefused) {
  auto wraps = blob(1);
  wraps.sections[0].rows[0].count = 3;
  wraps.sections[0].rows[0].stride = UINT64_MAX / 2;
  EXPECT_EQ(load(wraps).code(), Errc::MISMATCH);
  auto key = blob(2);
  key.sections[0].rows[0].key = 7;
  EXPECT_EQ(load(key).code(), Errc::MISMATCH);
}

TEST_F(Peers, OtherConnectionsAreSaid) {
  auto foreign = blob(1);
  foreign.sections[0].backend = "UNKNOWN";
  EXPECT_EQ(load(foreign).code(), Errc::BACKEND);
  auto bad = blob(2);
  bad.sections[0].connection = "bad";
  EXPECT_EQ(load(bad).code(), Errc::BACKEND);
  ASSERT_TRUE(load(blob(3)).ok());
  auto moved = blob(3, 2);
  moved.sections[0].connection = "elsewhere";
  EXPECT_EQ(load(moved).code(), Errc::NOT_ALLOWED);
}

}  // namespace
}  // namespace nixl::core
