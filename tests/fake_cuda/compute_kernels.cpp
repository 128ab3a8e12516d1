// Operations for which CUDA has a kernel of another kind than the CPU: fused norms, dropout, softmax of half precision
// into float32, products of half precision into float32, products of groups of rows. Each counts one launch.
#include "captured.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

namespace fake {
namespace {
// One operation: checks devices, gives CPU tensors, takes results back.
struct Kernel {
  at::AutoDispatchBelowADInplaceOrView below;
  Views views;
  explicit Kernel(const char* name) : views(name) { count_launch(std::string("aten::") + name); }
  Tensor operator()(const Tensor& t, const char* argument = "input") {
    if (!t.defined()) return t;
    if (!on_device(t)) views.mixed(t.device(), argument);
    return views(t, argument);
  }
  Tensor operator()(const std::optional<Tensor>& t, const char* argument) {
    return t ? (*this)(*t, argument) : Tensor();
  }
};

at::ScalarType accumulated(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
// The last dimensions, over which a norm is computed.
std::vector<int64_t> last(at::IntArrayRef shape) {
  std::vector<int64_t> dims;
  for (size_t i = 0; i < shape.size(); i++) dims.push_back(int64_t(i) - int64_t(shape.size()));
  return dims;
}

// y = x * rstd * weight with rstd = 1 / sqrt(mean(x^2) + eps), computed in float32 and rounded once.
std::tuple<Tensor, Tensor> rms_norm(const Tensor& input, at::IntArrayRef shape, const std::optional<Tensor>& weight,
                                    std::optional<double> eps) {
  Kernel kernel("_fused_rms_norm");
  const Tensor x = kernel(input).to(accumulated(input)), w = kernel(weight, "weight");
  const double smallest = input.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                             : std::numeric_limits<float>::epsilon();
  const Tensor rstd = x.square().mean(last(shape), true).add_(eps.value_or(smallest)).rsqrt_();
  Tensor y = x * rstd;
  if (w.defined()) y.mul_(w);
  return {kernel.views.upload(y.to(input.scalar_type())), kernel.views.upload(rstd)};
}
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_out, const Tensor& input, at::IntArrayRef shape,
                                             const Tensor& rstd, const std::optional<Tensor>& weight,
                                             std::array<bool, 2> wanted) {
  Kernel kernel("_fused_rms_norm_backward");
  const auto kind = accumulated(input);
  const Tensor g = kernel(grad_out, "grad_out").to(kind), r = kernel(rstd, "rstd"), w = kernel(weight, "weight");
  const Tensor normed = kernel(input).to(kind) * r;
  Tensor gx, gw;
  if (wanted[0]) {
    const Tensor wg = w.defined() ? g * w : g;
    gx = kernel.views.upload(((wg - normed * (wg * normed).mean(last(shape), true)) * r).to(input.scalar_type()));
  }
  if (wanted[1] && w.defined()) {
    gw = kernel.views.upload((g * normed).reshape({-1, w.numel()}).sum(0).view(w.sizes()).to(w.scalar_type()));
  }
  return {gx, gw};
}

std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, std::optional<bool> train) {
  Kernel kernel("native_dropout");
  const Tensor x = kernel(input);
  Tensor mask = at::ones_like(x, x.options().dtype(at::kBool)), out = x;
  if (train.value_or(true) && x.numel() > 0) {
    mask.bernoulli_(1 - p, draw(default_generator(kernel.views.device())));
    out = x.mul(mask).mul_(p == 1 ? 0. : 1 / (1 - p));
  }
  return {kernel.views.upload(out), kernel.views.upload(mask)};
}

// CUDA can round half precision once less: it reads half and writes float32.
Tensor softmax(const Tensor& self, int64_t dim, bool half_to_float) {
  Kernel kernel("_softmax");
  const Tensor x = kernel(self, "self");
  return kernel.views.upload(at::_softmax(half_to_float ? x.to(at::kFloat) : x, dim, false));
}
Tensor log_softmax(const Tensor& self, int64_t dim, bool half_to_float) {
  Kernel kernel("_log_softmax");
  const Tensor x = kernel(self, "self");
  return kernel.views.upload(at::_log_softmax(half_to_float ? x.to(at::kFloat) : x, dim, false));
}
Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, at::ScalarType input_dtype) {
  Kernel kernel("_softmax_backward_data");
  const Tensor g = kernel(grad, "grad_output"), y = kernel(output, "output");
  return kernel.views.upload(at::_softmax_backward_data(g, y, dim, g.scalar_type()).to(input_dtype));
}
Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, at::ScalarType input_dtype) {
  Kernel kernel("_log_softmax_backward_data");
  const Tensor g = kernel(grad, "grad_output"), y = kernel(output, "output");
  return kernel.views.upload(at::_log_softmax_backward_data(g, y, dim, g.scalar_type()).to(input_dtype));
}

// A kernel of the library of products, which has a buffer.
struct Product : Kernel {
  Product(const char* name, const Tensor& first) : Kernel(name) {
    if (on_device(first)) need_product_buffer(first.device().index());
  }
};

// Products with float32 results of half-precision factors.
void check_out_dtype(const Tensor& factor, at::ScalarType out) {
  TORCH_CHECK(out == factor.scalar_type() ||
                  (out == at::kFloat && (factor.scalar_type() == at::kHalf || factor.scalar_type() == at::kBFloat16)),
              "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
}
Tensor mm_dtype(const Tensor& self, const Tensor& mat2, at::ScalarType out) {
  check_out_dtype(self, out);
  Product kernel("mm", self);
  const Tensor a = kernel(self, "self"), b = kernel(mat2, "mat2");
  return kernel.views.upload(a.to(out).mm(b.to(out)));
}
Tensor bmm_dtype(const Tensor& self, const Tensor& mat2, at::ScalarType out) {
  check_out_dtype(self, out);
  Product kernel("bmm", self);
  const Tensor a = kernel(self, "self"), b = kernel(mat2, "mat2");
  return kernel.views.upload(a.to(out).bmm(b.to(out)));
}
Tensor addmm_dtype(const Tensor& self, const Tensor& mat1, const Tensor& mat2, at::ScalarType out,
                   const at::Scalar& beta, const at::Scalar& alpha) {
  check_out_dtype(mat1, out);
  Product kernel("addmm", mat1);
  const Tensor c = kernel(self, "self"), a = kernel(mat1, "mat1"), b = kernel(mat2, "mat2");
  return kernel.views.upload(c.to(out).addmm(a.to(out), b.to(out), beta, alpha));
}
Tensor& addmm_dtype_out(const Tensor& self, const Tensor& mat1, const Tensor& mat2, at::ScalarType out_dtype,
                        const at::Scalar& beta, const at::Scalar& alpha, Tensor& out) {
  check_out_dtype(mat1, out_dtype);
  TORCH_CHECK(out.scalar_type() == out_dtype && self.scalar_type() == out_dtype,
              "self and out must have the dtype of the result");
  Product kernel("addmm", mat1);
  const Tensor c = kernel(self, "self"), a = kernel(mat1, "mat1"), b = kernel(mat2, "mat2");
  Tensor result = kernel(out, "out");
  at::addmm_out(result, c, a.to(out_dtype), b.to(out_dtype), beta, alpha);
  return out;
}
Tensor baddbmm_dtype(const Tensor& self, const Tensor& batch1, const Tensor& batch2, at::ScalarType out,
                     const at::Scalar& beta, const at::Scalar& alpha) {
  check_out_dtype(batch1, out);
  Product kernel("baddbmm", batch1);
  const Tensor c = kernel(self, "self"), a = kernel(batch1, "batch1"), b = kernel(batch2, "batch2");
  return kernel.views.upload(c.to(out).baddbmm(a.to(out), b.to(out), beta, alpha));
}

// Products of FP8 with a scale for each matrix: what CUDA refuses is refused, with libtorch's messages where it has one. Other scales and
// layouts, which only some GPUs take, and results in FP8 are not known.
Tensor scaled_mm(const Tensor& self, const Tensor& mat2, const Tensor& scale_a, const Tensor& scale_b,
                 const std::optional<Tensor>& bias, const std::optional<Tensor>& scale_result,
                 std::optional<at::ScalarType> out_dtype, bool) {
  const auto is_fp8 = [](const Tensor& t) {
    return t.scalar_type() == at::kFloat8_e4m3fn || t.scalar_type() == at::kFloat8_e5m2;
  };
  TORCH_CHECK(fake_capability() >= 89,
              "torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9, or ROCm MI300+");
  TORCH_CHECK(self.dim() == 2 && mat2.dim() == 2, "mat1 and mat2 must be matrices");
  TORCH_CHECK(self.size(1) == mat2.size(0), "mat1 and mat2 shapes cannot be multiplied (", self.sizes(), " and ",
              mat2.sizes(), ")");
  for (const Tensor& scale : {scale_a, scale_b})
    TORCH_CHECK(scale.scalar_type() == at::kFloat && scale.numel() == 1,
                "Invalid scaling configuration. fake CUDA: only float32 scales of whole matrices are known, not ", scale.sizes());
  TORCH_CHECK(self.size(1) % 16 == 0, "Expected trailing dimension of mat1 to be divisible by 16 but got mat1 shape: ", self.sizes());
  TORCH_CHECK(mat2.size(0) % 16 == 0 && mat2.size(1) % 16 == 0, "mat2 shape ", mat2.sizes(), " must be divisible by 16");
  TORCH_CHECK(is_fp8(self) && is_fp8(mat2), "Expected mat1 and mat2 to be Float8 matrices, got ", self.scalar_type(), " and ",
              mat2.scalar_type());
  TORCH_CHECK(self.scalar_type() != at::kFloat8_e5m2 || mat2.scalar_type() != at::kFloat8_e5m2,
              "Multiplication of two Float8_e5m2 matrices is not supported");
  TORCH_CHECK(self.size(0) > 0, "fake CUDA: products of no rows are not known");
  TORCH_CHECK(self.stride(1) == 1 && self.stride(0) % 16 == 0 && mat2.stride(0) == 1 && mat2.stride(1) % 16 == 0 &&
                  uintptr_t(self.const_data_ptr()) % 16 == 0 && uintptr_t(mat2.const_data_ptr()) % 16 == 0,
              "Only multiplication of row-major and column-major matrices is supported by cuBLASLt");
  TORCH_CHECK(!bias && !scale_result && out_dtype &&
                  (*out_dtype == at::kBFloat16 || *out_dtype == at::kHalf || *out_dtype == at::kFloat),
              "fake CUDA: only products without bias in bfloat16, float16 or float32 are known");
  Product kernel("_scaled_mm", self);
  const Tensor a = kernel(self, "self").to(at::kFloat), b = kernel(mat2, "mat2").to(at::kFloat);
  const float scale = kernel(scale_a, "scale_a").item<float>() * kernel(scale_b, "scale_b").item<float>();
  return kernel.views.upload(a.mm(b).mul_(scale).to(*out_dtype));
}

// The products of groups of rows with a matrix each, in one launch: what CUDA's own kernel refuses is refused. (For other number
// formats and older GPUs libtorch composes them, and waits for the ends of the groups.)
Tensor grouped_mm(const Tensor& self, const Tensor& mat2, const std::optional<Tensor>& ends,
                  const std::optional<Tensor>& bias, std::optional<at::ScalarType> out_dtype) {
  TORCH_CHECK(fake_capability() >= 90 && self.scalar_type() == at::kBFloat16 && mat2.scalar_type() == at::kBFloat16,
              "fake CUDA: grouped products of ", self.scalar_type(), " are composed on this device");
  TORCH_CHECK(self.dim() == 2 && mat2.dim() == 3 && ends && ends->scalar_type() == at::kInt && !bias && !out_dtype,
              "fake CUDA: only products of groups of rows with a stack of matrices are known");
  for (const Tensor& t : {self, mat2}) {
    const int64_t last = t.dim() - 1;
    const int64_t other = t.stride(last) == 1 ? t.stride(last - 1) : t.stride(last);
    TORCH_CHECK(t.stride(last) == 1 || t.stride(last - 1) == 1, "one of the last two strides must be 1");
    TORCH_CHECK(other % 8 == 0 && uintptr_t(t.const_data_ptr()) % 16 == 0, "strides should be multiple of 16 bytes");
  }
  Product kernel("_grouped_mm", self);
  const Tensor a = kernel(self, "self"), b = kernel(mat2, "mat2"), offsets = kernel(ends, "offs");
  return kernel.views.upload(at::_grouped_mm(a, b, offsets));
}
}  // namespace

void register_compute_kernels(torch::Library& aten) {
  aten.impl("_fused_rms_norm", captured<rms_norm>);
  aten.impl("_grouped_mm", captured<grouped_mm>);
  aten.impl("_scaled_mm", captured<scaled_mm>);
  aten.impl("_fused_rms_norm_backward", captured<rms_norm_backward>);
  aten.impl("native_dropout", captured<native_dropout>);
  aten.impl("_softmax", captured<softmax>);
  aten.impl("_log_softmax", captured<log_softmax>);
  aten.impl("_softmax_backward_data", captured<softmax_backward>);
  aten.impl("_log_softmax_backward_data", captured<log_softmax_backward>);
  aten.impl("mm.dtype", captured<mm_dtype>);
  aten.impl("bmm.dtype", captured<bmm_dtype>);
  aten.impl("addmm.dtype", captured<addmm_dtype>);
  aten.impl("addmm.dtype_out", captured<addmm_dtype_out>);
  aten.impl("baddbmm.dtype", captured<baddbmm_dtype>);
}
}  // namespace fake
