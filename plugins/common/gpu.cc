#include "common/gpu.h"

#include <unistd.h>

#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "common/cuda.h"
#include "nixl/backend.h"

namespace nixl::gpu {
namespace {

// What is pinned by us, by begin: entries whose owners are gone have taken themselves out.
struct Pin {
  uint64_t end = 0;
  std::weak_ptr<void> held;
};
struct Pins {
  std::mutex mutex;
  std::map<std::pair<Driver*, uint64_t>, Pin> ranges;  // guarded by mutex
};
Pins& pins() {
  static auto& all = *new Pins;
  return all;
}

}  // namespace

Driver& open() { return openCuda(); }
std::string whyNone() { return whyNoCuda(); }

std::shared_ptr<void> pinned(Driver& driver, unsigned device, uint64_t address, uint64_t bytes,
                             std::string* why) {
  Pins& all = pins();
  std::lock_guard lock(all.mutex);
  // The last range that begins at or before the address is the only one that can hold all of it:
  // a driver pins no byte twice.
  auto after = all.ranges.upper_bound({&driver, address});
  if (after != all.ranges.begin()) {
    const auto& [key, pin] = *std::prev(after);
    if (key.first == &driver && address + bytes <= pin.end)
      if (auto held = pin.held.lock()) return held;
  }
  Scope scope(driver, device);
  int code = scope.code();
  if (code == 0) code = driver.pin(reinterpret_cast<void*>(address), bytes);
  if (code != 0) {
    *why = driver.say(code);
    return nullptr;
  }
  std::shared_ptr<void> held(reinterpret_cast<void*>(address), [&driver, device](void* begin) {
    Pins& known = pins();
    std::lock_guard again(known.mutex);
    known.ranges.erase({&driver, reinterpret_cast<uint64_t>(begin)});
    Scope there(driver, device);
    if (there.code() == 0) driver.unpin(begin);
  });
  all.ranges[{&driver, address}] = {address + bytes, held};
  return held;
}

}  // namespace nixl::gpu
