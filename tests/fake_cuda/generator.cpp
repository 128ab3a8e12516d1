// The devices' random generators. Their state is a seed and an offset in 16 bytes, as that of CUDA's Philox generator.
// Each random operation draws from a CPU generator of its own, seeded by both; the first operation after a seed
// therefore draws what the CPU draws after that seed.
#include "fake_cuda.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>

namespace fake {
namespace {
struct DeviceGenerator final : c10::GeneratorImpl {
  uint64_t seed_ = c10::default_rng_seed_val, offset_ = 0;

  explicit DeviceGenerator(DeviceIndex device)
      : GeneratorImpl(cuda(device), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    offset_ = 0;
  }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom(true));
    return seed_;
  }
  void set_offset(uint64_t offset) override { offset_ = offset; }
  uint64_t get_offset() const override { return offset_; }
  void set_state(const c10::TensorImpl& state) override {
    at::detail::check_rng_state(state);
    TORCH_CHECK(state.numel() == 16 || state.numel() == 8, "RNG state is wrong size");
    auto* numbers = static_cast<const uint64_t*>(state.data());
    seed_ = numbers[0];
    offset_ = state.numel() == 16 ? numbers[1] : 0;
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto state = at::detail::empty_cpu({16}, at::kByte, std::nullopt, std::nullopt, std::nullopt, std::nullopt);
    auto* numbers = static_cast<uint64_t*>(state.mutable_data_ptr());
    numbers[0] = seed_;
    numbers[1] = offset_;
    return state.getIntrusivePtr();
  }
  DeviceGenerator* clone_impl() const override {
    auto* copy = new DeviceGenerator(device_.index());
    copy->seed_ = seed_;
    copy->offset_ = offset_;
    return copy;
  }
};
}  // namespace

const at::Generator& default_generator(DeviceIndex device) {
  static auto* generators = [] {
    auto* all = new std::vector<at::Generator>();
    for (int i = 0; i < fake_device_count(); i++) all->push_back(new_generator(i));
    return all;
  }();
  return generators->at(device < 0 ? current_device() : device);
}
at::Generator new_generator(DeviceIndex device) {
  return at::make_generator<DeviceGenerator>(device < 0 ? current_device() : device);
}
at::Generator draw(const at::Generator& device_generator) {
  refuse_in_capture("random numbers");
  auto* generator = device_generator.get<DeviceGenerator>();
  std::lock_guard<std::mutex> hold(generator->mutex_);
  const uint64_t mixed = generator->seed_ + generator->offset_ * 0x9e3779b97f4a7c15ull;
  generator->offset_ += 4;
  return at::make_generator<at::CPUGeneratorImpl>(mixed);
}
}  // namespace fake
