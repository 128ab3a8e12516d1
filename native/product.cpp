// Matrix products and attention of decoding steps, on raw memory: few rows times large weights, which are read once
// and in place. Compiled once per instruction set (FT_ISA is part of the symbols' names, FT_BYTES is the vector width
// in bytes: columns of isa.h); decode.cpp chooses the build.
//
// No headers of libtorch here: their inline functions would be compiled for instructions that some processors lack,
// and the linker might use these copies everywhere.
#include "amx.h"
#include "product_tile.h"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, FT_ISA)

namespace {

// Sums s[i] times `count` vectors of row i of v (n, e), and multiplies by `inverse`. Even and odd keys have separate
// running sums, so that two chains of additions run in parallel.
template <class T, int count>
inline void weigh(const float* s, const T* v, int64_t n, int64_t e, float inverse, T* out) {
  vf even[count] = {}, odd[count] = {};
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    for (int j = 0; j < count; j++) even[j] += s[i] * load(v + i * e + j * W);
    for (int j = 0; j < count; j++) odd[j] += s[i + 1] * load(v + (i + 1) * e + j * W);
  }
  if (i < n)
    for (int j = 0; j < count; j++) even[j] += s[i] * load(v + i * e + j * W);
  for (int j = 0; j < count; j++) {
    vf a = (even[j] + odd[j]) * inverse;
    for (int l = 0; l < W; l++) put(out + j * W + l, a[l]);
  }
}

// Computes softmax(q k^T scale) v for `heads` queries over `n` keys: q (heads, e), k and v (n, e); scores
// (heads, n rounded up to W) is memory for the scores. If `sinks` (heads) is not null, each head has one more score, whose
// value is 0.
template <class T>
void attend(const T* q, const T* k, const T* v, int64_t heads, int64_t n, int64_t e, float scale, const float* sinks, float* scores,
            T* out) {
  int64_t ld = (n + W - 1) / W * W;
  product<T, T, float>(k, q, heads, e, 0, n, {nullptr, scale, false}, nullptr, scores, ld);
  for (int64_t h = 0; h < heads; h++) {
    float* s = scores + h * ld;
    for (int64_t i = n; i < ld; i++) s[i] = -__builtin_inff();  // has probability 0
    vf largest = load(s);
    for (int64_t i = W; i < ld; i += W) {
      vf p = load(s + i);
      largest = p > largest ? p : largest;
    }
    float most = largest[0];
    for (int i = 1; i < W; i++) most = largest[i] > most ? largest[i] : most;
    vf sums = {};
    if (sinks) {
      most = sinks[h] > most ? sinks[h] : most;
      sums[0] = exponential<vf, vi>(vf{} + (sinks[h] - most))[0];
    }
    for (int64_t i = 0; i < ld; i += W) {
      vf p = exponential<vf, vi>(load(s + i) - most);
      sums += p;
      memcpy(s + i, &p, sizeof p);
    }
    float inverse = 1.0f / total(sums);
    int64_t at = 0;
    for (; at + 4 * W <= e; at += 4 * W) weigh<T, 4>(s, v + at, n, e, inverse, out + h * e + at);
    for (; at + W <= e; at += W) weigh<T, 1>(s, v + at, n, e, inverse, out + h * e + at);
    for (; at < e; at++) {
      float a = 0;
      for (int64_t i = 0; i < n; i++) a += s[i] * wide(v[i * e + at]);
      put(out + h * e + at, a * inverse);
    }
  }
}

}  // namespace

extern "C" {
// Products for x and w of the same dtype, and (`mixed`) for bfloat16 w with float32 x, for which `room` must have
// space for 4 rows of float32; the function with `_to_bf16` in its name rounds the result. With AMX, the `room` of the
// bfloat16 product must have space for x with its rows rounded up to 16 and its columns to 32.
#define ARGUMENTS(T, X) const T *w, const X *x, int64_t rows, int64_t k, int64_t from, int64_t to, const float *bias, bool onto
void NAME(ft_product_bf16)(ARGUMENTS(uint16_t, uint16_t), float* room, uint16_t* out, int64_t ld) {
#ifdef __AMX_BF16__
  tiled(w, x, rows, k, from, to, {bias, 1.0f, onto}, (uint32_t*)room, out, ld);
#else
  product<uint16_t, uint16_t, uint16_t>(w, x, rows, k, from, to, {bias, 1.0f, onto}, room, out, ld);
#endif
}
void NAME(ft_product_f32)(ARGUMENTS(float, float), float* out, int64_t ld) {
  product<float, float, float>(w, x, rows, k, from, to, {bias, 1.0f, onto}, nullptr, out, ld);
}
void NAME(ft_product_mixed)(ARGUMENTS(uint16_t, float), float* room, float* out, int64_t ld) {
  product<uint16_t, float, float>(w, x, rows, k, from, to, {bias, 1.0f, onto}, room, out, ld);
}
void NAME(ft_product_mixed_to_bf16)(ARGUMENTS(uint16_t, float), float* room, uint16_t* out, int64_t ld) {
  product<uint16_t, float, uint16_t>(w, x, rows, k, from, to, {bias, 1.0f, onto}, room, out, ld);
}
void NAME(ft_attend_bf16)(const uint16_t* q, const uint16_t* k, const uint16_t* v, int64_t heads, int64_t n, int64_t e,
                          float scale, const float* sinks, float* scores, uint16_t* out) {
  attend<uint16_t>(q, k, v, heads, n, e, scale, sinks, scores, out);
}
void NAME(ft_attend_f32)(const float* q, const float* k, const float* v, int64_t heads, int64_t n, int64_t e,
                         float scale, const float* sinks, float* scores, float* out) {
  attend<float>(q, k, v, heads, n, e, scale, sinks, scores, out);
}
// e^x, as attention computes it, of n numbers, a multiple of the vector's width.
void NAME(ft_vector_exponential)(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    vf v = exponential<vf, vi>(load(x + i));
    memcpy(y + i, &v, sizeof v);
  }
}
}
