#include "plugin/engine.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "plugin/manager.h"

extern const char* const kBadPluginsFolder;

namespace nixl::plugin {
namespace {

using namespace std::chrono_literals;

// ---- an engine whose table each test changes as it likes ------------------------------------

struct Seen {
  std::string agent;
  Params options;
  bool progress_thread = false;
  unsigned threads_wanted = 0;
  int facts = 0, shutdowns = 0, destroys = 0, forks = 0;
  uint64_t shutdown_deadline = 0;
};
Seen seen;

nixl_engine_ops ops;
nixl_facts facts_of_engine;

int32_t fail(nixl_error* err, int32_t code, const char* text) {
  std::snprintf(err->text, err->capacity, "%s", text);
  return code;
}

int32_t create(const nixl_engine_args* args, void** engine, const nixl_engine_ops** table,
               nixl_error*) {
  seen.agent.assign(args->agent, args->agent_size);
  for (uint32_t i = 0; i < args->option_count; ++i)
    seen.options[args->option_names[i]] = args->option_values[i];
  seen.progress_thread = args->progress_thread != 0;
  seen.threads_wanted = args->threads_wanted;
  *engine = &seen;
  *table = &ops;
  return 0;
}

nixl_plugin plugin;

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    seen = {};
    facts_of_engine = {};
    facts_of_engine.struct_size = sizeof facts_of_engine;
    plugin = {};
    plugin.struct_size = sizeof plugin;
    plugin.name = "FAKE";
    plugin.create = &create;
    ops = {};
    ops.struct_size = sizeof ops;
    ops.destroy = [](void*) { ++seen.destroys; };
    ops.shutdown = [](void*, uint64_t deadline, nixl_error*) {
      ++seen.shutdowns;
      seen.shutdown_deadline = deadline;
      return 0;
    };
    ops.after_fork = [](void*) { ++seen.forks; };
    ops.facts = [](void*, nixl_facts* out) {
      ++seen.facts;
      *out = facts_of_engine;
    };
  }

  std::shared_ptr<Engine> make() { return Engine::create(&plugin, {}).value(); }
};

// ---- making it ------------------------------------------------------------------------------

TEST_F(EngineTest, IsMadeWithWhatTheAgentWasGiven) {
  CreateArgs args;
  args.agent = std::string("a\0b", 3);
  args.options = {{"depth", "16"}, {"empty", ""}};
  args.progress_thread = false;
  args.threads_wanted = 3;
  const auto engine = Engine::create(&plugin, args).value();
  EXPECT_EQ(engine->name(), "FAKE");
  EXPECT_EQ(seen.agent, args.agent);
  EXPECT_EQ(seen.options, args.options);
  EXPECT_FALSE(seen.progress_thread);
  EXPECT_EQ(seen.threads_wanted, 3u);
}

TEST_F(EngineTest, AsksForFactsOnce) {
  facts_of_engine.memory_kinds = 1u << static_cast<unsigned>(MemType::VRAM);
  facts_of_engine.flags = NIXL_ENGINE_REMOTE | NIXL_ENGINE_NOTIF;
  ops.notify = [](void*, void*, const void*, size_t, nixl_error*) { return 0; };
  const auto engine = make();
  EXPECT_TRUE(engine->supports(MemType::VRAM));
  EXPECT_FALSE(engine->supports(MemType::DRAM));
  EXPECT_TRUE(engine->remote());
  EXPECT_FALSE(engine->local());
  EXPECT_TRUE(engine->notifies());
  EXPECT_FALSE(engine->queries());
  EXPECT_EQ(engine->facts().alignment, 1u);  // none was given
  EXPECT_EQ(seen.facts, 1);
}

TEST_F(EngineTest, DoesNotClaimWhatItsTableLacks) {
  facts_of_engine.flags = NIXL_ENGINE_NOTIF | NIXL_ENGINE_QUERY;
  const auto engine = make();
  EXPECT_FALSE(engine->notifies());
  EXPECT_FALSE(engine->queries());
}

TEST_F(EngineTest, FactsOfAnOlderPluginAreReadNoFurtherThanTheyGo) {
  nixl_facts facts;
  std::memset(&facts, 0xff, sizeof facts);
  facts.struct_size = offsetof(nixl_facts, flags) + sizeof facts.flags;
  plugin.facts = &facts;
  EXPECT_EQ(factsOf(plugin).flags, facts.flags);
  EXPECT_EQ(factsOf(plugin).alignment, 0u);
  plugin.facts = nullptr;
  EXPECT_EQ(factsOf(plugin).flags, 0u);
}

TEST_F(EngineTest, TakesThePluginsFactsWhereTheEngineHasNone) {
  ops.facts = nullptr;
  nixl_facts facts{};
  facts.struct_size = sizeof facts;
  facts.flags = NIXL_ENGINE_LOCAL;
  plugin.facts = &facts;
  EXPECT_TRUE(make()->local());
}

TEST_F(EngineTest, IsNotMadeWhenThePluginSaysNo) {
  plugin.create = [](const nixl_engine_args*, void**, const nixl_engine_ops**, nixl_error* err) {
    return fail(err, -4, "no device matches mlx5_0");
  };
  const Status status = Engine::create(&plugin, {}).error();
  EXPECT_EQ(status.code(), Errc::NOT_FOUND);
  EXPECT_EQ(status.message(), "engine FAKE: create: no device matches mlx5_0");
}

TEST_F(EngineTest, IsNotMadeWithoutATable) {
  plugin.create = [](const nixl_engine_args*, void** engine, const nixl_engine_ops**, nixl_error*) {
    *engine = &seen;
    return 0;
  };
  EXPECT_EQ(Engine::create(&plugin, {}).error().code(), Errc::BACKEND);
}

TEST_F(EngineTest, IsNotMadeFromATableThatEndsTooEarly) {
  ops.struct_size = offsetof(nixl_engine_ops, destroy);
  EXPECT_EQ(Engine::create(&plugin, {}).error().code(), Errc::BACKEND);
}

TEST(Engine, WhoseConstructorThrowsIsASentence) {
  Manager manager({kBadPluginsFolder, true}, {});
  const auto throwing = manager.load("THROWINGENGINE");
  ASSERT_TRUE(throwing.has_value()) << throwing.error().message();
  const Status status = Engine::create(*throwing, {}).error();
  EXPECT_EQ(status.code(), Errc::BACKEND);
  EXPECT_EQ(status.message(), "engine THROWINGENGINE: create: the constructor gave up");
}

// ---- calling it -----------------------------------------------------------------------------

TEST_F(EngineTest, SaysWhichCallItLacks) {
  const auto engine = make();
  const nixl_post post{};
  const nixl_plan plan{};
  const std::pair<const char*, Status> calls[] = {
      {"connect", engine->connect("b", "", nullptr).status()},
      {"register_memory", engine->registerMemory({}, {})},
      {"deregister", engine->deregister({}, base::Deadline::never()).status()},
      {"load", engine->load(nullptr, MemType::DRAM, "").status()},
      {"allocate", engine->allocate(MemType::DRAM, 0, 1).status()},
      {"prepare", engine->prepare(plan, nullptr).status()},
      {"post", engine->post(nullptr, post).status()},
      {"quiesce", engine->quiesce(nullptr, nullptr, base::Deadline::never())},
      {"notify", engine->notify(nullptr, "")},
      {"storage", engine->storage(NIXL_STORAGE_STAT, {}, {})},
      {"cost", engine->cost(nullptr, {}).status()},
  };
  for (const auto& [call, status] : calls) {
    EXPECT_EQ(status.code(), Errc::NOT_SUPPORTED) << call;
    EXPECT_EQ(status.message(),
              "engine FAKE: " + std::string(call) + ": this engine cannot do that");
  }
}

TEST_F(EngineTest, DoesWithoutWhatMayBeMissing) {
  const auto engine = make();
  EXPECT_EQ(engine->localInfo().value(), "");
  EXPECT_EQ(engine->publicKey(nullptr).value(), "");
  EXPECT_EQ(engine->cancel(nullptr).value(), 1);
  EXPECT_EQ(engine->progress(1000), 0);
  EXPECT_EQ(engine->arm(), 0);
  EXPECT_TRUE(engine->waitFds().empty());
  EXPECT_EQ(engine->nextTimer(), NIXL_NEVER);
  EXPECT_EQ(engine->extension("nothing/1"), nullptr);
  engine->disconnect(nullptr);
  engine->unload(nullptr);
  engine->release(nullptr);
  engine->freeMemory(nullptr);
}

TEST_F(EngineTest, DoesNotReadBeyondTheEndOfAnOlderTable) {
  ops.progress = [](void*, uint64_t) { return int64_t{5}; };
  ops.next_timer = [](void*) { return uint64_t{7}; };
  ops.struct_size = offsetof(nixl_engine_ops, next_timer);
  const auto engine = make();
  EXPECT_EQ(engine->progress(1000), 5);
  EXPECT_EQ(engine->nextTimer(), NIXL_NEVER);
}

TEST_F(EngineTest, PassesWordsAndCodeOn) {
  ops.post = [](void*, void*, const nixl_post*, nixl_error* err) {
    err->native_code = 11;
    return fail(err, -10, "the peer\nhas gone");
  };
  const nixl_post post{};
  const Status status = make()->post(nullptr, post).error();
  EXPECT_EQ(status.code(), Errc::REMOTE_DISCONNECT);
  EXPECT_EQ(status.message(), "engine FAKE: post: the peer has gone (code 11)");
}

TEST_F(EngineTest, GivesWhatPostReturned) {
  ops.post = [](void*, void* request, const nixl_post*, nixl_error*) {
    return static_cast<int32_t>(reinterpret_cast<intptr_t>(request));
  };
  const auto engine = make();
  const nixl_post post{};
  EXPECT_EQ(engine->post(reinterpret_cast<void*>(0), post).value(), 0);
  EXPECT_EQ(engine->post(reinterpret_cast<void*>(1), post).value(), 1);
}

TEST_F(EngineTest, ContainsExceptions) {
  ops.post = [](void*, void*, const nixl_post*, nixl_error*) -> int32_t {
    throw std::runtime_error("oops");
  };
  ops.progress = [](void*, uint64_t) -> int64_t { throw std::runtime_error("oops"); };
  ops.arm = [](void*) -> int32_t { throw 1; };
  ops.next_timer = [](void*) -> uint64_t { throw 1; };
  ops.release = [](void*, void*) { throw 1; };
  ops.shutdown = [](void*, uint64_t, nixl_error*) -> int32_t { throw 1; };
  ops.after_fork = [](void*) { throw 1; };
  const auto engine = make();
  const nixl_post post{};
  EXPECT_EQ(engine->post(nullptr, post).error().code(), Errc::BACKEND);
  EXPECT_EQ(engine->progress(1), 0);
  EXPECT_EQ(engine->arm(), 1);
  EXPECT_EQ(engine->nextTimer(), NIXL_NEVER);
  engine->release(nullptr);
  engine->afterFork();
  EXPECT_EQ(engine->shutDown(base::Deadline::never()).code(), Errc::BACKEND);
}

TEST_F(EngineTest, RefusesANullPeer) {
  ops.connect = [](void*, const char*, size_t, const void*, size_t, void*, void**, nixl_error*) {
    return 0;
  };
  EXPECT_EQ(make()->connect("b", "", nullptr).error().code(), Errc::BACKEND);
}

TEST_F(EngineTest, HandsNamesAndBytesOver) {
  static std::string got;
  ops.connect = [](void*, const char* name, size_t name_size, const void* info, size_t info_size,
                   void*, void** peer, nixl_error*) {
    got =
        std::string(name, name_size) + "|" + std::string(static_cast<const char*>(info), info_size);
    *peer = &got;
    return 0;
  };
  ops.local_info = [](void*, const void** bytes, size_t* size, nixl_error*) {
    *bytes = "12\0 45";
    *size = 6;
    return 0;
  };
  const auto engine = make();
  EXPECT_EQ(engine->connect(std::string_view("x\0y", 3), "info", nullptr).value(), &got);
  EXPECT_EQ(got, std::string("x\0y|info", 8));
  EXPECT_EQ(engine->localInfo().value(), std::string_view("12\0 45", 6));
}

TEST_F(EngineTest, TakesNullBytesForNone) {
  ops.public_key = [](void*, void*, const void**, size_t* size, nixl_error*) {
    *size = 1000;
    return 0;
  };
  EXPECT_EQ(make()->publicKey(nullptr).value(), "");
}

TEST_F(EngineTest, FetchesAllWaitDescriptors) {
  ops.wait_fds = [](void*, int32_t* fds, uint32_t capacity) {
    for (uint32_t i = 0; i < capacity && i < 9; ++i) fds[i] = static_cast<int32_t>(100 + i);
    return 9u;
  };
  const auto fds = make()->waitFds();
  ASSERT_EQ(fds.size(), 9u);
  EXPECT_EQ(fds.front(), 100);
  EXPECT_EQ(fds.back(), 108);
}

TEST_F(EngineTest, DoesNotBelieveAnAbsurdNumberOfWaitDescriptors) {
  ops.wait_fds = [](void*, int32_t*, uint32_t) { return UINT32_MAX; };
  EXPECT_LE(make()->waitFds().size(), 1024u);
}

// ---- storage, costs -------------------------------------------------------------------------

TEST_F(EngineTest, CollectsFactsAboutStoredThings) {
  ops.storage = [](void*, uint32_t verb, const nixl_region*, uint64_t count, nixl_storage_emit emit,
                   void* context, nixl_error*) {
    EXPECT_EQ(verb, uint32_t{NIXL_STORAGE_STAT});
    EXPECT_EQ(count, 2u);
    emit(context, 0, "size", "4096");
    emit(context, 1, nullptr, nullptr);
    return 0;
  };
  std::vector<std::string> facts;
  const std::vector<nixl_region> regions(2);
  const Status status = make()->storage(
      NIXL_STORAGE_STAT, regions,
      [&](uint64_t index, std::string_view key, std::string_view value) {
        facts.push_back(std::to_string(index) + " " + std::string(key) + "=" + std::string(value));
      });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(facts, (std::vector<std::string>{"0 size=4096", "1 ="}));
}

TEST_F(EngineTest, RefusesFactsAboutWhatWasNotAsked) {
  ops.storage = [](void*, uint32_t, const nixl_region*, uint64_t count, nixl_storage_emit emit,
                   void* context, nixl_error*) {
    emit(context, count, "size", "1");
    return 0;
  };
  bool called = false;
  const std::vector<nixl_region> regions(1);
  const auto emit = [&](uint64_t, std::string_view, std::string_view) { called = true; };
  EXPECT_EQ(make()->storage(NIXL_STORAGE_STAT, regions, emit).code(), Errc::BACKEND);
  EXPECT_FALSE(called);
}

TEST_F(EngineTest, CarriesWhatTheReceiverThrowsPastTheEngine) {
  ops.storage = [](void*, uint32_t, const nixl_region*, uint64_t, nixl_storage_emit emit,
                   void* context, nixl_error*) noexcept {
    emit(context, 0, "size", "1");
    return 0;
  };
  const std::vector<nixl_region> regions(1);
  const auto emit = [](uint64_t, std::string_view, std::string_view) { throw std::bad_alloc(); };
  const auto engine = make();
  EXPECT_THROW((void)engine->storage(NIXL_STORAGE_STAT, regions, emit), std::bad_alloc);
}

TEST_F(EngineTest, GivesCostsThatCanBeCompared) {
  ops.cost = [](void*, void* peer, const nixl_plan_summary*, nixl_cost* out, nixl_error*) {
    out->reachable = 1;
    out->bytes_per_second = peer == nullptr ? 1e9 : NAN;
    std::memset(out->why, 'y', sizeof out->why);
    return 0;
  };
  const auto engine = make();
  const nixl_cost cost = engine->cost(nullptr, {}).value();
  EXPECT_EQ(cost.bytes_per_second, 1e9);
  EXPECT_EQ(std::strlen(cost.why), sizeof cost.why - 1);
  EXPECT_EQ(engine->cost(&seen, {}).error().code(), Errc::BACKEND);
}

// ---- one call at a time ---------------------------------------------------------------------

std::atomic<int> inside{0};
std::atomic<int> most_inside{0};
Engine* reentered = nullptr;

TEST_F(EngineTest, TakesTurnsWhereTheEngineWantsIt) {
  facts_of_engine.flags = NIXL_ENGINE_SERIAL;
  inside = most_inside = 0;
  ops.progress = [](void*, uint64_t) {
    const int now = ++inside;
    if (now > most_inside) most_inside = now;
    std::this_thread::sleep_for(100us);
    --inside;
    return int64_t{1};
  };
  const auto engine = make();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) engine->progress(1);
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(most_inside, 1);
}

TEST_F(EngineTest, LetsACallbackCallItsSerialEngine) {
  facts_of_engine.flags = NIXL_ENGINE_SERIAL;
  static int released = 0;
  released = 0;
  ops.progress = [](void*, uint64_t) {  // as if through the host: complete, and then release
    reentered->release(nullptr);
    return int64_t{1};
  };
  ops.release = [](void*, void*) { ++released; };
  const auto engine = make();
  reentered = engine.get();
  EXPECT_EQ(engine->progress(1), 1);
  EXPECT_EQ(released, 1);
}

// ---- its end --------------------------------------------------------------------------------

TEST_F(EngineTest, IsShutDownOnceAndDestroyedByItsLastOwner) {
  auto engine = make();
  const auto deadline = base::Deadline::after(5s);
  EXPECT_TRUE(engine->shutDown(deadline).ok());
  EXPECT_TRUE(engine->shutDown(deadline).ok());
  EXPECT_EQ(seen.shutdowns, 1);
  EXPECT_EQ(seen.shutdown_deadline, deadline.ns());
  auto other = engine;
  engine.reset();
  EXPECT_EQ(seen.destroys, 0);
  other.reset();
  EXPECT_EQ(seen.shutdowns, 1);
  EXPECT_EQ(seen.destroys, 1);
}

TEST_F(EngineTest, IsShutDownByItsDestructorWithinASecond) {
  const uint64_t before = base::nowNs();
  make().reset();
  EXPECT_EQ(seen.shutdowns, 1);
  EXPECT_EQ(seen.destroys, 1);
  EXPECT_GE(seen.shutdown_deadline, before);
  EXPECT_LE(seen.shutdown_deadline, base::nowNs() + 1'000'000'000u);
}

TEST_F(EngineTest, SaysWhenItCouldNotShutDown) {
  ops.shutdown = [](void*, uint64_t, nixl_error* err) {
    return fail(err, -23, "2 requests may still land");
  };
  const auto engine = make();
  const Status status = engine->shutDown(base::Deadline::after(1ms));
  EXPECT_EQ(status.code(), Errc::NOT_QUIESCED);
  EXPECT_EQ(status.message(), "engine FAKE: shutdown: 2 requests may still land");
}

TEST_F(EngineTest, IsLeftAloneInAChildAfterFork) {
  auto engine = make();
  const pid_t child = ::fork();
  if (child == 0) {
    engine->afterFork();
    (void)engine->shutDown(base::Deadline::never());
    engine.reset();
    ::_exit(seen.forks == 1 && seen.shutdowns == 0 && seen.destroys == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace nixl::plugin
