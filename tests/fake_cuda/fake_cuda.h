// What the parts of the fake CUDA device offer each other. README.md describes the device as a whole.
#pragma once
#include "environment.h"

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace at {
struct HostAllocator;
}
namespace torch {
class Library;
}

namespace fake {
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;

inline Device cuda(DeviceIndex index) { return Device(c10::DeviceType::CUDA, index); }
inline bool on_device(const Tensor& t) { return t.defined() && t.device().is_cuda(); }

using Pool = c10::MempoolId_t;  // names memory that captured graphs keep for themselves

// ---- memory.cpp: device memory, which the host cannot read, and its shadow, which has the bytes
c10::DeviceAllocator& memory();
// Allocates on a device for an operation; throws libtorch's OutOfMemoryError. `memory().allocate` does it on the current device.
c10::DataPtr allocate(size_t bytes, DeviceIndex device, const std::string& operation = "");
// Returns the bytes that were allocated when most were, by operation and the program's own functions; needs FAKE_CUDA_STACKS.
std::map<std::string, int64_t> held_at_peak();
// Gives the calling thread its buffer for products on the current stream, unless it has one.
void need_product_buffer(DeviceIndex device);
// Counts the graphs that keep a pool; without one, its memory can be used by others.
void retain_pool(DeviceIndex device, Pool pool);
void release_pool(DeviceIndex device, Pool pool);
// Fills what a pool has with NaN.
void poison_pool(DeviceIndex device, Pool pool);
// Returns where the bytes of a device address are; any other address is returned unchanged.
void* host(const void* address);
// Returns the device that an address belongs to, or -1.
DeviceIndex owner(const void* address);
// Starts the devices; until then libtorch's allocator refuses questions about them.
void initialise();

// ---- pinned.cpp: page-locked host memory
at::HostAllocator& pinned_memory();
bool is_pinned(const void* address);

// ---- generator.cpp: random numbers
const at::Generator& default_generator(DeviceIndex device);
at::Generator new_generator(DeviceIndex device);
// Returns the CPU generator from which the next random operation on the device draws, and advances `device_generator`.
at::Generator draw(const at::Generator& device_generator);

// ---- graphs.cpp: work that is captured now and done when the graph is replayed
// Returns true if the calling thread's current stream is being captured.
bool capturing();
bool is_captured(c10::Stream stream);
// Returns true inside of a replay: nothing is counted then but the replay itself.
bool replaying();
// Returns the memory that allocations come from while the current stream is captured.
std::optional<Pool> capture_pool();
// Adds work to the graph.
void add_work(std::function<void()> work);
// Remembers what a tensor has, so that the capture leaves it as it is.
void remember(const Tensor& written);
// Fails as CUDA does if the current stream is being captured.
void refuse_in_capture(const std::string& what);
// Copies a result of replayed work to where the captured work had it.
void put(const Tensor& to, const Tensor& from);

// ---- counters.cpp
void count_launch(const std::string& operation);
// Counts that the host waited for the device.
void count_wait(const std::string& reason, int64_t times = 1);
void count_upload(size_t bytes);
void count_download(size_t bytes);
void count_allocation();
// Returns true if FAKE_CUDA_STACKS asks for functions.
bool with_stacks();
// Appends the program's own functions on the stack to a text: `text < innermost < …`.
std::string with_own_frames(std::string text);
// Returns names of the program's own functions on the stack, innermost first.
std::vector<std::string> own_frames(size_t most);

// ---- streams.cpp: the order of copies that the host does not wait for
DeviceIndex current_device();
void set_current_device(Device device);
// Returns the device with its number; throws if there is none with that number.
Device known_device(Device device);
void synchronize_device(DeviceIndex device);
c10::Stream current_stream(DeviceIndex device);
// Copies `bytes` from pinned memory to the device when the stream is next used or waited for. `keep` stays alive until
// then.
void upload_later(c10::Stream stream, void* to, const void* from, size_t bytes, std::vector<Tensor> keep);
// Copies `bytes` as they are now from the device to pinned memory when the host waits for the stream. Until then the
// host sees NaN.
void download_later(c10::Stream stream, void* to, const void* from, size_t bytes, std::vector<Tensor> keep);
// Lets the uploads of the device's current stream arrive; called before every operation on that device.
void begin_operation(DeviceIndex device);
// Waits until all work of the device's current stream is done. The caller counts the wait.
void finish_current_stream(DeviceIndex device);

// ---- tensors.cpp: CPU tensors over the shadow of device tensors, for one operation
// Returns a device tensor with the same bytes that does not keep their memory; any other tensor is returned unchanged.
Tensor unowned(const Tensor& t);
class Views {
  std::vector<std::pair<c10::Storage, c10::Storage>> storages;  // (of the device, of the CPU)
  std::vector<std::pair<Tensor, Tensor>> tensors;               // (of the device, of the CPU)
  std::string operation;
  DeviceIndex device_ = -1;

 public:
  // `operation` is named in the error about tensors of several devices.
  explicit Views(std::string operation) : operation(std::move(operation)) {}
  // Returns the CPU tensor with the bytes of a device tensor; views of one storage share one. Throws if an earlier
  // tensor was on another device. `argument` is named in the error.
  Tensor operator()(const Tensor& t, const std::string& argument = "tensor");
  // Returns the device tensor for a result of a CPU kernel, and whether new memory was needed for it.
  std::pair<Tensor, bool> result(const Tensor& t);
  // Copies a CPU tensor into new memory of the device.
  Tensor upload(const Tensor& t) const;
  // Takes over shapes and storages that a CPU kernel changed (`out=` of another size).
  void settle();
  // The device of the tensors seen so far, or the current one if there was none.
  DeviceIndex device() const { return device_ < 0 ? current_device() : device_; }
  bool any() const { return device_ >= 0; }
  // Says that the operation runs on this device (the `device` argument of a factory function).
  void on(DeviceIndex device) { device_ = device; }
  [[noreturn]] void mixed(Device other, const std::string& argument) const;
};

// ---- the operations; each function registers kernels under CUDA's dispatch key
void register_memory_kernels(torch::Library& aten);  // memory_kernels.cpp: making, resizing and copying tensors, items
void register_compute_kernels(
    torch::Library& aten);                      // compute_kernels.cpp: what the CPU has no kernel for, or another one
void register_attention(torch::Library& aten);  // attention.cpp
// dispatch.cpp: everything else runs its CPU kernel. Registered last: it looks for operations that have no kernel yet.
void register_fallback(torch::Library& aten, torch::Library& others);
}  // namespace fake
