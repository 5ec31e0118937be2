#include "memory.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>

#include "common/cuda_abi.h"
#include "faults.h"

namespace nixl::fakes::cuda {
namespace {

using namespace nixl::cuda_abi;

constexpr uint64_t kGrain = 512;         // of allocations, as the real ones are aligned
constexpr uint64_t kPhysical = 2 << 20;  // of cuMemCreate
constexpr uint64_t kChunk = 1 << 20;     // moved under one lock

uint64_t roundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

void* mapOrDie(uint64_t bytes, int protection, int flags, int fd) {
  void* map = ::mmap(nullptr, bytes, protection, flags | MAP_NORESERVE, fd, 0);
  if (map == MAP_FAILED) {
    std::perror("the software GPU gets no memory");
    std::abort();
  }
  return map;
}

}  // namespace

Memory::Memory(unsigned devices, uint64_t bytes_each)
    : size_(roundUp(bytes_each, kPhysical)), devices_(devices) {
  for (Device& device : devices_) {
    device.fd = ::memfd_create("nixl-fake-gpu", MFD_CLOEXEC);
    if (device.fd < 0 || ::ftruncate(device.fd, static_cast<off_t>(size_)) != 0) {
      std::perror("the software GPU gets no memory");
      std::abort();
    }
    device.hidden =
        static_cast<std::byte*>(mapOrDie(size_, PROT_READ | PROT_WRITE, MAP_SHARED, device.fd));
    device.visible =
        reinterpret_cast<uintptr_t>(mapOrDie(size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
    device.unused[0] = device.left = size_;
  }
}

std::optional<uint64_t> Memory::take(Device& device, uint64_t size) {
  for (auto& [offset, length] : device.unused) {
    if (length < size) continue;
    const uint64_t found = offset, rest = length - size;
    device.unused.erase(offset);
    if (rest > 0) device.unused[found + size] = rest;
    device.left -= size;
    return found;
  }
  return std::nullopt;
}

void Memory::giveBack(int number, uint64_t offset, uint64_t size) {
  Device& device = devices_[static_cast<size_t>(number)];
  device.left += size;
  // What is allocated anew holds nothing of what was there.
  ::fallocate(device.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(size));
  auto next = device.unused.lower_bound(offset);
  if (next != device.unused.end() && offset + size == next->first) {
    size += next->second;
    next = device.unused.erase(next);
  }
  if (next != device.unused.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  device.unused[offset] = size;
}

int Memory::allocate(int number, uint64_t bytes, uint64_t* address) {
  if (bytes == 0) return kInvalidValue;
  std::lock_guard lock(mutex_);
  Device& device = devices_[static_cast<size_t>(number)];
  if (bytes > size_) return kOutOfMemory;
  const auto offset = take(device, roundUp(bytes, kGrain));
  if (!offset) return kOutOfMemory;
  const uint64_t handle = next_handle_++;
  blocks_[handle] = {number, *offset, roundUp(bytes, kGrain), 1};
  *address = device.visible + *offset;
  ranges_[*address] = {bytes, device.hidden + *offset, number, false, true, handle};
  addTo("live", 1);
  return kSuccess;
}

void Memory::drop(uint64_t handle) {
  auto found = blocks_.find(handle);
  if (found == blocks_.end() || --found->second.uses > 0) return;
  giveBack(found->second.device, found->second.offset, found->second.size);
  blocks_.erase(found);
}

int Memory::free(uint64_t address) {
  std::lock_guard lock(mutex_);
  auto found = ranges_.find(address);
  if (found == ranges_.end() || found->second.mapped) return kInvalidValue;
  const uint64_t handle = found->second.handle;
  ranges_.erase(found);
  drop(handle);
  addTo("live", -1);
  return kSuccess;
}

void Memory::room(int device, uint64_t* free, uint64_t* total) const {
  std::shared_lock lock(mutex_);
  *free = devices_[static_cast<size_t>(device)].left;
  *total = size_;
}

const std::pair<const uint64_t, Memory::Range>* Memory::rangeAt(uint64_t address) const {
  auto after = ranges_.upper_bound(address);
  if (after == ranges_.begin()) return nullptr;
  const auto& found = *std::prev(after);
  return address - found.first < found.second.size ? &found : nullptr;
}

std::optional<DeviceRange> Memory::find(uint64_t address) const {
  std::shared_lock lock(mutex_);
  const auto* found = rangeAt(address);
  if (found == nullptr) return std::nullopt;
  return DeviceRange{found->first, found->second.size, found->second.device, found->second.mapped};
}

std::optional<DeviceRange> Memory::findAddresses(uint64_t address) const {
  auto found = find(address);
  if (!found || !found->mapped) return found;
  std::shared_lock lock(mutex_);
  const auto after = reserved_.upper_bound(address);
  if (after != reserved_.begin()) {
    found->begin = std::prev(after)->first;
    found->size = std::prev(after)->second;
  }
  return found;
}

bool Memory::covers(uint64_t address, uint64_t bytes) const {
  std::shared_lock lock(mutex_);
  while (true) {
    const auto* found = rangeAt(address);
    if (found == nullptr || !found->second.allowed) return false;
    const uint64_t here = found->first + found->second.size - address;
    if (bytes <= here) return true;
    if (!found->second.mapped) return false;
    address += here;
    bytes -= here;
  }
}

int Memory::create(int number, uint64_t bytes, uint64_t* handle) {
  if (bytes == 0 || bytes % kPhysical != 0) return kInvalidValue;
  std::lock_guard lock(mutex_);
  const auto offset = take(devices_[static_cast<size_t>(number)], bytes);
  if (!offset) return kOutOfMemory;
  *handle = next_handle_++;
  blocks_[*handle] = {number, *offset, bytes, 1};
  addTo("live", 1);
  return kSuccess;
}

int Memory::destroy(uint64_t handle) {
  std::lock_guard lock(mutex_);
  if (blocks_.count(handle) == 0) return kInvalidValue;
  drop(handle);
  addTo("live", -1);
  return kSuccess;
}

int Memory::reserve(uint64_t bytes, uint64_t* address) {
  if (bytes == 0 || bytes % kPhysical != 0) return kInvalidValue;
  void* map = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return kOutOfMemory;
  std::lock_guard lock(mutex_);
  *address = reinterpret_cast<uintptr_t>(map);
  reserved_[*address] = bytes;
  return kSuccess;
}

int Memory::unreserve(uint64_t address, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  auto found = reserved_.find(address);
  if (found == reserved_.end() || found->second != bytes) return kInvalidValue;
  ::munmap(reinterpret_cast<void*>(address), bytes);
  reserved_.erase(found);
  return kSuccess;
}

int Memory::map(uint64_t address, uint64_t bytes, uint64_t offset, uint64_t handle) {
  std::lock_guard lock(mutex_);
  auto block = blocks_.find(handle);
  auto after = reserved_.upper_bound(address);
  if (block == blocks_.end() || offset + bytes > block->second.size || after == reserved_.begin() ||
      rangeAt(address) != nullptr)
    return kInvalidValue;
  const auto& [begin, size] = *std::prev(after);
  if (address + bytes > begin + size) return kInvalidValue;
  const Device& device = devices_[static_cast<size_t>(block->second.device)];
  ranges_[address] = {
      bytes, device.hidden + block->second.offset + offset, block->second.device, true, false,
      handle};
  ++block->second.uses;
  return kSuccess;
}

int Memory::unmap(uint64_t address, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  auto found = ranges_.find(address);
  if (found == ranges_.end() || !found->second.mapped || found->second.size != bytes)
    return kInvalidValue;
  const uint64_t handle = found->second.handle;
  ranges_.erase(found);
  drop(handle);
  return kSuccess;
}

int Memory::allow(uint64_t address, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  for (uint64_t at = address; at < address + bytes;) {
    auto found = ranges_.find(at);
    if (found == ranges_.end() || !found->second.mapped) return kInvalidValue;
    found->second.allowed = true;
    at += found->second.size;
  }
  return kSuccess;
}

int Memory::pin(uint64_t address, uint64_t bytes, bool ours) {
  if (bytes == 0 || address == 0) return kInvalidValue;
  std::lock_guard lock(mutex_);
  auto after = host_.lower_bound(address);
  if (after != host_.end() && after->first < address + bytes) return kHostMemoryRegistered;
  if (after != host_.begin()) {
    const auto& before = *std::prev(after);
    if (before.first + before.second.size > address) return kHostMemoryRegistered;
  }
  host_[address] = {bytes, ours};
  addTo("live", 1);
  return kSuccess;
}

int Memory::unpin(uint64_t address, bool ours) {
  std::lock_guard lock(mutex_);
  auto found = host_.find(address);
  if (found == host_.end() || found->second.ours != ours) return kHostMemoryNotRegistered;
  host_.erase(found);
  addTo("live", -1);
  return kSuccess;
}

Pinned Memory::pinned(uint64_t address, uint64_t bytes) const {
  std::shared_lock lock(mutex_);
  auto after = host_.upper_bound(address);
  if (after != host_.begin()) {
    const auto& before = *std::prev(after);
    const uint64_t end = before.first + before.second.size;
    if (end >= address + bytes) return Pinned::YES;
    if (end > address) return Pinned::PARTLY;
  }
  return after != host_.end() && after->first < address + bytes ? Pinned::PARTLY : Pinned::NO;
}

std::optional<DeviceRange> Memory::findHost(uint64_t address) const {
  std::shared_lock lock(mutex_);
  auto after = host_.upper_bound(address);
  if (after == host_.begin()) return std::nullopt;
  const auto& found = *std::prev(after);
  if (address - found.first >= found.second.size) return std::nullopt;
  return DeviceRange{found.first, found.second.size, 0, false};
}

bool Memory::move(uint64_t to, uint64_t from, uint64_t bytes, bool to_device, bool from_device,
                  const std::function<void()>& halfway) const {
  const uint64_t half = bytes / 2;
  bool paused = false;
  for (uint64_t done = 0; done < bytes;) {
    if (done >= half && !paused) {
      paused = true;
      halfway();
    }
    std::shared_lock lock(mutex_);
    uint64_t here = std::min(bytes - done, kChunk);
    if (!paused) here = std::min(here, half - done);
    auto place = [&](uint64_t address, bool device) -> std::byte* {
      if (!device) return reinterpret_cast<std::byte*>(address);
      const auto* found = rangeAt(address);
      if (found == nullptr) return nullptr;
      here = std::min(here, found->first + found->second.size - address);
      return found->second.bytes + (address - found->first);
    };
    std::byte* const target = place(to + done, to_device);
    const std::byte* const source = place(from + done, from_device);
    if (target == nullptr || source == nullptr) return false;
    std::memmove(target, source, here);
    done += here;
  }
  return true;
}

bool Memory::set(uint64_t to, unsigned char value, uint64_t bytes) const {
  for (uint64_t done = 0; done < bytes;) {
    std::shared_lock lock(mutex_);
    const auto* found = rangeAt(to + done);
    if (found == nullptr) return false;
    const uint64_t offset = to + done - found->first;
    const uint64_t here = std::min({bytes - done, found->second.size - offset, kChunk});
    std::memset(found->second.bytes + offset, value, here);
    done += here;
  }
  return true;
}

}  // namespace nixl::fakes::cuda
