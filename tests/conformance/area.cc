#include "area.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "common/gpu.h"
#include "nixl/backend.h"

namespace nixl::conformance {

namespace {

// Host memory between two pages that nobody may touch: a byte too many ends the test.
class HostArea final : public Area {
 public:
  explicit HostArea(uint64_t size) : Area(MemType::DRAM, size) {
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    inside_ = (std::max<uint64_t>(size, 1) + page - 1) / page * page;
    mapped_ = inside_ + 2 * page;
    map_ = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map_ == MAP_FAILED) throw std::runtime_error("no memory for a test area");
    auto* const first = static_cast<std::byte*>(map_) + page;
    if (mprotect(first, inside_, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error("no memory for a test area");
    // It ends where the page ends, so that running over its end is noticed.
    memory_ = first + (inside_ - size);
    base_ = reinterpret_cast<uintptr_t>(memory_);
  }
  ~HostArea() override { munmap(map_, mapped_); }

  void write(uint64_t offset, const Bytes& bytes) override {
    if (!bytes.empty()) std::memcpy(memory_ + offset, bytes.data(), bytes.size());
  }
  Bytes read(uint64_t offset, uint64_t size) const override {
    return Bytes(memory_ + offset, memory_ + offset + size);
  }

 private:
  uint64_t inside_ = 0, mapped_ = 0;
  void* map_ = nullptr;
  std::byte* memory_ = nullptr;
};

// An open file without a name.
class FileArea final : public Area {
 public:
  explicit FileArea(uint64_t size) : Area(MemType::FILE, size) {
    const char* folder = std::getenv("TMPDIR");
    std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/nixl_area.XXXXXX";
    fd_ = mkostemp(path.data(), O_CLOEXEC);
    if (fd_ < 0) throw std::runtime_error("no file for a test area in " + path);
    unlink(path.c_str());
    if (ftruncate(fd_, static_cast<off_t>(size)) != 0) throw std::runtime_error("no room on disk");
    device_ = static_cast<uint64_t>(fd_);
  }
  ~FileArea() override { close(fd_); }

  void write(uint64_t offset, const Bytes& bytes) override {
    for (uint64_t done = 0; done < bytes.size();) {
      const ssize_t n =
          pwrite(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
      if (n <= 0) throw std::runtime_error("cannot write a test file");
      done += static_cast<uint64_t>(n);
    }
  }
  Bytes read(uint64_t offset, uint64_t size) const override {
    Bytes bytes(size);
    for (uint64_t done = 0; done < size;) {
      const ssize_t n =
          pread(fd_, bytes.data() + done, size - done, static_cast<off_t>(offset + done));
      if (n <= 0) throw std::runtime_error("cannot read a test file");
      done += static_cast<uint64_t>(n);
    }
    return bytes;
  }

 private:
  int fd_ = -1;
};

// Memory of a GPU, which is looked at through copies alone. An allocation of its own: the driver
// refuses a byte too many.
class DeviceArea final : public Area {
 public:
  DeviceArea(uint64_t size, gpu::Driver& driver, unsigned device)
      : Area(MemType::VRAM, size), driver_(driver), number_(device) {
    device_ = device;
    check(driver.retain(device));
    gpu::Scope scope(driver, device);
    check(scope.code());
    check(driver.allocate(std::max<uint64_t>(size, 1), &base_));
  }
  ~DeviceArea() override {
    {
      gpu::Scope scope(driver_, number_);
      driver_.free(base_);
    }
    driver_.release(number_);
  }

  void write(uint64_t offset, const Bytes& bytes) override {
    if (bytes.empty()) return;
    gpu::Scope scope(driver_, number_);
    check(driver_.copyNow(gpu::Way::IN, {base_ + offset, addressOf(bytes), bytes.size()}));
  }
  Bytes read(uint64_t offset, uint64_t size) const override {
    Bytes bytes(size);
    if (size == 0) return bytes;
    gpu::Scope scope(driver_, number_);
    check(driver_.copyNow(gpu::Way::OUT, {addressOf(bytes), base_ + offset, size}));
    return bytes;
  }

 private:
  static uint64_t addressOf(const Bytes& bytes) {
    return reinterpret_cast<uintptr_t>(bytes.data());
  }
  void check(int code) const {
    if (code != 0) throw std::runtime_error("GPU memory for a test area: " + driver_.say(code));
  }

  gpu::Driver& driver_;
  const unsigned number_;
};

std::unique_ptr<Area> makeDeviceArea(uint64_t size, uint64_t device) {
  try {
    gpu::Driver& driver = gpu::open();
    if (device >= driver.devices()) return nullptr;
    return std::make_unique<DeviceArea>(size, driver, static_cast<unsigned>(device));
  } catch (const BackendFailure&) {
    return nullptr;  // no driver, or no GPU
  }
}

}  // namespace

Bytes pattern(uint64_t seed, uint64_t size) {
  Bytes bytes(size);
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (uint64_t i = 0; i < size; i += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(bytes.data() + i, &state, std::min<uint64_t>(8, size - i));
  }
  return bytes;
}

std::string difference(const Bytes& wanted, const Bytes& found) {
  if (wanted.size() != found.size())
    return std::to_string(found.size()) + " bytes instead of " + std::to_string(wanted.size());
  if (wanted.empty() || std::memcmp(wanted.data(), found.data(), wanted.size()) == 0) return "";
  const auto first = std::mismatch(wanted.begin(), wanted.end(), found.begin()).first;
  const auto last = std::mismatch(wanted.rbegin(), wanted.rend(), found.rbegin()).first;
  return "bytes " + std::to_string(first - wanted.begin()) + " to " +
         std::to_string(wanted.rend() - last) + " of " + std::to_string(wanted.size()) + " differ";
}

std::unique_ptr<Area> Area::make(MemType type, uint64_t size, uint64_t device) {
  switch (type) {
    case MemType::DRAM:
      return std::make_unique<HostArea>(size);
    case MemType::FILE:
      return std::make_unique<FileArea>(size);
    case MemType::VRAM:
      return makeDeviceArea(size, device);
    case MemType::BLOCK:
    case MemType::OBJ:
      return nullptr;  // comes with the first backend that has them
  }
  return nullptr;
}

}  // namespace nixl::conformance
