// Allocator for CPU tensors: counts memory exactly, and keeps freed memory for reuse.
//
// Packed rows differ in length, so freed blocks seldom have the size requested next, and malloc's heap grows to several
// times the live memory. Here large blocks are cut from reserved address ranges, the smallest fitting block first, and
// neighbouring free blocks are joined. Pages stay mapped, so that reusing memory causes no new page faults.
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

namespace {

struct Block {
  char* at;
  size_t size;
  bool free;
  Block *before, *after;  // neighbours by address within one range
};

struct Smaller {
  bool operator()(const Block* a, const Block* b) const { return a->size != b->size ? a->size < b->size : a->at < b->at; }
};

struct Range { char *begin, *end; };

class CountingAllocator : public c10::Allocator {
  static constexpr size_t kLarge = 16 << 10;        // smaller blocks come from malloc
  static constexpr size_t kStep = 512;              // sizes and addresses are multiples of it, so aligned for AVX-512
  static constexpr size_t kRange = size_t(1) << 30; // address space reserved at a time; pages are allocated on first use
  static constexpr size_t kPage = size_t(2) << 20;

  std::mutex lock;
  std::set<Block*, Smaller> free_blocks;
  std::unordered_map<void*, Block*> used;
  std::vector<Range> ranges;

 public:
  std::atomic<int64_t> live{0}, peak{0};

  static CountingAllocator& instance() { static auto* a = new CountingAllocator(); return *a; }

  c10::DataPtr allocate(size_t n) override {
    void* p = n == 0 ? nullptr : n < kLarge ? small(n) : large(n);
    return {p, p, &drop, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, std::size_t n) const override { default_copy_data(to, from, n); }

  // Returns the pages of free blocks to the operating system; their addresses stay reserved.
  void trim() {
    std::lock_guard<std::mutex> l(lock);
    for (Block* b : free_blocks) {
      auto from = (reinterpret_cast<uintptr_t>(b->at) + kPage - 1) / kPage * kPage;
      auto to = reinterpret_cast<uintptr_t>(b->at + b->size) / kPage * kPage;
      if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
    }
    malloc_trim(0);
  }

 private:
  static void drop(void* p) { if (p) instance().put(p); }

  void count(int64_t n) {
    int64_t now = live.fetch_add(n) + n, seen = peak.load();
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {}
  }

  void* small(size_t n) {
    void* p = c10::alloc_cpu(n);
    count(malloc_usable_size(p));
    return p;
  }

  void* large(size_t n) {
    size_t size = (n + kStep - 1) / kStep * kStep;
    std::lock_guard<std::mutex> l(lock);
    Block wanted{nullptr, size, true, nullptr, nullptr};
    auto it = free_blocks.lower_bound(&wanted);
    if (it == free_blocks.end()) {
      reserve(size);
      it = free_blocks.lower_bound(&wanted);
    }
    Block* b = *it;
    free_blocks.erase(it);
    if (b->size > size) {
      auto* rest = new Block{b->at + size, b->size - size, true, b, b->after};
      if (b->after) b->after->before = rest;
      b->after = rest;
      b->size = size;
      free_blocks.insert(rest);
    }
    b->free = false;
    used[b->at] = b;
    count(size);
    return b->at;
  }

  void reserve(size_t size) {
    for (size_t bytes : {std::max(kRange, size), size}) {
      bytes = (bytes + kPage - 1) / kPage * kPage;
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) continue;
      madvise(p, bytes, MADV_HUGEPAGE);
      auto* at = static_cast<char*>(p);
      ranges.push_back({at, at + bytes});
      free_blocks.insert(new Block{at, bytes, true, nullptr, nullptr});
      return;
    }
    TORCH_CHECK_WITH(OutOfMemoryError, false, "not enough memory: ", size, " bytes were asked for");
  }

  void put(void* p) {
    {
      std::lock_guard<std::mutex> l(lock);
      bool ours = std::any_of(ranges.begin(), ranges.end(), [p](Range r) { return p >= r.begin && p < r.end; });
      if (ours) {
        auto it = used.find(p);
        Block* b = it->second;
        used.erase(it);
        live.fetch_sub(b->size);
        b->free = true;
        if (b->before && b->before->free) b = join(b->before);
        if (b->after && b->after->free) b = join(b);
        free_blocks.insert(b);
        return;
      }
    }
    live.fetch_sub(malloc_usable_size(p));
    c10::free_cpu(p);
  }

  // Joins `b` and the free block after it, and returns the result. Neither is in the set of free blocks afterwards.
  Block* join(Block* b) {
    Block* next = b->after;
    free_blocks.erase(b);
    free_blocks.erase(next);
    b->size += next->size;
    b->after = next->after;
    if (b->after) b->after->before = b;
    delete next;
    return b;
  }
};

}  // namespace

extern "C" {
void ft_cpu_allocator_install() { c10::SetCPUAllocator(&CountingAllocator::instance(), 100); }
void ft_cpu_allocator_trim() { CountingAllocator::instance().trim(); }
// out: live bytes, peak bytes
void ft_cpu_memory(int64_t* out, int reset_peak) {
  auto& a = CountingAllocator::instance();
  out[0] = a.live; out[1] = a.peak;
  if (reset_peak) a.peak = a.live.load();
}
}
