#include "base/dlopen.h"

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

TEST(SharedLibrary, FindsAFunction) {
  Result<SharedLibrary> library = SharedLibrary::open("libm.so.6");
  ASSERT_TRUE(library.has_value()) << library.error().message();
  EXPECT_EQ(library->path(), "libm.so.6");
  Result<double (*)(double)> floor = library->function<double(double)>("floor");
  ASSERT_TRUE(floor.has_value());
  EXPECT_EQ((*floor)(2.5), 2.0);
}

TEST(SharedLibrary, SaysInTheLoadersWordsWhatIsMissing) {
  Result<SharedLibrary> missing = SharedLibrary::open("libnixl_no_such_thing.so");
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), Errc::NOT_FOUND);
  EXPECT_NE(missing.error().message().find("open library \"libnixl_no_such_thing.so\": "),
            std::string::npos);
  EXPECT_NE(missing.error().message().find("cannot open shared object file"), std::string::npos);

  Result<SharedLibrary> library = SharedLibrary::open("libm.so.6", {.nodelete = true});
  ASSERT_TRUE(library.has_value());
  Result<void*> symbol = library->symbol("nixl_no_such_symbol");
  ASSERT_FALSE(symbol.has_value());
  EXPECT_EQ(symbol.error().code(), Errc::NOT_FOUND);
  EXPECT_NE(symbol.error().message().find("nixl_no_such_symbol"), std::string::npos);
}

TEST(SharedLibrary, IsNotLoadedJustToLook) {
  Result<SharedLibrary> library = SharedLibrary::open("libnixl_no_such_thing.so", {.noload = true});
  ASSERT_FALSE(library.has_value());
  EXPECT_EQ(library.error().message(),
            "open library \"libnixl_no_such_thing.so\": not loaded in this process");
  EXPECT_TRUE(SharedLibrary::open("libc.so.6", {.noload = true}).has_value());
}

TEST(SharedLibrary, HasAPath) {
  EXPECT_EQ(SharedLibrary::open("").error().code(), Errc::INVALID_PARAM);
}

TEST(SharedLibrary, CanBeMoved) {
  Result<SharedLibrary> opened = SharedLibrary::open("libm.so.6");
  ASSERT_TRUE(opened.has_value());
  SharedLibrary library = *std::move(opened);
  EXPECT_TRUE(library.symbol("floor").has_value());
}

}  // namespace
}  // namespace nixl::base
