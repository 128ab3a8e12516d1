// The tensor side of product.cpp: which instruction set runs, on which tensors, on how many threads.
//
// A function returns 1 where it did the work, 0 where these tensors are not for it; tensors cross as at::Tensor*.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cstring>
#include <vector>

using at::Tensor;

extern "C" int ft_isa();

#define KERNELS(isa)                                                                                                  \
  extern "C" {                                                                                                        \
  void ft_product_bf16_##isa(const uint16_t*, const uint16_t*, int64_t, int64_t, int64_t, int64_t, const float*,      \
                             bool, uint16_t*, int64_t);                                                                     \
  void ft_product_f32_##isa(const float*, const float*, int64_t, int64_t, int64_t, int64_t, const float*, bool,       \
                            float*, int64_t);                                                                                 \
  void ft_attend_bf16_##isa(const uint16_t*, const uint16_t*, const uint16_t*, int64_t, int64_t, int64_t, float,      \
                            float*, uint16_t*);                                                                       \
  void ft_attend_f32_##isa(const float*, const float*, const float*, int64_t, int64_t, int64_t, float, float*,        \
                           float*);                                                                                   \
  }
KERNELS(base)
#ifdef __x86_64__
KERNELS(avx2)
KERNELS(avx512)
KERNELS(avx512bf16)
#endif

namespace {

struct Kernels {
  decltype(&ft_product_bf16_base) product_bf16;
  decltype(&ft_product_f32_base) product_f32;
  decltype(&ft_attend_bf16_base) attend_bf16;
  decltype(&ft_attend_f32_base) attend_f32;
};

#define TABLE(isa) Kernels{ft_product_bf16_##isa, ft_product_f32_##isa, ft_attend_bf16_##isa, ft_attend_f32_##isa}

const Kernels& kernels() {
  static const Kernels chosen = [] {
#ifdef __x86_64__
    if (ft_isa() >= 3) return TABLE(avx512bf16);
    if (ft_isa() >= 2) return TABLE(avx512);
    if (ft_isa() >= 1) return TABLE(avx2);
#endif
    return TABLE(base);
  }();
  return chosen;
}

bool plain(const Tensor& t, at::ScalarType kind) {
  return t.is_cpu() && t.scalar_type() == kind && t.layout() == at::kStrided && t.is_contiguous();
}

const uint16_t* half(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }
uint16_t* half_out(const Tensor& t) { return static_cast<uint16_t*>(t.mutable_data_ptr()); }

// Rows up to which these products are used. A row then has the same bits in any batch, at three quarters of the speed of
// libtorch's products where rows are many; with tile registers those are several times faster, and only few rows stay.
int64_t most_rows() {
  return ft_isa() >= 4 ? 8 : INT64_MAX;
}

// Work worth a thread, in multiply-adds: some microseconds, which is what starting it costs. A weight that must come from
// memory takes as long as its products with this many rows.
constexpr int64_t kGrain = 1 << 19;
constexpr int64_t kFetch = 6;

}  // namespace

extern "C" {

int64_t ft_product_rows() { return most_rows(); }

// x (…, k) times w (n, k) transposed, plus bias (n): a new tensor (…, n), or `onto` with the product added to it; null
// where these are not for it.
Tensor* ft_product(const Tensor* x, const Tensor* w, const Tensor* bias, const Tensor* onto) {
  try {
    auto kind = x->scalar_type();
    if (c10::GradMode::is_enabled() || (kind != at::kBFloat16 && kind != at::kFloat)) return nullptr;
    if (!plain(*x, kind) || !plain(*w, kind) || w->dim() != 2 || x->dim() < 1) return nullptr;
    int64_t n = w->size(0), k = w->size(1);
    if (x->size(-1) != k || k == 0 || x->numel() / k > most_rows()) return nullptr;
    Tensor wide;
    if (bias) {
      if (!bias->is_cpu() || bias->numel() != n) return nullptr;
      wide = bias->to(at::kFloat).contiguous();
    }
    const float* b = bias ? wide.const_data_ptr<float>() : nullptr;
    auto shape = x->sizes().vec();
    shape.back() = n;
    if (onto && (!plain(*onto, kind) || onto->sizes() != at::IntArrayRef(shape))) return nullptr;
    Tensor out = onto ? *onto : at::empty(shape, x->options().requires_grad(false));
    int64_t rows = x->numel() / k;
    const auto& run = kernels();
    at::parallel_for(0, (n + 3) / 4, std::max<int64_t>(1, kGrain / (4 * k * (rows + kFetch))), [&](int64_t from, int64_t to) {
      from *= 4;
      to = std::min(to * 4, n);
      if (kind == at::kFloat)
        run.product_f32(w->const_data_ptr<float>(), x->const_data_ptr<float>(), rows, k, from, to, b, onto,
                        out.mutable_data_ptr<float>(), n);
      else
        run.product_bf16(half(*w), half(*x), rows, k, from, to, b, onto, half_out(out), n);
    });
    return new Tensor(std::move(out));
  } catch (...) {
    return nullptr;  // libtorch's own product will say what is wrong
  }
}

// One new token for each of the first S slots of a cache. q (S, H, e), k and v (S, K, e); keys and values
// (slots, K, capacity, e); slot s holds held[s] tokens before the new one. Writes k and v, attends: out (S, H, e).
Tensor* ft_decode_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* keys, const Tensor* values,
                            const int64_t* held, int64_t slots, double scale) {
  try {
    auto kind = q->scalar_type();
    if (kind != at::kBFloat16 && kind != at::kFloat) return nullptr;
    for (auto* t : {q, k, v, keys, values})
      if (!plain(*t, kind)) return nullptr;
    int64_t heads = q->size(1), e = q->size(2), shared = k->size(1), capacity = keys->size(2);
    if (q->size(0) != slots || k->size(0) != slots || keys->size(0) < slots || heads % shared != 0) return nullptr;
    int64_t group = heads / shared, longest = 0;
    for (int64_t s = 0; s < slots; s++) {
      if (held[s] + 1 > capacity) return nullptr;
      longest = std::max(longest, held[s] + 1);
    }
    Tensor out = at::empty_like(*q);
    const auto& run = kernels();
    int64_t size = q->element_size();
    auto at_byte = [](const Tensor& t, int64_t i) { return static_cast<char*>(const_cast<void*>(t.const_data_ptr())) + i; };
    int64_t grain = std::max<int64_t>(1, kGrain / (2 * group * longest * e + 1));
    at::parallel_for(0, slots * shared, grain, [&](int64_t from, int64_t to) {
      std::vector<float> scores(group * (longest + 16));
      for (int64_t i = from; i < to; i++) {
        int64_t s = i / shared, n = held[s];
        char* key = at_byte(*keys, i * capacity * e * size);
        char* value = at_byte(*values, i * capacity * e * size);
        memcpy(key + n * e * size, at_byte(*k, i * e * size), e * size);
        memcpy(value + n * e * size, at_byte(*v, i * e * size), e * size);
        char* ask = at_byte(*q, i * group * e * size);
        char* answer = at_byte(out, i * group * e * size);
        if (kind == at::kFloat)
          run.attend_f32((float*)ask, (float*)key, (float*)value, group, n + 1, e, scale, scores.data(), (float*)answer);
        else
          run.attend_bf16((uint16_t*)ask, (uint16_t*)key, (uint16_t*)value, group, n + 1, e, scale, scores.data(),
                          (uint16_t*)answer);
      }
    });
    return new Tensor(std::move(out));
  } catch (...) {
    return nullptr;
  }
}
}
