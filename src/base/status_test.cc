#include "base/status.h"

#include <errno.h>
#include <gtest/gtest.h>

#include <thread>

namespace nixl {
namespace {

TEST(Status, IsOkAndOnePointerByDefault) {
  Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Errc::OK);
  EXPECT_EQ(status.message(), "");
  EXPECT_EQ(sizeof(Status), sizeof(void*));
  EXPECT_TRUE(Status(Errc::OK, "dropped").ok());
}

TEST(Status, GrowsAsItRises) {
  Status status = Status(Errc::NOT_ALLOWED, "Permission denied").within("open").within("register");
  EXPECT_EQ(status.code(), Errc::NOT_ALLOWED);
  EXPECT_EQ(status.message(), "register: open: Permission denied");
  EXPECT_TRUE(Status().within("register").ok());
  EXPECT_EQ(Status(Errc::UNKNOWN, "").within("register").message(), "register");
}

TEST(Status, WithinACopyLeavesTheOriginal) {
  const Status status(Errc::LIMIT, "full");
  EXPECT_EQ(status.within("send").message(), "send: full");
  EXPECT_EQ(status.message(), "full");
}

TEST(Status, CopiesShareNothing) {
  Status first(Errc::LIMIT, "full");
  Status second = first;
  second = std::move(second).within("send");
  EXPECT_EQ(first.message(), "full");
  EXPECT_EQ(second.message(), "send: full");
  first = Status();
  EXPECT_TRUE(first.ok());
  EXPECT_FALSE(second.ok());
}

struct Base {
  virtual ~Base() = default;
  virtual int number() const { return 1; }
};
struct Derived final : Base {
  int number() const override { return 2; }
};

Result<std::unique_ptr<Base>> make(bool possible) {
  if (!possible) return {Errc::NOT_FOUND, "no such thing"};
  return std::make_unique<Derived>();
}

Result<int> numberOf(bool possible) {
  NIXL_ASSIGN_OR_RETURN(std::unique_ptr<Base> made, make(possible));
  NIXL_ASSIGN_OR_RETURN(auto another, make(possible));
  return made->number() + another->number();
}

Status onlyTry(bool possible) {
  NIXL_TRY(numberOf(possible).status().within("count"));
  return {};
}

Result<std::string> tryInResult(bool possible) {
  NIXL_TRY(onlyTry(possible));
  return "a literal";
}

TEST(Result, HoldsAMoveOnlyValue) {
  Result<std::unique_ptr<Base>> made = make(true);
  ASSERT_TRUE(made.has_value());
  EXPECT_EQ((*made)->number(), 2);
  std::unique_ptr<Base> taken = *std::move(made);
  EXPECT_EQ(taken->number(), 2);
}

TEST(Result, HoldsAFailure) {
  Result<std::unique_ptr<Base>> made = make(false);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().code(), Errc::NOT_FOUND);
  EXPECT_EQ(std::move(made).error().within("make").message(), "make: no such thing");
}

TEST(Result, GoesThroughTheMacros) {
  EXPECT_EQ(numberOf(true).value(), 4);
  EXPECT_EQ(numberOf(false).error().code(), Errc::NOT_FOUND);
  EXPECT_TRUE(onlyTry(true).ok());
  EXPECT_EQ(onlyTry(false).message(), "count: no such thing");
  EXPECT_EQ(*tryInResult(true), "a literal");
  EXPECT_EQ(tryInResult(false).error().message(), "count: no such thing");
}

TEST(Result, GivesAFallback) {
  EXPECT_EQ(numberOf(true).value_or(7), 4);
  EXPECT_EQ(numberOf(false).value_or(7), 7);
}

TEST(ResultDeathTest, ValueOfAFailureSaysWhy) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(static_cast<void>(numberOf(false).value()), "no such thing");
}

TEST(ErrnoText, NamesTheErrorFromAnyThread) {
  EXPECT_EQ(base::errnoText(EACCES), "Permission denied");
  std::thread([] { EXPECT_EQ(base::errnoText(ENOENT), "No such file or directory"); }).join();
  EXPECT_NE(base::errnoText(987654), "");
}

TEST(ErrnoStatus, SaysWhatWasDone) {
  Status status = base::errnoStatus("open \"a\"", ENOENT);
  EXPECT_EQ(status.code(), Errc::NOT_FOUND);
  EXPECT_EQ(status.message(), "open \"a\": No such file or directory");
  EXPECT_EQ(base::errnoCode(EIO), Errc::BACKEND);
}

}  // namespace
}  // namespace nixl
