// CPU tensors over the shadow of device tensors, so that libtorch's CPU kernels compute on device memory.
#include "fake_cuda.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

namespace fake {
namespace {
using c10::DispatchKey;
using c10::DispatchKeySet;

Tensor make(c10::Storage storage, DispatchKey key, const Tensor& like, int64_t offset) {
  Tensor t = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), offset);
  if (like.is_conj()) t._set_conj(true);
  if (like.is_neg()) t._set_neg(true);
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) t.unsafeGetTensorImpl()->set_wrapped_number(true);
  return t;
}
}  // namespace

Tensor unowned(const Tensor& t) {
  if (!on_device(t)) return t;
  const auto& storage = t.storage();
  c10::DataPtr bytes(const_cast<void*>(storage.data()), t.device());
  return make(c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(bytes), &memory(), false),
              DispatchKey::CUDA, t, t.storage_offset());
}

void Views::mixed(Device other, const std::string& argument) const {
  const Device first = device_ < 0 ? cuda(current_device()) : cuda(device_);
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", first, " and ",
              other, "! (when checking argument for argument ", argument, " in method wrapper_CUDA_", operation, ")");
}

Tensor Views::operator()(const Tensor& t, const std::string& argument) {
  for (auto& [ours, view] : tensors)
    if (ours.is_same(t)) return view;
  if (device_ < 0) {
    device_ = t.device().index();
    begin_operation(device_);
  }
  if (t.device().index() != device_) mixed(t.device(), argument);
  const c10::Storage& ours = t.unsafeGetTensorImpl()->unsafe_storage();
  c10::Storage view;
  for (auto& [known, its_view] : storages)
    if (known.unsafeGetStorageImpl() == ours.unsafeGetStorageImpl()) view = its_view;
  if (!view) {
    c10::DataPtr bytes(host(ours.data()), Device(c10::DeviceType::CPU));
    view = c10::Storage(c10::Storage::use_byte_size_t(), ours.nbytes(), std::move(bytes), c10::GetCPUAllocator(), true);
    storages.push_back({ours, view});
  }
  Tensor cpu = make(view, DispatchKey::CPU, t, t.storage_offset());
  tensors.push_back({t, cpu});
  return cpu;
}

std::pair<Tensor, bool> Views::result(const Tensor& t) {
  if (!t.defined() || on_device(t)) return {t, false};
  for (auto& [ours, view] : tensors)
    if (view.is_same(t)) return {ours, false};
  for (auto& [ours, view] : storages)
    if (t.has_storage() && view.unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl())
      return {make(ours, DispatchKey::CUDA, t, t.storage_offset()), false};
  return {upload(t), true};
}

Tensor Views::upload(const Tensor& t) const {
  TORCH_CHECK(t.layout() == at::kStrided, "fake CUDA: a result of layout ", t.layout());
  const size_t bytes = at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.dtype().itemsize());
  auto data = allocate(bytes, device(), operation);
  if (bytes) memcpy(host(data.get()), t.const_data_ptr(), bytes);
  return make(c10::Storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), &memory(), true), DispatchKey::CUDA,
              t, 0);
}

void Views::settle() {
  for (auto& [ours, view] : storages) {
    if (view.data() == host(ours.data()) && view.nbytes() == ours.nbytes()) continue;
    auto data = allocate(view.nbytes(), device(), operation);
    if (view.nbytes()) memcpy(host(data.get()), view.data(), view.nbytes());
    auto* storage = ours.unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(view.nbytes());
  }
  for (auto& [ours, view] : tensors)
    if (ours.sizes() != view.sizes() || ours.strides() != view.strides() ||
        ours.storage_offset() != view.storage_offset())
      ours.unsafeGetTensorImpl()->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
}
}  // namespace fake
