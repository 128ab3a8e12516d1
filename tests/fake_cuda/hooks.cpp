// What libtorch asks of CUDA outside the dispatcher, and what is done when the library is loaded.
#include "fake_cuda.h"

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/library.h>

namespace fake {
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  // A negative number means the current device.
  static DeviceIndex checked(DeviceIndex device) { return known_device(cuda(device)).index(); }

  void init() const override {
    TORCH_CHECK(fake_device_count() > 0, "No CUDA GPUs are available");
    initialise();
  }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return fake_device_count() > 0; }
  bool hasCUDA() const override { return fake_device_count() > 0; }
  bool hasCUDART() const override { return true; }
  bool hasCuBLASLt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex device) const override { return memory().initialized() && device < fake_device_count(); }
  std::string showConfig() const override { return "fake CUDA"; }
  long versionCUDART() const override { return 13000; }

  int getNumGPUs() const override { return fake_device_count(); }
  DeviceIndex deviceCount() const override { return fake_device_count(); }
  DeviceIndex current_device() const override { return fake::current_device(); }
  DeviceIndex getCurrentDevice() const override { return fake::current_device(); }
  void setCurrentDevice(DeviceIndex device) const override { set_current_device(cuda(checked(device))); }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    const DeviceIndex before = fake::current_device();
    setCurrentDevice(device);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return device < 0 ? fake::current_device() : exchangeDevice(device);
  }
  void deviceSynchronize(DeviceIndex device) const override { synchronize_device(checked(device)); }

  const at::Generator& getDefaultGenerator(DeviceIndex device) const override { return default_generator(checked(device)); }
  at::Generator getNewGenerator(DeviceIndex device) const override { return new_generator(checked(device)); }
  Device getDeviceFromPtr(void* address) const override {
    TORCH_CHECK(owner(address) >= 0, "The specified pointer resides on host memory and is not registered with any CUDA device.");
    return cuda(owner(address));
  }
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory(); }
  at::Allocator* getCUDADeviceAllocator() const override { return &memory(); }
};

struct Start {
  Start() {
    c10::SetAllocator(c10::DeviceType::CUDA, &memory(), 0);
    at::setHostAllocator(c10::DeviceType::CUDA, &pinned_memory());
    // Never freed: they stay registered until the process ends.
    auto& aten = *new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
    auto& others = *new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::CUDA, __FILE__, __LINE__);
    register_memory_kernels(aten);
    register_compute_kernels(aten);
    register_attention(aten);
    register_fallback(aten, others);
  }
} start;
}  // namespace fake

namespace at {
using fake::CUDAHooks;  // libtorch looks for this name
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at
