// Device memory. Each device owns a range of addresses without access rights, so that host code that follows a device
// pointer faults; the bytes lie in a second range at a fixed distance, the shadow, where the CPU kernels work. The
// range is larger than the device's memory, so that fragmentation never causes an out of memory error: memory ends
// exactly where the count says.
#include "fake_cuda.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <sys/mman.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <unistd.h>
#include <unordered_map>

namespace fake {
namespace {

constexpr size_t kBlock = 512;            // allocations are rounded up to this, as by CUDA's caching allocator
constexpr size_t kSegment = 2 << 20;      // what is reserved from the driver is a multiple of this
constexpr size_t kReturnPages = 1 << 20;  // freed blocks of this size give their pages back to the system

size_t rounded_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

std::string readable(size_t bytes) {
  char text[32];
  const double n = bytes;
  if (bytes <= 1024)
    std::snprintf(text, sizeof text, "%zu bytes", bytes);
  else if (bytes <= 1 << 20)
    std::snprintf(text, sizeof text, "%.2f KiB", n / 1024);
  else if (bytes <= 1 << 30)
    std::snprintf(text, sizeof text, "%.2f MiB", n / (1 << 20));
  else
    std::snprintf(text, sizeof text, "%.2f GiB", n / (1 << 30));
  return text;
}

// Address ranges that are free, found by address and by size.
class FreeList {
  std::map<size_t, size_t> by_offset;             // offset -> length
  std::set<std::pair<size_t, size_t>> by_length;  // (length, offset)

  void erase(std::map<size_t, size_t>::iterator it) {
    by_length.erase({it->second, it->first});
    by_offset.erase(it);
  }

 public:
  // Returns the offset of `size` bytes taken from the smallest range that has them.
  size_t take(size_t size) {
    auto it = by_length.lower_bound({size, 0});
    TORCH_CHECK(it != by_length.end(), "fake CUDA: no range of ", size, " addresses is left");
    auto [length, offset] = *it;
    erase(by_offset.find(offset));
    if (length > size) put(offset + size, length - size);
    return offset;
  }
  bool has(size_t size) const { return by_length.lower_bound({size, 0}) != by_length.end(); }
  const std::map<size_t, size_t>& ranges() const { return by_offset; }
  void put(size_t offset, size_t size) {
    auto next = by_offset.lower_bound(offset);
    if (next != by_offset.end() && next->first == offset + size) {
      size += next->second;
      auto joined = next++;
      erase(joined);
    }
    if (next != by_offset.begin()) {
      auto before = std::prev(next);
      if (before->first + before->second == offset) {
        offset = before->first;
        size += before->second;
        erase(before);
      }
    }
    by_offset[offset] = size;
    by_length.insert({size, offset});
  }
};

// Memory that the captured work of some graphs uses at each replay: nobody else gets it.
struct GraphMemory {
  int graphs = 0;
  FreeList free;
  size_t free_bytes = 0;
};

struct Block {
  size_t size, asked;
  std::optional<Pool> pool;
  bool counted;        // false for memory of a replayed operation, whose results are then where they were captured
  std::string holder;  // the operation and functions that allocated it, with FAKE_CUDA_STACKS
};

// The memory of one device.
struct DeviceMemory {
  DeviceIndex index;
  size_t total, range;
  char *addresses, *shadow;
  FreeList free;
  std::unordered_map<char*, Block> used;
  std::map<Pool, GraphMemory> pools;
  size_t pooled = 0;  // free bytes of all pools
  long long requests = 0;
  c10::CachingDeviceAllocator::DeviceStats stats;
  std::map<std::string, int64_t> held, held_at_peak;  // bytes by holder
  bool is_new_peak = false;

  explicit DeviceMemory(DeviceIndex index) : index(index), total(fake_memory_bytes()) {
    range = 2 * rounded_up(total, 4096);
    addresses = map(PROT_NONE);
    shadow = map(PROT_READ | PROT_WRITE);
    free.put(0, range);
  }
  char* map(int rights) const {
    void* p = mmap(nullptr, range, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      std::perror("fake CUDA: mapping device memory");
      std::abort();
    }
    return static_cast<char*>(p);
  }
  bool owns(const void* p) const { return p >= addresses && p < addresses + range; }
  size_t allocated() const { return stats.allocated_bytes[0].current; }
  size_t reserved() const { return std::min(rounded_up(stats.reserved_bytes[0].current, kSegment), total); }

  void* take(size_t asked, const std::string& holder, std::optional<Pool> pool) {
    const size_t size = rounded_up(asked, kBlock);
    if (replaying()) return begin({size, asked, std::nullopt, false, ""}, free.take(size));
    GraphMemory* of_graphs = pool ? &pools.at(*pool) : nullptr;
    const bool again = of_graphs && of_graphs->free.has(size);
    requests++;
    // While work is captured, memory that is kept for reuse cannot be returned to the driver to be allocated anew.
    const size_t taken = pool ? stats.reserved_bytes[0].current : allocated() + pooled;
    if ((!again && taken + size > total) ||
        (fake_failing_allocation() > 0 && requests >= fake_failing_allocation())) {
      stats.num_ooms++;
      stats.num_alloc_retries++;
      // As the caching allocator, which returns what it holds for reuse before it gives up.
      give_back();
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", readable(asked), ". GPU ",
                       int(index), " has a total capacity of ", readable(total), " of which ",
                       readable(total - allocated()),
                       " is free. "
                       "Of the allocated memory ",
                       readable(allocated()), " is allocated by PyTorch, and ", readable(reserved() - allocated()),
                       " is reserved by PyTorch but unallocated.");
    }
    const size_t at = again ? of_graphs->free.take(size) : free.take(size);
    if (again) {
      of_graphs->free_bytes -= size;
      pooled -= size;
    } else if (pool) {
      stats.reserved_bytes[0].increase(size);
    }
    for (auto* count : {&stats.allocation, &stats.active}) (*count)[0].increase(1);
    for (auto* bytes : {&stats.allocated_bytes, &stats.active_bytes}) (*bytes)[0].increase(size);
    stats.requested_bytes[0].increase(asked);
    if (!holder.empty()) {
      held[holder] += size;
      is_new_peak |= stats.allocated_bytes[0].current == stats.allocated_bytes[0].peak;
    }
    // What was once taken stays reserved until emptyCache.
    if (int64_t more = int64_t(allocated() + pooled) - stats.reserved_bytes[0].current; more > 0) {
      stats.reserved_bytes[0].increase(more);
      stats.num_device_alloc++;
    }
    return begin({size, asked, pool, true, holder}, at);
  }
  void* begin(Block block, size_t at) {
    memset(shadow + at, 0xff, block.size);  // NaN in every floating-point format, -1 as an integer
    used[addresses + at] = std::move(block);
    return addresses + at;
  }
  void release(char* p) {
    auto it = used.find(p);
    if (it == used.end()) {
      std::fprintf(stderr, "fake CUDA: %p freed twice\n", p);
      std::abort();
    }
    const auto [size, asked, pool, counted, holder] = it->second;
    used.erase(it);
    const size_t at = p - addresses;
    if (!counted) return free.put(at, size);
    if (!holder.empty()) {
      at_peak();
      if ((held[holder] -= size) == 0) held.erase(holder);
    }
    if (size >= kReturnPages) {
      const size_t from = rounded_up(at, 4096), to = (at + size) / 4096 * 4096;
      madvise(shadow + from, to - from, MADV_DONTNEED);
    }
    if (pool) {
      GraphMemory& of_graphs = pools.at(*pool);
      of_graphs.free.put(at, size);
      of_graphs.free_bytes += size;
      pooled += size;
    } else {
      free.put(at, size);
    }
    for (auto* count : {&stats.allocation, &stats.active}) (*count)[0].decrease(1);
    for (auto* bytes : {&stats.allocated_bytes, &stats.active_bytes}) (*bytes)[0].decrease(size);
    stats.requested_bytes[0].decrease(asked);
  }
  // Returns to the driver what is neither allocated nor kept for graphs.
  void give_back() {
    stats.reserved_bytes[0].decrease(stats.reserved_bytes[0].current - int64_t(allocated() + pooled));
  }
  void retain_pool(Pool pool) { pools[pool].graphs++; }
  void release_pool(Pool pool) {
    GraphMemory& of_graphs = pools.at(pool);
    if (--of_graphs.graphs > 0) return;
    for (auto [offset, size] : of_graphs.free.ranges()) free.put(offset, size);
    pooled -= of_graphs.free_bytes;
    for (auto& [address, block] : used)
      if (block.pool == pool) block.pool = std::nullopt;
    pools.erase(pool);
  }
  void poison_pool(Pool pool) {
    for (auto [offset, size] : pools.at(pool).free.ranges()) memset(shadow + offset, 0xff, size);
    for (auto& [address, block] : used)
      if (block.pool == pool) memset(shadow + (address - addresses), 0xff, block.size);
  }
  // Returns what was allocated when most memory was, since the peak was last reset.
  const std::map<std::string, int64_t>& at_peak() {
    if (is_new_peak) held_at_peak = held;
    is_new_peak = false;
    return held_at_peak;
  }
  std::array<c10::CachingAllocator::StatArray*, 6> counts() {
    return {&stats.allocation,   &stats.active,         &stats.allocated_bytes,
            &stats.active_bytes, &stats.reserved_bytes, &stats.requested_bytes};
  }
};

class Memory final : public c10::DeviceAllocator {
  std::mutex lock;
  bool started = false;

  DeviceMemory& of(DeviceIndex device) {
    TORCH_CHECK(started && device >= 0 && device < DeviceIndex(devices.size()), "Invalid device argument ", int(device),
                ": did you call init?");
    return *devices[device];
  }
  static void drop(void* p) {
    if (p) static_cast<Memory&>(memory()).release(p);
  }

 public:
  std::vector<std::unique_ptr<DeviceMemory>> devices;

  Memory() {
    for (int i = 0; i < fake_device_count(); i++) devices.push_back(std::make_unique<DeviceMemory>(i));
  }
  void start() {
    std::lock_guard<std::mutex> hold(lock);
    started = true;
  }
  DeviceMemory* owner(const void* p) const {
    for (auto& device : devices)
      if (device->owns(p)) return device.get();
    return nullptr;
  }
  c10::DataPtr allocate_on(size_t bytes, DeviceIndex device, const std::string& operation) {
    if (bytes == 0) return {nullptr, nullptr, &drop, cuda(device)};
    const std::string holder = with_stacks() ? with_own_frames(operation.empty() ? "memory" : operation) : "";
    const std::optional<Pool> pool = capture_pool();
    void* p;
    {
      std::lock_guard<std::mutex> hold(lock);
      p = of(device).take(bytes, holder, pool);
    }
    if (!replaying()) count_allocation();
    return {p, p, &drop, cuda(device)};
  }
  std::map<std::string, int64_t> held_at_peak() {
    std::lock_guard<std::mutex> hold(lock);
    std::map<std::string, int64_t> all;
    for (auto& device : devices)
      for (auto& [holder, bytes] : device->at_peak()) all[holder] += bytes;
    return all;
  }
  void release(void* p) {
    std::lock_guard<std::mutex> hold(lock);
    owner(p)->release(static_cast<char*>(p));
  }

  void change_pool(DeviceIndex device, Pool pool, void (DeviceMemory::*change)(Pool)) {
    std::lock_guard<std::mutex> hold(lock);
    (of(device).*change)(pool);
  }

  c10::DataPtr allocate(size_t bytes) override { return allocate_on(bytes, current_device(), ""); }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, std::size_t n) const override { memcpy(host(to), host(from), n); }
  bool initialized() override { return started; }
  void emptyCache(c10::MempoolId_t) override {
    std::lock_guard<std::mutex> hold(lock);
    for (auto& device : devices) device->give_back();
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> hold(lock);
    return of(device).stats;
  }
  void resetAccumulatedStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> hold(lock);
    for (auto* count : of(device).counts()) (*count)[0].reset_accumulated();
  }
  void resetPeakStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> hold(lock);
    for (auto* count : of(device).counts()) (*count)[0].reset_peak();
  }
  // Asks the driver, not the allocator, hence before the allocator is started, too.
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex device) override {
    std::lock_guard<std::mutex> hold(lock);
    TORCH_CHECK(device >= 0 && device < DeviceIndex(devices.size()), "CUDA error: invalid device ordinal");
    DeviceMemory& d = *devices[device];
    return {d.total - d.reserved(), d.total};
  }
};

Memory& the_memory() { return static_cast<Memory&>(memory()); }

// Says what happened if host code followed a device pointer; the process then dies as it would have.
struct sigaction earlier_handler;
void on_fault(int, siginfo_t* info, void*) {
  if (DeviceMemory* device = the_memory().owner(info->si_addr)) {
    // Not safe in a signal handler, but the process is lost anyway.
    std::fprintf(stderr, "fake CUDA: host code touched the memory of cuda:%d at %p\n", int(device->index),
                 info->si_addr);
    for (const std::string& frame : own_frames(16)) std::fprintf(stderr, "  in %s\n", frame.c_str());
    std::fflush(stderr);
  }
  sigaction(SIGSEGV, &earlier_handler, nullptr);
}
}  // namespace

c10::DeviceAllocator& memory() {
  static auto* memory = new Memory();
  return *memory;
}
c10::DataPtr allocate(size_t bytes, DeviceIndex device, const std::string& operation) {
  return the_memory().allocate_on(bytes, device, operation);
}
std::map<std::string, int64_t> held_at_peak() { return the_memory().held_at_peak(); }
void retain_pool(DeviceIndex device, Pool pool) { the_memory().change_pool(device, pool, &DeviceMemory::retain_pool); }
void release_pool(DeviceIndex device, Pool pool) { the_memory().change_pool(device, pool, &DeviceMemory::release_pool); }
void poison_pool(DeviceIndex device, Pool pool) { the_memory().change_pool(device, pool, &DeviceMemory::poison_pool); }
void* host(const void* address) {
  DeviceMemory* device = the_memory().owner(address);
  return device ? device->shadow + (static_cast<const char*>(address) - device->addresses) : const_cast<void*>(address);
}
DeviceIndex owner(const void* address) {
  DeviceMemory* device = the_memory().owner(address);
  return device ? device->index : -1;
}
void initialise() {
  static bool once = [] {
    the_memory().start();
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &earlier_handler);
    return true;
  }();
  (void)once;
}

void need_product_buffer(DeviceIndex device) {
  // Buffers by thread, device and stream, kept until the thread ends.
  thread_local std::map<std::pair<DeviceIndex, c10::StreamId>, c10::DataPtr> buffers;
  static const size_t bytes = fake_product_buffer();
  if (replaying()) return;  // the captured product had one
  auto& buffer = buffers[{device, current_stream(device).id()}];
  if (bytes && !buffer.get()) buffer = allocate(bytes, device);
}
}  // namespace fake
