#include "core/registry.h"

#include <gtest/gtest.h>

namespace nixl::core {
namespace {

std::shared_ptr<Region> region(uint64_t address, uint64_t length, MemType type = MemType::DRAM,
                               uint64_t device = 0) {
  static uintptr_t handle = 0;
  auto made = std::make_shared<Region>();
  made->type = type;
  made->address = address;
  made->length = length;
  made->device = device;
  made->handle = reinterpret_cast<void*>(++handle);
  return made;
}

DescList list(std::vector<uint64_t> rows, MemType type = MemType::DRAM, unsigned columns = 3) {
  return *DescList::fromRows({type, rows.data(), rows.size() / columns, columns});
}

MemDescriptor range(uint64_t address, uint64_t length) { return {address, length, 0}; }

TEST(Registry, ResolvesToOneRegionOrOneADescriptor) {
  Registry registry;
  auto a = region(0, 4096), b = region(8192, 4096);
  registry.add({a, b});
  auto one = registry.resolve(list({0, 10, 0, 100, 10, 0}));
  ASSERT_TRUE(one.has_value());
  EXPECT_EQ(one->region, std::vector<uint32_t>{0});
  EXPECT_EQ(one->handles, std::vector<void*>{a->handle});
  auto two = registry.resolve(list({8192, 10, 0, 0, 10, 0, 8200, 10, 0}));
  ASSERT_TRUE(two.has_value());
  EXPECT_EQ(two->region, (std::vector<uint32_t>{0, 1, 0}));
  EXPECT_EQ(two->handles, (std::vector<void*>{b->handle, a->handle}));
}

TEST(Registry, EqualStepsAcrossTwoRegionsAreLookedUpOneByOne) {
  Registry registry;
  registry.add({region(0, 4096), region(4096, 4096)});
  auto found = registry.resolve(list({0, 1024, 0, 2048, 1024, 0, 4096, 1024, 0, 6144, 1024, 0}));
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->region, (std::vector<uint32_t>{0, 0, 1, 1}));
  EXPECT_FALSE(registry.covers(list({0, 1024, 0, 3584, 1024, 0, 7168, 1024, 0})));
}

TEST(Registry, NamesTheDescriptorThatIsNotCovered) {
  Registry registry;
  registry.add({region(0, 4096)});
  auto missing = registry.resolve(list({0, 10, 0, 4090, 10, 0}));
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), Errc::NOT_FOUND);
  EXPECT_NE(missing.error().message().find("descriptor 1"), std::string::npos);
  EXPECT_FALSE(registry.resolve(list({0, 10, 0}, MemType::VRAM)).has_value());
}

TEST(Registry, AStridedRowLiesInOneRegion) {
  Registry registry;
  registry.add({region(0, 4096), region(4096, 4096)});
  EXPECT_TRUE(registry.covers(list({0, 16, 0, 1024, 4}, MemType::DRAM, 5)));
  EXPECT_FALSE(registry.covers(list({0, 16, 0, 1024, 5}, MemType::DRAM, 5)))
      << "no block spans two regions, but the row does";
  EXPECT_TRUE(registry.covers(list({4096, 1024, 0, 1024, 4}, MemType::DRAM, 5)));
}

TEST(Registry, CountsRepeatedRegistrations) {
  Registry registry;
  auto first = region(0, 4096);
  registry.add({first});
  EXPECT_EQ(registry.again(MemType::DRAM, 0, 4096, 0), first);
  EXPECT_EQ(registry.again(MemType::DRAM, 0, 4095, 0), nullptr);
  auto gone = registry.remove({range(0, 4096)});
  ASSERT_TRUE(gone.has_value());
  EXPECT_TRUE(gone->empty());
  EXPECT_TRUE(first->live);
  gone = registry.remove({range(0, 4096)});
  ASSERT_EQ(gone->size(), 1u);
  EXPECT_FALSE(first->live);
  EXPECT_FALSE(registry.has(MemType::DRAM));
}

TEST(Registry, AFailedRemovalChangesNothing) {
  Registry registry;
  registry.add({region(0, 4096)});
  EXPECT_FALSE(registry.remove({range(0, 4096), range(4096, 1)}).has_value());
  EXPECT_FALSE(registry.remove({range(0, 4096), range(0, 4096)}).has_value())
      << "the same element twice, registered once";
  EXPECT_TRUE(registry.covers(list({0, 4096, 0})));
}

TEST(Registry, FilesOfOneRangeStaySeparate) {
  Registry registry;
  registry.add({region(0, 0, MemType::FILE, 3)});
  EXPECT_EQ(registry.again(MemType::FILE, 0, 0, 3), nullptr);
  registry.add({region(0, 0, MemType::FILE, 3)});
  EXPECT_TRUE(registry.covers(list({1ull << 40, 1 << 20, 3}, MemType::FILE))) << "no bound";
  EXPECT_EQ(registry.remove({{0, 0, 3, MemType::FILE}})->size(), 1u);
  EXPECT_TRUE(registry.has(MemType::FILE));
}

}  // namespace
}  // namespace nixl::core
