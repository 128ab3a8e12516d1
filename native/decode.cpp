// Runs the kernels of product.cpp and quantised_product.cpp on tensors: checks the tensors, chooses the instruction set, and splits the work
// between threads.
//
// A function returns a new tensor, or null if there is no kernel for these tensors. Tensors are passed as at::Tensor*.
#include "isa.h"
#include "quantised.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstring>
#include <vector>

using at::Tensor;

#define ARGUMENTS(T, X) const T*, const X*, int64_t, int64_t, int64_t, int64_t, const float*, bool
#define QUANTISED(X) const FtQuantised*, const X*, int64_t, int64_t, int64_t, const float*, bool, float*, float*
#define KERNELS(isa, ...)                                                                                             \
  extern "C" {                                                                                                        \
  void ft_product_bf16_##isa(ARGUMENTS(uint16_t, uint16_t), float*, uint16_t*, int64_t);                              \
  void ft_product_f32_##isa(ARGUMENTS(float, float), float*, int64_t);                                                \
  void ft_product_mixed_##isa(ARGUMENTS(uint16_t, float), float*, float*, int64_t);                                   \
  void ft_product_mixed_to_bf16_##isa(ARGUMENTS(uint16_t, float), float*, uint16_t*, int64_t);                        \
  int64_t ft_quantised_room_##isa(int64_t);                                                                           \
  void ft_product_quantised_f32_##isa(QUANTISED(float), float*, int64_t);                                             \
  void ft_product_quantised_bf16_##isa(QUANTISED(uint16_t), uint16_t*, int64_t);                                      \
  void ft_product_quantised_rounded_to_bf16_##isa(QUANTISED(float), uint16_t*, int64_t);                              \
  void ft_attend_bf16_##isa(const uint16_t*, const uint16_t*, const uint16_t*, int64_t, int64_t, int64_t, float, const float*,      \
                            float*, uint16_t*);                                                                       \
  void ft_attend_f32_##isa(const float*, const float*, const float*, int64_t, int64_t, int64_t, float, const float*, float*,        \
                           float*);                                                                                   \
  void ft_vector_exponential_##isa(const float*, float*, int64_t);                                                    \
  }
FT_LEVELS(KERNELS)

namespace {

struct Kernels {
  decltype(&ft_product_bf16_portable) product_bf16;
  decltype(&ft_product_f32_portable) product_f32;
  decltype(&ft_product_mixed_portable) product_mixed;
  decltype(&ft_product_mixed_to_bf16_portable) product_mixed_to_bf16;
  decltype(&ft_quantised_room_portable) quantised_room;
  decltype(&ft_product_quantised_f32_portable) quantised_f32;
  decltype(&ft_product_quantised_bf16_portable) quantised_bf16;
  decltype(&ft_product_quantised_rounded_to_bf16_portable) quantised_rounded_to_bf16;
  decltype(&ft_attend_bf16_portable) attend_bf16;
  decltype(&ft_attend_f32_portable) attend_f32;
  decltype(&ft_vector_exponential_portable) exponential;
};

#define TABLE(isa, ...)                                                                                               \
  Kernels{ft_product_bf16_##isa, ft_product_f32_##isa,   ft_product_mixed_##isa, ft_product_mixed_to_bf16_##isa,      \
          ft_quantised_room_##isa, ft_product_quantised_f32_##isa, ft_product_quantised_bf16_##isa,                   \
          ft_product_quantised_rounded_to_bf16_##isa,                                                                 \
          ft_attend_bf16_##isa, ft_attend_f32_##isa,  ft_vector_exponential_##isa},

// Returns the build for a level of isa.h.
const Kernels& kernels(int level) {
  static const Kernels builds[] = {FT_LEVELS(TABLE)};
  return builds[std::min<int>(level, sizeof builds / sizeof *builds - 1)];
}

// The lowest level that has an instruction to multiply bfloat16.
constexpr int kBf16Products = kLevel_avx512_bf16;

bool plain(const Tensor& t, at::ScalarType kind) {
  return t.is_cpu() && t.scalar_type() == kind && t.layout() == at::kStrided && t.is_contiguous();
}

const uint16_t* half(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }
uint16_t* half_out(const Tensor& t) { return static_cast<uint16_t*>(t.mutable_data_ptr()); }

// The dtypes of x and w: both float32, float32 x with bfloat16 w, or both bfloat16.
enum Format { kFloats, kMixed, kHalves, kFormats };

// Returns the format of these tensors; kFormats if there is no kernel for them.
Format format(const Tensor& x, const Tensor& w) {
  auto a = x.scalar_type(), b = w.scalar_type();
  if (a == at::kFloat && b == at::kFloat) return kFloats;
  if (a == at::kFloat && b == at::kBFloat16) return kMixed;
  return a == at::kBFloat16 && b == at::kBFloat16 ? kHalves : kFormats;
}

// Number of rows of x up to which our own kernels multiply; libtorch multiplies more. This is a table and not a
// measurement at run time, so that a machine always computes the same. In batches of up to this many rows a row has
// the same bits. Measured on the layers of SmolLM2-135M, on one thread of a Xeon (Sapphire Rapids) restricted to each
// level; GFLOP/s of our kernels and of libtorch's (for "mixed", bfloat16 weights with float32 x, libtorch's with a
// converted weight):
//                     rows     16          32          64          128         512
// AVX2         float32      59  38      81  54      80  81      82  97      83 105
//              mixed        64  43      76  61      75  77      74  91      77 101
// AVX-512      float32      67  45     104  75     135 126     128 153     119 166
//              mixed        88  52     110  83     126 119     114 130     110 154
// with bf16    bfloat16     84  53      90  71      93  87      94 101      95 108
// AMX          bfloat16    164  81     260 157     356 263       -  452      -  673
// Without an instruction for bfloat16, libtorch multiplies it at 18 (AVX2) and 35 (AVX-512) GFLOP/s. There x is
// converted to float32 and multiplied in the mixed format.
constexpr int64_t kMostRows[kLevelCount][kFormats] = {
    // float32, mixed, bfloat16
    {64, 64, 64},  // portable: not measured, because libtorch's products use AVX2 if the processor has it
    {64, 64, 64},  // AVX2
    {64, 64, 64},  // AVX-512
    {64, 64, 64},  // AVX-512 with bf16
    {64, 64, 64},  // AMX
};

// kGrain: multiply-adds that are worth a thread: they take some microseconds, as long as starting one. kFetch:
// reading a weight from memory takes as long as multiplying it with this many rows.
constexpr int64_t kGrain = 1 << 19;
constexpr int64_t kFetch = 6;
// Threads get multiples of this many rows of w: AMX multiplies 16 at a time, the others 4.
constexpr int64_t kUnit = 16;

// Returns this thread's memory for `n` numbers; its content is lost at the next call.
float* scratch(int64_t n) {
  static thread_local std::vector<float> kept;
  if (int64_t(kept.size()) < n) kept.resize(n);
  return kept.data();
}

// Returns how many 4-byte numbers of memory bfloat16 x (rows, k) takes as tiles of 16 rows and 32 columns.
int64_t tiles_of(int64_t rows, int64_t k) { return (rows + 15) / 16 * 16 * ((k + 31) / 32 * 16); }

// Writes x (rows, k) times w (n, k) transposed to out (rows, n), by our own kernels.
void by_kernel(int level, Format format, const Tensor& x, const Tensor& w, const float* bias, bool onto, Tensor& out) {
  int64_t n = w.size(0), k = w.size(1), rows = x.numel() / k;
  const auto& run = kernels(level);
  // Without an instruction for bfloat16, each number of x would be converted again for each row of w.
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

// Multiplies bfloat16 x (rows, k) with w (n, k) transposed on processors without an instruction for it: both are
// converted to float32 and multiplied by libtorch, and the result is rounded once.
Tensor widened(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor* onto) {
  Tensor y = at::linear(x.to(at::kFloat), w.to(at::kFloat), bias.defined() ? c10::optional<Tensor>(bias) : c10::nullopt);
  if (!onto) return y.to(at::kBFloat16);
  Tensor sum = *onto;
  sum.copy_(y.add_(sum.to(at::kFloat)));
  return sum;
}

}  // namespace

extern "C" {

// Returns the number of rows up to which our kernels multiply, for x and w in bfloat16 or float32; 0 if there is no
// kernel.
int64_t ft_product_rows(bool x_half, bool w_half) {
  if (x_half && !w_half) return 0;
  return kMostRows[ft_isa()][x_half ? kHalves : w_half ? kMixed : kFloats];
}

// Multiplies x (…, k) with w (n, k) transposed and adds bias (n). Returns a new tensor (…, n) of x's dtype, or `onto`
// with the product added to it; null if there is no kernel for these tensors or libtorch's is faster. With a `level`
// of isa.h our kernels of that level multiply, whatever the number of rows; with -1, whatever is fastest.
Tensor* ft_product(int level, const Tensor* x, const Tensor* w, const Tensor* bias, const Tensor* onto) {
  try {
    auto kind = x->scalar_type();
    auto f = format(*x, *w);
    if (c10::GradMode::is_enabled() || f == kFormats || level > ft_isa()) return nullptr;
    if (!plain(*x, kind) || !plain(*w, w->scalar_type()) || w->dim() != 2 || x->dim() < 1) return nullptr;
    int64_t n = w->size(0), k = w->size(1);
    if (k == 0 || x->size(-1) != k) return nullptr;
    bool own = level >= 0 || x->numel() / k <= kMostRows[ft_isa()][f];
    // For many rows libtorch is faster, even with converting a bfloat16 weight; except for bfloat16 x without an
    // instruction.
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
    return nullptr;  // libtorch's own product will report the problem
  }
}

// Does the same as ft_product for a quantised weight of n rows: the results have the bits of a product with the
// dequantised weight, in the dtype of x. Null if there is no kernel, or if x has so many rows that libtorch is faster.
Tensor* ft_product_quantised(int level, const Tensor* x, const FtQuantised* w, int64_t n, const Tensor* bias) {
  try {
    auto kind = x->scalar_type();
    bool half = kind == at::kBFloat16;
    if (c10::GradMode::is_enabled() || level > ft_isa() || (!half && kind != at::kFloat) || !plain(*x, kind)) return nullptr;
    int64_t k = w->columns;
    if (k == 0 || x->dim() < 1 || x->size(-1) != k) return nullptr;
    int64_t rows = x->numel() / k;
    if (level < 0 && rows > kMostRows[ft_isa()][half ? kHalves : kFloats]) return nullptr;
    if (level < 0) level = ft_isa();
    Tensor wide;
    if (bias) {
      if (!bias->is_cpu() || bias->numel() != n) return nullptr;
      wide = bias->to(at::kFloat).contiguous();
    }
    const float* b = bias ? wide.const_data_ptr<float>() : nullptr;
    bool widened = half && level < kBf16Products;
    Tensor wide_x = widened ? x->to(at::kFloat) : *x;
    auto shape = x->sizes().vec();
    shape.back() = n;
    Tensor out = at::empty(shape, x->options().requires_grad(false));
    const auto& run = kernels(level);
    auto grain = std::max<int64_t>(1, kGrain / (kUnit * k * (rows + kFetch)));
    at::parallel_for(0, (n + kUnit - 1) / kUnit, grain, [&](int64_t from, int64_t to) {
      from *= kUnit;
      to = std::min(to * kUnit, n);
      int64_t room = (run.quantised_room(k) + 15) / 16 * 16, tiles = half && !widened ? tiles_of(rows, k) : 0;
      float* memory = scratch(room + tiles);
      if (!half)
        run.quantised_f32(w, x->const_data_ptr<float>(), rows, from, to, b, false, memory, memory + room,
                          out.mutable_data_ptr<float>(), n);
      else if (widened)
        run.quantised_rounded_to_bf16(w, wide_x.const_data_ptr<float>(), rows, from, to, b, false, memory,
                                      memory + room, half_out(out), n);
      else
        run.quantised_bf16(w, static_cast<const uint16_t*>(x->const_data_ptr()), rows, from, to, b, false, memory, memory + room, half_out(out), n);
    });
    return new Tensor(std::move(out));
  } catch (...) {
    return nullptr;
  }
}

// Computes e^x of float32 x, as ft_decode_attention does at this level, which the processor must have: a new tensor.
// x has a multiple of 16 numbers.
Tensor* ft_attention_exponential(int level, const Tensor* x) {
  if (!plain(*x, at::kFloat) || x->numel() % 16 || level < 0 || level > ft_isa()) return nullptr;
  Tensor y = at::empty_like(*x);
  kernels(level).exponential(x->const_data_ptr<float>(), y.mutable_data_ptr<float>(), x->numel());
  return new Tensor(std::move(y));
}

// Attends from one new token of each of the first S slots of a cache: q (S, H, e), k and v (S, K, e); keys and values
// (slots, K, capacity, e). Slot s has held[s] tokens before the new one, which sees the last `window` tokens, itself
// included. `sinks`, float32 (H), or null: see `attend`. Writes k and v to the cache and returns the result (S, H, e); null, with nothing written, if there is no kernel for these tensors. `level` as in ft_product.
Tensor* ft_decode_attention(int level, const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* keys, const Tensor* values,
                            const int64_t* held, int64_t slots, int64_t window, double scale, const Tensor* sinks) {
  try {
    auto kind = q->scalar_type();
    if ((kind != at::kBFloat16 && kind != at::kFloat) || level > ft_isa()) return nullptr;
    for (auto* t : {q, k, v, keys, values})
      if (!plain(*t, kind)) return nullptr;
    int64_t heads = q->size(1), e = q->size(2), shared = k->size(1), capacity = keys->size(2);
    if (q->size(0) != slots || k->size(0) != slots || keys->size(0) < slots || heads % shared != 0) return nullptr;
    if (sinks && (!plain(*sinks, at::kFloat) || sinks->numel() != heads)) return nullptr;
    int64_t group = heads / shared, longest = 0;
    for (int64_t s = 0; s < slots; s++) {
      if (held[s] + 1 > capacity) return nullptr;
      longest = std::max(longest, std::min(held[s] + 1, window));
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
        int64_t seen = std::min(n + 1, window);
        key += (n + 1 - seen) * e * size;
        value += (n + 1 - seen) * e * size;
        char* ask = at_byte(*q, i * group * e * size);
        char* answer = at_byte(out, i * group * e * size);
        const float* own = sinks ? sinks->const_data_ptr<float>() + i % shared * group : nullptr;
        if (kind == at::kFloat)
          run.attend_f32((float*)ask, (float*)key, (float*)value, group, seen, e, scale, own, scores.data(), (float*)answer);
        else
          run.attend_bf16((uint16_t*)ask, (uint16_t*)key, (uint16_t*)value, group, seen, e, scale, own, scores.data(),
                          (uint16_t*)answer);
      }
    });
    return new Tensor(std::move(out));
  } catch (...) {
    return nullptr;
  }
}
}
