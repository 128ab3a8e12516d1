// Page-locked host memory: ordinary memory that knows that it is pinned.
#include "fake_cuda.h"

#include <ATen/core/CachingHostAllocator.h>

#include <cstdlib>
#include <map>
#include <mutex>

namespace fake {
namespace {
class Pinned final : public at::HostAllocator {
  std::mutex lock;
  std::map<const char*, size_t> blocks;  // address -> length

  static void drop(void* p) {
    if (!p) return;
    auto& self = static_cast<Pinned&>(pinned_memory());
    {
      std::lock_guard<std::mutex> hold(self.lock);
      self.blocks.erase(static_cast<char*>(p));
    }
    std::free(p);
  }

 public:
  bool owns(const void* p) {
    std::lock_guard<std::mutex> hold(lock);
    auto after = blocks.upper_bound(static_cast<const char*>(p));
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return p < block->first + block->second;
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &drop, c10::DeviceType::CPU};
    auto* p = static_cast<char*>(std::aligned_alloc(512, (bytes + 511) / 512 * 512));
    std::lock_guard<std::mutex> hold(lock);
    blocks[p] = bytes;
    return {p, p, &drop, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, std::size_t n) const override { memcpy(to, from, n); }
  bool record_event(void*, void*, c10::Stream) override { return true; }  // pending copies keep their tensors alive
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};
}  // namespace

at::HostAllocator& pinned_memory() {
  static auto* pinned = new Pinned();
  return *pinned;
}
bool is_pinned(const void* address) { return static_cast<Pinned&>(pinned_memory()).owns(address); }
}  // namespace fake
