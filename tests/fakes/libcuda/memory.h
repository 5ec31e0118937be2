// libcuda/memory.h - the memory of the software devices, and what is known of the host's.
//
// Device addresses are reserved, and nobody may touch them: a CPU that does gets SIGSEGV. The bytes
// lie elsewhere, in a second mapping that only this library knows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <vector>

namespace nixl::fakes::cuda {

enum class Pinned { NO, PARTLY, YES };

struct DeviceRange {
  uint64_t begin = 0, size = 0;
  int device = 0;
  bool mapped = false;  // by cuMemMap: addresses go on into the next one
};

// Results are CUDA's numbers. Threads: any.
class Memory {
 public:
  Memory(unsigned devices, uint64_t bytes_each);

  int allocate(int device, uint64_t bytes, uint64_t* address);
  int free(uint64_t address);
  void room(int device, uint64_t* free, uint64_t* total) const;
  std::optional<DeviceRange> find(uint64_t address) const;
  // The same, but of mapped memory all addresses that were reserved together.
  std::optional<DeviceRange> findAddresses(uint64_t address) const;
  // All of [address, address + bytes) is memory of a device: of one allocation, or mapped in a row.
  bool covers(uint64_t address, uint64_t bytes) const;

  // Physical memory and addresses, apart from each other.
  int create(int device, uint64_t bytes, uint64_t* handle);
  int destroy(uint64_t handle);
  int reserve(uint64_t bytes, uint64_t* address);
  int unreserve(uint64_t address, uint64_t bytes);
  int map(uint64_t address, uint64_t bytes, uint64_t offset, uint64_t handle);
  int unmap(uint64_t address, uint64_t bytes);
  int allow(uint64_t address, uint64_t bytes);

  int pin(uint64_t address, uint64_t bytes, bool ours);
  int unpin(uint64_t address, bool ours);
  Pinned pinned(uint64_t address, uint64_t bytes) const;
  std::optional<DeviceRange> findHost(uint64_t address) const;

  // Moves bytes between two addresses, host's or a device's. False: the device memory is gone.
  bool move(uint64_t to, uint64_t from, uint64_t bytes, bool to_device, bool from_device,
            const std::function<void()>& halfway) const;
  bool set(uint64_t to, unsigned char value, uint64_t bytes) const;

 private:
  struct Block {  // of a device's memory
    int device = 0;
    uint64_t offset = 0, size = 0;
    unsigned uses = 0;  // mappings, and the handle itself
  };
  struct Range {
    uint64_t size = 0;
    std::byte* bytes = nullptr;  // where they really are
    int device = 0;
    bool mapped = false, allowed = true;
    uint64_t handle = 0;  // of the Block
  };
  struct HostRange {
    uint64_t size = 0;
    bool ours = false;
  };
  struct Device {
    int fd = -1;
    std::byte* hidden = nullptr;
    uint64_t visible = 0;                 // begin of its addresses
    std::map<uint64_t, uint64_t> unused;  // offset -> size
    uint64_t left = 0;
  };

  std::optional<uint64_t> take(Device& device, uint64_t size);
  void giveBack(int device, uint64_t offset, uint64_t size);
  const std::pair<const uint64_t, Range>* rangeAt(uint64_t address) const;
  void drop(uint64_t handle);

  const uint64_t size_;              // of each device
  mutable std::shared_mutex mutex_;  // guards what follows
  std::vector<Device> devices_;
  std::map<uint64_t, Range> ranges_;
  std::map<uint64_t, Block> blocks_;
  std::map<uint64_t, uint64_t> reserved_;
  std::map<uint64_t, HostRange> host_;
  uint64_t next_handle_ = 1;
};

}  // namespace nixl::fakes::cuda
