// Operations on memory: making, resizing and copying tensors, sharing storages, and reading single numbers.
#include "fake_cuda.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

namespace fake {
namespace {
using c10::DispatchKey;
using c10::DispatchKeySet;

// An allocator of one device, as libtorch's functions for empty tensors want it.
struct OnDevice final : c10::Allocator {
  DeviceIndex device;
  explicit OnDevice(DeviceIndex device) : device(device) {}
  c10::DataPtr allocate(size_t bytes) override { return fake::allocate(bytes, device); }
  c10::DeleterFnPtr raw_deleter() const override { return memory().raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t n) const override { memory().copy_data(to, from, n); }
};
OnDevice& allocator_of(std::optional<Device> device, std::optional<bool> pin) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  static auto* all = [] {
    auto* all = new std::vector<OnDevice>();
    for (int i = 0; i < fake_device_count(); i++) all->emplace_back(i);
    return all;
  }();
  return all->at(known_device(device.value_or(cuda(-1))).index());
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
             std::optional<Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "fake CUDA: a tensor of layout ", *layout);
  return at::detail::empty_generic(size, &allocator_of(device, pin), DispatchKeySet(DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool> pin) {
  return at::detail::empty_strided_generic(size, stride, &allocator_of(device, pin), DispatchKeySet(DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

// ---- resizing and sharing
void grow_storage(c10::TensorImpl* t) {
  const size_t need =
      at::detail::computeStorageNbytes(t->sizes(), t->strides(), t->dtype().itemsize(), t->storage_offset());
  auto* storage = t->unsafe_storage().unsafeGetStorageImpl();
  if (t->numel() == 0 || need <= storage->nbytes()) return;
  begin_operation(t->device().index());
  auto data = allocate(need, t->device().index());
  memcpy(host(data.get()), host(storage->data()), storage->nbytes());
  storage->set_data_ptr_noswap(std::move(data));
  storage->set_nbytes(need);
}
const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size) return self;
  auto* t = self.unsafeGetTensorImpl();
  t->set_sizes_contiguous(size);
  if (format && *format != at::MemoryFormat::Preserve) t->empty_tensor_restride(*format);
  grow_storage(t);
  return self;
}
Tensor& set_storage_offset(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                           at::IntArrayRef stride) {
  TORCH_CHECK(source.device() == self.device(), "Attempted to set the storage of a tensor on device \"", self.device(),
              "\" to a storage on different device \"", source.device(), "\".");
  auto* t = self.unsafeGetTensorImpl();
  t->set_storage_keep_dtype(std::move(source));
  t->set_storage_offset(offset);
  if (stride.empty() && !size.empty())
    t->set_sizes_contiguous(size);
  else
    t->set_sizes_and_strides(size, stride);
  grow_storage(t);
  return self;
}
Tensor& set_storage(Tensor& self, at::Storage source) {
  const int64_t n = source.nbytes() / self.dtype().itemsize();
  return set_storage_offset(self, std::move(source), 0, {n}, {});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage_offset(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
Tensor& set_nothing(Tensor& self) {
  c10::Storage none(c10::Storage::use_byte_size_t(), 0, allocate(0, self.device().index()), &memory(), true);
  return set_storage_offset(self, std::move(none), 0, {0}, {});
}
void record_stream(Tensor&, at::Stream) {}

// ---- copies
bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.is_non_overlapping_and_dense() && a.is_neg() == b.is_neg() && a.is_conj() == b.is_conj();
}
// Copies the bytes of tensors with the same layout between the host and a device.
void transfer(const Tensor& to, const Tensor& from, bool non_blocking) {
  const bool upload = on_device(to);
  const DeviceIndex device = (upload ? to : from).device().index();
  const Tensor& on_host = upload ? from : to;
  const size_t bytes = to.nbytes();
  if (bytes == 0) return;
  refuse_in_capture(upload ? "a copy from the host" : "a copy to the host");
  upload ? count_upload(bytes) : count_download(bytes);
  void* target = to.mutable_data_ptr();
  const void* source = from.const_data_ptr();
  // Pageable memory is first copied to a buffer of the driver, for which the host waits, asked or not.
  if (non_blocking && is_pinned(on_host.const_data_ptr())) {
    const auto stream = current_stream(device);
    return upload ? upload_later(stream, target, source, bytes, {to, from})
                  : download_later(stream, target, source, bytes, {to});  // its bytes are taken at once
  }
  count_wait(upload ? "copy to the device" : "copy to the host");
  finish_current_stream(device);
  memcpy(host(target), host(source), bytes);
}

// Copies as CUDA does: bytes between the host and a device are copied as they are; other layouts and dtypes take a
// temporary tensor, converted on the CPU if the host waits anyway, else on the device.
Tensor& copy_(Tensor& self, const Tensor& src, bool non_blocking) {
  if (self.is_same(src) || self.numel() == 0) return self;
  at::AutoDispatchBelowADInplaceOrView below;
  if (on_device(self) && on_device(src)) {
    if (capturing()) {
      remember(self);
      add_work([to = unowned(self), from = unowned(src)]() mutable { copy_(to, from, true); });
    }
    if (self.device() != src.device()) {  // through both devices' queues; the host does not wait
      begin_operation(src.device().index());
      begin_operation(self.device().index());
      Views there("copy_"), here("copy_");
      Tensor to = here(self);
      at::native::copy_(to, there(src), false);
    } else {
      Views views("copy_");
      Tensor to = views(self);
      at::native::copy_(to, views(src), false);
    }
    count_launch("aten::copy_");
    return self;
  }
  const Tensor source = src.expand_as(self);
  if (same_bytes(self, source)) {
    transfer(self, source, non_blocking);
    return self;
  }
  const bool convert_at_source = on_device(src) == non_blocking;
  Tensor to, from;
  if (convert_at_source) {
    from = src.to(self.scalar_type()).expand_as(self).contiguous();
    to = self.is_contiguous() ? self : at::empty_like(self, at::MemoryFormat::Contiguous);
  } else {
    from = source.contiguous();
    const bool fits = self.is_contiguous() && self.dtype() == src.dtype();
    to = fits ? self : at::empty_like(self, self.options().dtype(src.dtype()), at::MemoryFormat::Contiguous);
  }
  transfer(to, from, non_blocking);
  if (!to.is_same(self)) self.copy_(to, non_blocking);
  return self;
}

at::Scalar local_scalar_dense(const Tensor& self) {
  count_wait("item");
  count_download(self.dtype().itemsize());
  finish_current_stream(self.device().index());
  Views views("_local_scalar_dense");
  return at::native::_local_scalar_dense_cpu(views(self));
}
}  // namespace

void register_memory_kernels(torch::Library& aten) {
  aten.impl("empty.memory_format", empty);
  aten.impl("empty_strided", empty_strided);
  aten.impl("resize_", resize_);
  aten.impl("set_.source_Storage_storage_offset", set_storage_offset);
  aten.impl("set_.source_Storage", set_storage);
  aten.impl("set_.source_Tensor", set_tensor);
  aten.impl("set_", set_nothing);
  aten.impl("record_stream", record_stream);
  aten.impl("view", at::native::view);
  aten.impl("as_strided", at::native::as_strided_tensorimpl);
  aten.impl("_reshape_alias", at::native::_reshape_alias);
  aten.impl("copy_", copy_);
  aten.impl("_local_scalar_dense", local_scalar_dense);
}
}  // namespace fake
