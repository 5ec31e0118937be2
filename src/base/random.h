// base/random.h - bytes that nobody can guess.
#pragma once

#include <cstddef>

namespace nixl::base {

// From the kernel's generator, fit for keys. Ends the process if the system has none to give: a
// guessable secret is worse.
void randomBytes(void* to, size_t length);

}  // namespace nixl::base
