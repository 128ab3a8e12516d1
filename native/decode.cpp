// The tensor side of product.cpp: which instruction set runs, on which tensors, on how many threads.
//
// A function returns 1 where it did the work, 0 where these tensors are not for it; tensors cross as at::Tensor*.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstring>
#include <vector>

using at::Tensor;

extern "C" int ft_isa();

#define ARGUMENTS(T, X) const T*, const X*, int64_t, int64_t, int64_t, int64_t, const float*, bool
#define KERNELS(isa)                                                                                                  \
  extern "C" {                                                                                                        \
  void ft_product_bf16_##isa(ARGUMENTS(uint16_t, uint16_t), float*, uint16_t*, int64_t);                              \
  void ft_product_f32_##isa(ARGUMENTS(float, float), float*, int64_t);                                                \
  void ft_product_mixed_##isa(ARGUMENTS(uint16_t, float), float*, float*, int64_t);                                   \
  void ft_product_mixed_to_bf16_##isa(ARGUMENTS(uint16_t, float), float*, uint16_t*, int64_t);                        \
  void ft_widen_##isa(const uint16_t*, int64_t, float*);                                                              \
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
KERNELS(amx)
#endif

namespace {

struct Kernels {
  decltype(&ft_product_bf16_base) product_bf16;
  decltype(&ft_product_f32_base) product_f32;
  decltype(&ft_product_mixed_base) product_mixed;
  decltype(&ft_product_mixed_to_bf16_base) product_mixed_to_bf16;
  decltype(&ft_widen_base) widen;
  decltype(&ft_attend_bf16_base) attend_bf16;
  decltype(&ft_attend_f32_base) attend_f32;
};

#define TABLE(isa)                                                                                                    \
  Kernels{ft_product_bf16_##isa, ft_product_f32_##isa,   ft_product_mixed_##isa, ft_product_mixed_to_bf16_##isa,      \
          ft_widen_##isa,        ft_attend_bf16_##isa, ft_attend_f32_##isa}

// The build for a level of isa.cpp.
const Kernels& kernels(int level) {
  static const Kernels builds[] = {
      TABLE(base),
#ifdef __x86_64__
      TABLE(avx2),
      TABLE(avx512),
      TABLE(avx512bf16),
      TABLE(amx),
#endif
  };
  return builds[std::min<int>(level, sizeof builds / sizeof *builds - 1)];
}

// Levels of isa.cpp from which an instruction multiplies bfloat16.
constexpr int kBf16Products = 3;

bool plain(const Tensor& t, at::ScalarType kind) {
  return t.is_cpu() && t.scalar_type() == kind && t.layout() == at::kStrided && t.is_contiguous();
}

const uint16_t* half(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }
uint16_t* half_out(const Tensor& t) { return static_cast<uint16_t*>(t.mutable_data_ptr()); }

// How x and w are stored.
enum Format { kFloats, kMixed, kHalves, kFormats };

// The format of these tensors; kFormats where there is no product for them.
Format format(const Tensor& x, const Tensor& w) {
  auto a = x.scalar_type(), b = w.scalar_type();
  if (a == at::kFloat && b == at::kFloat) return kFloats;
  if (a == at::kFloat && b == at::kBFloat16) return kMixed;
  return a == at::kBFloat16 && b == at::kBFloat16 ? kHalves : kFormats;
}

// Rows of x up to which our own kernels multiply; libtorch's take more. A table and no timing, so that a machine always
// computes the same; a row has the same bits in any batch of up to so many rows. Measured on the layers of SmolLM2-135M,
// one thread of a Xeon (Sapphire Rapids) kept to each level, GFLOP/s of ours and of libtorch's (for bfloat16 weights with
// float32 x, "mixed", of a widened weight):
//                     rows     16          32          64          128         512
// AVX2         float32      59  38      81  54      80  81      82  97      83 105
//              mixed        64  43      76  61      75  77      74  91      77 101
// AVX-512      float32      67  45     104  75     135 126     128 153     119 166
//              mixed        88  52     110  83     126 119     114 130     110 154
// with bf16    bfloat16     84  53      90  71      93  87      94 101      95 108
// AMX          bfloat16    164  81     260 157     356 263       -  452      -  673
// Without an instruction for bfloat16, libtorch multiplies it at 18 (AVX2) and 35 (AVX-512) GFLOP/s: there its rows are
// widened and go the way of the mixed format.
constexpr int64_t kMostRows[][kFormats] = {
    // float32, mixed, bfloat16
    {64, 64, 64},  // portable: libtorch's products have AVX2 where the processor has; not measured
    {64, 64, 64},  // AVX2
    {64, 64, 64},  // AVX-512
    {64, 64, 64},  // AVX-512 with bf16
    {64, 64, 64},  // AMX
};

// Work worth a thread, in multiply-adds: some microseconds, which is what starting it costs. A weight that must come from
// memory takes as long as its products with this many rows.
constexpr int64_t kGrain = 1 << 19;
constexpr int64_t kFetch = 6;
// Rows of w that one thread takes as a whole: AMX multiplies 16 at a time, the others 4.
constexpr int64_t kUnit = 16;

// Memory of this thread for `n` numbers, whose content is lost at the next call.
float* scratch(int64_t n) {
  static thread_local std::vector<float> kept;
  if (int64_t(kept.size()) < n) kept.resize(n);
  return kept.data();
}

// Numbers of 4 bytes that hold bfloat16 x (rows, k) as tiles of 16 rows and 32 columns.
int64_t tiles_of(int64_t rows, int64_t k) { return (rows + 15) / 16 * 16 * ((k + 31) / 32 * 16); }

// x (rows, k) times w (n, k) transposed by our own kernels, to out (rows, n).
void by_kernel(int level, Format format, const Tensor& x, const Tensor& w, const float* bias, bool onto, Tensor& out) {
  int64_t n = w.size(0), k = w.size(1), rows = x.numel() / k;
  const auto& run = kernels(level);
  // Without an instruction for bfloat16 each number of x would be widened for each row of w.
  bool widened = format == kHalves && level < kBf16Products && rows > 1;
  Tensor wide = widened ? x.to(at::kFloat) : x;
  auto grain = std::max<int64_t>(1, kGrain / (kUnit * k * (rows + kFetch)));
  at::parallel_for(0, (n + kUnit - 1) / kUnit, grain, [&](int64_t from, int64_t to) {
    from *= kUnit;
    to = std::min(to * kUnit, n);
    if (format == kFloats)
      run.product_f32(w.const_data_ptr<float>(), x.const_data_ptr<float>(), rows, k, from, to, bias, onto,
                      out.mutable_data_ptr<float>(), n);
    else if (format == kMixed)
      run.product_mixed(half(w), x.const_data_ptr<float>(), rows, k, from, to, bias, onto, scratch(4 * k),
                        out.mutable_data_ptr<float>(), n);
    else if (widened)
      run.product_mixed_to_bf16(half(w), wide.const_data_ptr<float>(), rows, k, from, to, bias, onto, scratch(4 * k),
                                half_out(out), n);
    else
      run.product_bf16(half(w), half(x), rows, k, from, to, bias, onto, scratch(tiles_of(rows, k)), half_out(out), n);
  });
}

// bfloat16 x (rows, k) times w (n, k) transposed where no instruction multiplies bfloat16: widened as a whole, multiplied by
// libtorch, rounded once.
Tensor widened(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor* onto) {
  Tensor y = at::linear(x.to(at::kFloat), w.to(at::kFloat), bias.defined() ? c10::optional<Tensor>(bias) : c10::nullopt);
  if (!onto) return y.to(at::kBFloat16);
  Tensor sum = *onto;
  sum.copy_(y.add_(sum.to(at::kFloat)));
  return sum;
}

}  // namespace

extern "C" {

// Rows up to which a product is our own, where x and w are bfloat16 or else float32; 0 where there is none.
int64_t ft_product_rows(bool x_half, bool w_half) {
  if (x_half && !w_half) return 0;
  return kMostRows[ft_isa()][x_half ? kHalves : w_half ? kMixed : kFloats];
}

// x (…, k) times w (n, k) transposed, plus bias (n): a new tensor (…, n) of x's dtype, or `onto` with the product added to
// it; null where these are not for it. A `level` of isa.cpp: by our kernels of that level, whatever the number of rows; -1:
// whichever is fast.
Tensor* ft_product(int level, const Tensor* x, const Tensor* w, const Tensor* bias, const Tensor* onto) {
  try {
    auto kind = x->scalar_type();
    auto f = format(*x, *w);
    if (c10::GradMode::is_enabled() || f == kFormats || level > ft_isa()) return nullptr;
    if (!plain(*x, kind) || !plain(*w, w->scalar_type()) || w->dim() != 2 || x->dim() < 1) return nullptr;
    int64_t n = w->size(0), k = w->size(1);
    if (k == 0 || x->size(-1) != k) return nullptr;
    bool own = level >= 0 || x->numel() / k <= kMostRows[ft_isa()][f];
    // What libtorch multiplies fast is left to it, a widened weight included.
    if (!own && (f != kHalves || ft_isa() >= kBf16Products)) return nullptr;
    Tensor wide;
    if (bias) {
      if (!bias->is_cpu() || bias->numel() != n) return nullptr;
      wide = bias->to(at::kFloat).contiguous();
    }
    const float* b = bias ? wide.const_data_ptr<float>() : nullptr;
    auto shape = x->sizes().vec();
    shape.back() = n;
    if (onto && (!plain(*onto, kind) || onto->sizes() != at::IntArrayRef(shape))) return nullptr;
    if (!own) return new Tensor(widened(*x, *w, wide, onto));
    Tensor out = onto ? *onto : at::empty(shape, x->options().requires_grad(false));
    by_kernel(level < 0 ? ft_isa() : level, f, *x, *w, b, onto, out);
    return new Tensor(std::move(out));
  } catch (...) {
    return nullptr;  // libtorch's own product will say what is wrong
  }
}

// One new token for each of the first S slots of a cache. q (S, H, e), k and v (S, K, e); keys and values
// (slots, K, capacity, e); slot s holds held[s] tokens before the new one. Writes k and v, attends: out (S, H, e). `level` as in ft_product.
Tensor* ft_decode_attention(int level, const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* keys, const Tensor* values,
                            const int64_t* held, int64_t slots, double scale) {
  try {
    auto kind = q->scalar_type();
    if ((kind != at::kBFloat16 && kind != at::kFloat) || level > ft_isa()) return nullptr;
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
    const auto& run = kernels(level < 0 ? ft_isa() : level);
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
