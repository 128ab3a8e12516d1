// Products and attention of a decoding step over raw memory: few rows against large weights, read once and where they
// lie. Compiled once per instruction set (FT_ISA names the symbols, FT_BYTES is the vector width); decode.cpp chooses.
//
// Invariant: a row's result depends on that row alone. Each output is one running sum over k in one order, whatever the
// number of rows, so an answer does not change with its batch.
//
// No headers of libtorch here: their inline functions must not be compiled for a larger instruction set than all have.
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, FT_ISA)

namespace {

typedef float vf __attribute__((vector_size(FT_BYTES)));
typedef int32_t vi __attribute__((vector_size(FT_BYTES)));
typedef uint32_t vu __attribute__((vector_size(FT_BYTES)));
typedef uint16_t vh __attribute__((vector_size(FT_BYTES / 2)));
constexpr int W = FT_BYTES / 4;
// Rows of x that share a weight's visit to the registers: 16 running sums of AVX-512's 32 registers, 8 of others' 16.
constexpr int C = FT_BYTES == 64 ? 4 : 2;

inline vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
inline vf load(const uint16_t* p) { vh h; memcpy(&h, p, sizeof h); return (vf)(__builtin_convertvector(h, vu) << 16); }
inline float wide(float x) { return x; }
inline float wide(uint16_t x) { uint32_t u = uint32_t(x) << 16; float f; memcpy(&f, &u, 4); return f; }
inline void put(float* p, float x) { *p = x; }
// To the nearest, ties to even; a NaN stays one.
inline void put(uint16_t* p, float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  *p = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
// The sum of a vector's numbers, halves added to halves.
inline float total(vf v) {
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  for (int width = W / 2; width > 0; width /= 2) v += __builtin_shuffle(v, lane ^ width);
  return v[0];
}

// Of two vectors, each number added to the one `width` lanes away; of a where the lane has no bit `width`, else of b.
template <int width>
inline vf fold(vf a, vf b) {
  vi own, other;
  for (int i = 0; i < W; i++) own[i] = i & width ? i + W : i, other[i] = own[i] ^ width;
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}
// The totals of W vectors, lane i that of vector i: the same additions as `total`, many at a time.
template <int width = W / 2>
inline vf totals(const vf* v) {
  if constexpr (width == 0) {
    return v[0];
  } else {
    vf some[width];
    for (int i = 0; i < width; i++) some[i] = fold<width>(v[i], v[i + width]);
    return totals<width / 2>(some);
  }
}

// How a chunk of k is multiplied and added to W running sums; the last chunk may be short.
template <class T> struct Plain {
  typedef vf In;
  static constexpr int step = W;
  static inline In get(const T* p) { return load(p); }
  static inline In get(const T* p, int64_t some) {
    T chunk[W] = {};
    memcpy(chunk, p, some * sizeof(T));
    return load(chunk);
  }
  static inline void add(vf& sum, In a, In b) { sum += a * b; }
};
#ifdef __AVX512BF16__
struct Pairs {
  typedef __m512bh In;
  static constexpr int step = 32;
  static inline In get(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static inline In get(const uint16_t* p, int64_t some) {
    return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32)((1u << some) - 1), p);
  }
  static inline void add(vf& sum, In a, In b) { sum = (vf)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
template <class T> struct Best : Plain<T> {};
template <> struct Best<uint16_t> : Pairs {};
#else
template <class T> struct Best : Plain<T> {};
#endif

// r rows of w against c rows of x, k numbers each: out[i * ld + j] for row i of x, row j of w, added to what is there
// where `onto`.
template <class T, class O, int r, int c>
inline void tile(const T* w, const T* x, int64_t k, const float* bias, float scale, bool onto,
                 O* out, int64_t ld) {
  typedef Best<T> B;
  vf sum[c * r] = {};
  int64_t at = 0;
  for (; at + B::step <= k; at += B::step) {
    typename B::In a[r];
    for (int j = 0; j < r; j++) a[j] = B::get(w + j * k + at);
    for (int i = 0; i < c; i++) {
      auto b = B::get(x + i * k + at);
      for (int j = 0; j < r; j++) B::add(sum[i * r + j], a[j], b);
    }
  }
  if (at < k) {  // a rank is shorter than a chunk
    typename B::In a[r];
    for (int j = 0; j < r; j++) a[j] = B::get(w + j * k + at, k - at);
    for (int i = 0; i < c; i++) {
      auto b = B::get(x + i * k + at, k - at);
      for (int j = 0; j < r; j++) B::add(sum[i * r + j], a[j], b);
    }
  }
  float s[c * r];
  if constexpr (c * r == W) {
    vf all = totals(sum);
    memcpy(s, &all, sizeof s);
  } else {
    for (int i = 0; i < c * r; i++) s[i] = total(sum[i]);
  }
  for (int i = 0; i < c; i++)
    for (int j = 0; j < r; j++) {
      O* to = out + i * ld + j;
      put(to, s[i * r + j] * scale + (bias ? bias[j] : 0.0f) + (onto ? wide(*to) : 0.0f));
    }
}

template <class T, class O, int r>
inline void strip(const T* w, const T* x, int64_t rows, int64_t k, const float* bias, float scale, bool onto, O* out,
                  int64_t ld) {
  int64_t i = 0;
  for (; i + C <= rows; i += C) tile<T, O, r, C>(w, x + i * k, k, bias, scale, onto, out + i * ld, ld);
  for (; i < rows; i++) tile<T, O, r, 1>(w, x + i * k, k, bias, scale, onto, out + i * ld, ld);
}

// Rows [from, to) of w (n, k) against x (rows, k), r at a time: out (rows, ld).
template <class T, class O, int r>
inline void strips(const T* w, const T* x, int64_t rows, int64_t k, int64_t from, int64_t to, const float* bias,
                   float scale, bool onto, O* out, int64_t ld) {
  constexpr int64_t block = 64;  // rows of x that stay near while the weights pass
  for (int64_t m = 0; m < rows; m += block) {
    int64_t some = rows - m < block ? rows - m : block, j = from;
    for (; j + r <= to; j += r) {
      // The next strip in the order of memory: several rows at a time look like no stream to the hardware.
      const char* next = (const char*)(w + (j + r) * k);
      for (int64_t b = 0; b < r * k * (int64_t)sizeof(T); b += 64) __builtin_prefetch(next + b);
      strip<T, O, r>(w + j * k, x + m * k, some, k, bias ? bias + j : nullptr, scale, onto, out + m * ld + j, ld);
    }
    for (; j < to; j++)
      strip<T, O, 1>(w + j * k, x + m * k, some, k, bias ? bias + j : nullptr, scale, onto, out + m * ld + j, ld);
  }
}

// A single row of x waits for memory, and two rows of w are read faster than four; more rows are arithmetic.
template <class T, class O>
void product(const T* w, const T* x, int64_t rows, int64_t k, int64_t from, int64_t to, const float* bias, float scale,
             bool onto, O* out, int64_t ld) {
  if (rows == 1) strips<T, O, 2>(w, x, rows, k, from, to, bias, scale, onto, out, ld);
  else strips<T, O, 4>(w, x, rows, k, from, to, bias, scale, onto, out, ld);
}

// e^x for x <= 0, to about 2e-7 of it: 2^n by the exponent's bits, 2^f by its Taylor series on [-1/2, 1/2].
inline vf exponential(vf x) {
  x = x < -87.0f ? vf{} - 87.0f : x;
  vf t = x * 1.44269504f;
  vi n = __builtin_convertvector(t - 0.5f, vi);  // toward zero, and t <= 0: to the nearest
  vf f = (t - __builtin_convertvector(n, vf)) * 0.69314718f;
  vf p = f * (1.0f / 720) + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return p * (vf)((n + 127) << 23);
}

// softmax(scores) v for `heads` queries over `n` keys: q (heads, e), k and v (n, e), scores (heads, n padded to W).
template <class T>
void attend(const T* q, const T* k, const T* v, int64_t heads, int64_t n, int64_t e, float scale, float* scores, T* out) {
  int64_t ld = (n + W - 1) / W * W;
  product<T, float>(k, q, heads, e, 0, n, nullptr, scale, false, scores, ld);
  for (int64_t h = 0; h < heads; h++) {
    float* s = scores + h * ld;
    float most = s[0];
    for (int64_t i = 1; i < n; i++) most = s[i] > most ? s[i] : most;
    for (int64_t i = n; i < ld; i++) s[i] = -1e30f;
    vf sums = {};
    for (int64_t i = 0; i < ld; i += W) {
      vf p = exponential(load(s + i) - most);
      // What lies beyond the keys is e^-87 of the largest: put to nothing.
      if (i + W > n)
        for (int64_t j = n - i; j < W; j++) p[j] = 0;
      sums += p;
      memcpy(s + i, &p, sizeof p);
    }
    float inverse = 1.0f / total(sums);
    for (int64_t at = 0; at < e; at += W) {
      if (at + W <= e) {
        vf a = {}, b = {};  // even and odd keys: two chains
        int64_t i = 0;
        for (; i + 2 <= n; i += 2) {
          a += s[i] * load(v + i * e + at);
          b += s[i + 1] * load(v + (i + 1) * e + at);
        }
        if (i < n) a += s[i] * load(v + i * e + at);
        a = (a + b) * inverse;
        for (int j = 0; j < W; j++) put(out + h * e + at + j, a[j]);
      } else {
        for (int64_t j = at; j < e; j++) {
          float a = 0;
          for (int64_t i = 0; i < n; i++) a += s[i] * wide(v[i * e + j]);
          put(out + h * e + j, a * inverse);
        }
      }
    }
  }
}

}  // namespace

extern "C" {
void NAME(ft_product_bf16)(const uint16_t* w, const uint16_t* x, int64_t rows, int64_t k, int64_t from, int64_t to,
                           const float* bias, bool onto, uint16_t* out, int64_t ld) {
  product<uint16_t, uint16_t>(w, x, rows, k, from, to, bias, 1.0f, onto, out, ld);
}
void NAME(ft_product_f32)(const float* w, const float* x, int64_t rows, int64_t k, int64_t from, int64_t to,
                          const float* bias, bool onto, float* out, int64_t ld) {
  product<float, float>(w, x, rows, k, from, to, bias, 1.0f, onto, out, ld);
}
void NAME(ft_attend_bf16)(const uint16_t* q, const uint16_t* k, const uint16_t* v, int64_t heads, int64_t n, int64_t e,
                          float scale, float* scores, uint16_t* out) {
  attend<uint16_t>(q, k, v, heads, n, e, scale, scores, out);
}
void NAME(ft_attend_f32)(const float* q, const float* k, const float* v, int64_t heads, int64_t n, int64_t e,
                         float scale, float* scores, float* out) {
  attend<float>(q, k, v, heads, n, e, scale, scores, out);
}
}
