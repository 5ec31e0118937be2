#include "nixlbench/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/sizes.h"
#include "nixlbench/gpu.h"

namespace nixl::bench {

namespace {

class HostBuffer final : public Buffer {
 public:
  HostBuffer(Place place, void* memory, uint64_t size)
      : Buffer(place, reinterpret_cast<uintptr_t>(memory), size), memory_(memory) {}
  ~HostBuffer() override { ::munmap(memory_, size()); }

  void write(uint64_t offset, std::span<const std::byte> bytes) override {
    std::memcpy(static_cast<std::byte*>(memory_) + offset, bytes.data(), bytes.size());
  }
  void read(uint64_t offset, std::span<std::byte> bytes) const override {
    std::memcpy(bytes.data(), static_cast<const std::byte*>(memory_) + offset, bytes.size());
  }

 private:
  void* memory_;
};

std::unique_ptr<Buffer> makeHostBuffer(const Place& place, uint64_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED)
    throw Error(Errc::LIMIT, "allocate " + tools::formatSize(bytes) +
                                 " of host memory: " + std::strerror(errno));
  return std::make_unique<HostBuffer>(place, memory, bytes);
}

class GpuBuffer final : public Buffer {
 public:
  GpuBuffer(Place place, uint64_t bytes, std::unique_ptr<Gpu> gpu, uint64_t address)
      : Buffer(place, address, bytes), gpu_(std::move(gpu)) {}
  ~GpuBuffer() override { gpu_->free(address()); }

  void write(uint64_t offset, std::span<const std::byte> bytes) override {
    gpu_->copyIn(address() + offset, bytes);
  }
  void read(uint64_t offset, std::span<std::byte> bytes) const override {
    gpu_->copyOut(address() + offset, bytes);
  }

 private:
  std::unique_ptr<Gpu> gpu_;
};

}  // namespace

std::string describe(const Place& place) {
  std::string text = memTypeName(place.type);
  if (place.type == MemType::VRAM) text += " (GPU " + std::to_string(place.device) + ")";
  return text;
}

std::unique_ptr<Buffer> makeBuffer(const Place& place, uint64_t bytes) {
  if (place.type == MemType::DRAM) return makeHostBuffer(place, bytes);
  auto gpu = std::make_unique<Gpu>(place.device);
  const uint64_t address = gpu->allocate(bytes);
  return std::make_unique<GpuBuffer>(place, bytes, std::move(gpu), address);
}

void requirePlace(const Place& place) {
  if (place.type == MemType::VRAM) Gpu gpu(place.device);
}

}  // namespace nixl::bench
