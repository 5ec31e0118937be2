#include "nixlbench/gpu.h"

#include <string>

#include "common/gpu.h"
#include "common/sizes.h"
#include "nixl/backend.h"
#include "nixl/types.h"

namespace nixl::bench {

Gpu::Gpu(uint64_t device) {
  const std::string action = "use GPU " + std::to_string(device);
  try {
    driver_ = &gpu::open();
  } catch (const BackendFailure& failure) {
    throw Error(failure.code(), action + ": " + failure.what());
  }
  const unsigned count = driver_->devices();
  if (device >= count)
    throw Error(Errc::NOT_FOUND,
                action + ": this process sees " +
                    (count == 1 ? "only number 0" : "numbers 0 to " + std::to_string(count - 1)));
  device_ = static_cast<unsigned>(device);
  check(driver_->retain(device_), action);
}

Gpu::~Gpu() { driver_->release(device_); }

void Gpu::check(int code, const std::string& action) const {
  if (code != 0)
    throw Error(driver_->isOutOfMemory(code) ? Errc::LIMIT : Errc::BACKEND,
                action + ": " + driver_->say(code));
}

uint64_t Gpu::allocate(uint64_t bytes) {
  const std::string action =
      "allocate " + tools::formatSize(bytes) + " on GPU " + std::to_string(device_);
  gpu::Scope scope(*driver_, device_);
  check(scope.code(), action);
  uint64_t address = 0;
  const int code = driver_->allocate(bytes, &address);
  uint64_t free = 0, total = 0;
  if (driver_->isOutOfMemory(code) && driver_->room(&free, &total) == 0)
    throw Error(Errc::LIMIT, action + ": only " + tools::formatSize(free) + " are free");
  check(code, action);
  return address;
}

void Gpu::free(uint64_t address) noexcept {
  gpu::Scope scope(*driver_, device_);
  driver_->free(address);
}

void Gpu::copyIn(uint64_t address, std::span<const std::byte> bytes) {
  gpu::Scope scope(*driver_, device_);
  check(driver_->copyNow(gpu::Way::IN,
                         {address, reinterpret_cast<uintptr_t>(bytes.data()), bytes.size()}),
        "copy to GPU " + std::to_string(device_));
}

void Gpu::copyOut(uint64_t address, std::span<std::byte> bytes) {
  gpu::Scope scope(*driver_, device_);
  check(driver_->copyNow(gpu::Way::OUT,
                         {reinterpret_cast<uintptr_t>(bytes.data()), address, bytes.size()}),
        "copy from GPU " + std::to_string(device_));
}

}  // namespace nixl::bench
