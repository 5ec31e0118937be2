#include "nixl-info/terminal.h"

#include <gtest/gtest.h>

#include <functional>

namespace nixl::info {
namespace {

using Lines = std::vector<std::string>;

TEST(Wrapped, BreaksBetweenWordsAndNowhereElse) {
  EXPECT_EQ(Terminal::wrapped("one two three", 7), (Lines{"one two", "three"}));
  EXPECT_EQ(Terminal::wrapped("one", 2), (Lines{"one"}));
  EXPECT_EQ(Terminal::wrapped("a unbreakable b", 5), (Lines{"a", "unbreakable", "b"}));
  EXPECT_EQ(Terminal::wrapped("one two three", 0), (Lines{"one two three"}));
  EXPECT_EQ(Terminal::wrapped("", 10), (Lines{""}));
}

std::string printed(const std::function<void()>& print) {
  testing::internal::CaptureStdout();
  print();
  return testing::internal::GetCapturedStdout();
}

TEST(Terminal, KeepsValuesInTheirColumn) {
  const Terminal narrow(30, false);
  EXPECT_EQ(printed([&] { narrow.pair("name", "a value of some words", 8); }),
            "  name  a value of some words\n");
  EXPECT_EQ(printed([&] { narrow.pair("name", "a value of some words more", 8); }),
            "  name  a value of some words\n        more\n");
}

TEST(Terminal, BreaksTheLastColumnOfATable) {
  const Terminal narrow(30, false);
  EXPECT_EQ(printed([&] {
              narrow.table({{"NAME", "WHAT"}, {"X", "one two three four five six"}});
            }),
            "NAME  WHAT\nX     one two three four five\n      six\n");
}

TEST(Terminal, ColoursOnlyWhereTheyAreWanted) {
  EXPECT_EQ(Terminal(80, false).paint(Colour::BAD, "x"), "x");
  EXPECT_EQ(Terminal(80, true).paint(Colour::BAD, "x"), "\033[31mx\033[0m");
  EXPECT_EQ(Terminal(80, true).paint(Colour::NONE, "x"), "x");
  EXPECT_EQ(Terminal(80, true).paint(Colour::BAD, ""), "");
}

}  // namespace
}  // namespace nixl::info
