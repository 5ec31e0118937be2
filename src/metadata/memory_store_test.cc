#include "metadata/memory_store.h"

#include "metadata/store_suite.h"

namespace nixl::metadata {
namespace {

const bool registered = registerStoreSuite({"Memory", [] {
                                              static int number = 0;
                                              return "memory:" + std::to_string(++number);
                                            }});

TEST(MemoryStore, ForgetsWhenTheLastOfItsNameIsClosed) {
  auto valueIn = [](Store& store) {
    StoreCase::Answer<StoreEntry> answer;
    store.get("a", StoreCase::soon(), answer.callback());
    return answer.next().has_value();
  };
  auto first = openStore("memory:forgets"), second = openStore("memory:forgets");
  StoreCase::Answer<Store::Revision> put;
  (*first)->put("a", "1", {}, StoreCase::soon(), put.callback());
  ASSERT_TRUE(put.next().has_value());
  first->reset();
  EXPECT_TRUE(valueIn(**second));
  second->reset();
  EXPECT_FALSE(valueIn(**openStore("memory:forgets")));
}

TEST(MemoryStore, SaysWhenAWatchWouldMissErasedKeys) {
  auto store = openStore("memory:tombstones");
  StoreCase::Answer<Store::Revision> answer;
  uint64_t first = 0;
  for (int i = 0; i < 10'010; ++i) {
    std::string key = std::to_string(i);
    (*store)->put(key, "", {}, StoreCase::soon(), answer.callback());
    auto revision = answer.next();
    ASSERT_TRUE(revision.has_value());
    if (first == 0) first = *revision;
    (*store)->erase(key, StoreCase::soon(), answer.callback());
    ASSERT_TRUE(answer.next().has_value());
  }
  StoreCase::Changes changes;
  (*store)->watch("", first, changes.callback());
  EXPECT_EQ(changes.next().status().code(), Errc::NOT_FOUND);
}

TEST(OpenStore, NamesTheKindsThereAre) {
  auto store = openStore("redis:x");
  ASSERT_FALSE(store.has_value());
  EXPECT_EQ(store.error().message(),
            "open store \"redis:x\": no such kind of store; use memory:NAME or dir:PATH");
}

}  // namespace
}  // namespace nixl::metadata
