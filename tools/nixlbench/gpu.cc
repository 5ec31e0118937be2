#include "nixlbench/gpu.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "common/sizes.h"
#include "nixl/types.h"

namespace nixl::bench {

namespace {

// The driver's functions that we call. Its library stays open until the process ends.
struct Driver {
  std::string missing;  // "" when all are there
  int (*init)(unsigned) = nullptr;
  int (*count)(int*) = nullptr;
  int (*device)(int*, int) = nullptr;
  int (*error_text)(int, const char**) = nullptr;
  int (*retain)(void**, int) = nullptr;
  int (*release)(int) = nullptr;
  int (*make_current)(void*) = nullptr;
  int (*allocate)(uint64_t*, size_t) = nullptr;
  int (*free)(uint64_t) = nullptr;
  int (*copy_in)(uint64_t, const void*, size_t) = nullptr;
  int (*copy_out)(void*, uint64_t, size_t) = nullptr;

  Driver() {
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      missing = ::dlerror();
      return;
    }
    auto find = [&](auto& function, const char* name) {
      void* symbol = ::dlsym(library, name);
      if (symbol == nullptr) missing = std::string("libcuda.so.1 has no ") + name;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    find(init, "cuInit");
    find(count, "cuDeviceGetCount");
    find(device, "cuDeviceGet");
    find(error_text, "cuGetErrorString");
    find(retain, "cuDevicePrimaryCtxRetain");
    find(release, "cuDevicePrimaryCtxRelease_v2");
    find(make_current, "cuCtxSetCurrent");
    find(allocate, "cuMemAlloc_v2");
    find(free, "cuMemFree_v2");
    find(copy_in, "cuMemcpyHtoD_v2");
    find(copy_out, "cuMemcpyDtoH_v2");
  }
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

void orThrow(int result, const std::string& action) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().error_text(result, &text);
  throw Error(Errc::BACKEND, action + ": " + (text != nullptr ? text : "unknown error") +
                                 " (CUDA error " + std::to_string(result) + ")");
}

}  // namespace

Gpu::Gpu(uint64_t device) {
  const std::string action = "use GPU " + std::to_string(device);
  const Driver& cuda = driver();
  if (!cuda.missing.empty())
    throw Error(Errc::NOT_FOUND,
                action + ": this machine has no GPU driver (" + cuda.missing + ")");
  orThrow(cuda.init(0), action);
  int count = 0;
  orThrow(cuda.count(&count), action);
  if (device >= static_cast<uint64_t>(count))
    throw Error(Errc::NOT_FOUND, action + ": this machine has " +
                                     (count == 0 ? "none" : "only " + std::to_string(count)));
  orThrow(cuda.device(&device_, static_cast<int>(device)), action);
  orThrow(cuda.retain(&context_, device_), action);
}

Gpu::~Gpu() {
  if (context_ != nullptr) driver().release(device_);
}

uint64_t Gpu::allocate(uint64_t bytes) {
  uint64_t address = 0;
  orThrow(driver().make_current(context_), "use a GPU");
  orThrow(driver().allocate(&address, bytes),
          "allocate " + tools::formatSize(bytes) + " on GPU " + std::to_string(device_));
  return address;
}

void Gpu::free(uint64_t address) noexcept {
  if (driver().make_current(context_) == 0) driver().free(address);
}

void Gpu::copyIn(uint64_t address, std::span<const std::byte> bytes) {
  orThrow(driver().make_current(context_), "use a GPU");
  orThrow(driver().copy_in(address, bytes.data(), bytes.size()), "copy to a GPU");
}

void Gpu::copyOut(uint64_t address, std::span<std::byte> bytes) {
  orThrow(driver().make_current(context_), "use a GPU");
  orThrow(driver().copy_out(bytes.data(), address, bytes.size()), "copy from a GPU");
}

}  // namespace nixl::bench
