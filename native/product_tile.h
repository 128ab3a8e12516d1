// Products of few rows with a large weight in float32 or bfloat16, as parts of tiles. Included by code that is compiled once
// per instruction set (FT_BYTES is the vector width in bytes); every function has internal linkage.
//
// Invariant: a row's result depends on that row alone. Each output is a sum over k in the same order, whatever the
// number of rows, so an answer does not change with its batch; and bfloat16 weights give the same bits as a float32
// copy.
#pragma once
#include "numbers.h"

#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

typedef float vf __attribute__((vector_size(FT_BYTES)));
typedef int32_t vi __attribute__((vector_size(FT_BYTES)));
typedef uint32_t vu __attribute__((vector_size(FT_BYTES)));
typedef uint16_t vh __attribute__((vector_size(FT_BYTES / 2)));
constexpr int W = FT_BYTES / 4;
// Rows of x that are multiplied while a weight is in a register. Together with four rows of w this takes 24 of
// AVX-512's 32 registers for running sums, and 12 of 16 elsewhere.
constexpr int C = FT_BYTES == 64 ? 6 : 3;
// How far ahead, in bytes, weights are prefetched: for one row of x, and for several, which spend more time on each
// weight.
constexpr int64_t kAheadOfOne = 1 << 10, kAhead = 4 << 10;

inline vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
// Zero-extends 16-bit numbers, by one instruction if there is one: GCC 12 makes five of the general form for AVX2.
inline vu widened_bits(vh h) {
#if FT_BYTES == 32 && defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#elif FT_BYTES == 64
  return (vu)_mm512_cvtepu16_epi32((__m256i)h);
#else
  return __builtin_convertvector(h, vu);
#endif
}
inline vf load(const uint16_t* p) { vh h; memcpy(&h, p, sizeof h); return (vf)(widened_bits(h) << 16); }
inline float wide(float x) { return x; }
inline float wide(uint16_t x) { return from_bf16(x); }
inline void put(float* p, float x) { *p = x; }
inline void put(uint16_t* p, float x) { *p = to_bf16(x); }
// Returns the sum of a vector's numbers; one half of the lanes is added to the other, repeatedly.
inline float total(vf v) {
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  for (int width = W / 2; width > 0; width /= 2) v += __builtin_shuffle(v, lane ^ width);
  return v[0];
}

// Adds to each number the one `width` lanes away. Result lanes without the bit `width` are taken from a, the others
// from b.
template <int width>
inline vf fold(vf a, vf b) {
  vi own, other;
  for (int i = 0; i < W; i++) own[i] = i & width ? i + W : i, other[i] = own[i] ^ width;
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}
// Returns the totals of n vectors, n a power of two up to W: that of vector i in lane i * W / n. Does the same
// additions as `total`, for several vectors at a time.
template <int n, int width = W / 2>
inline vf totals(const vf* v) {
  if constexpr (n > 1) {
    vf some[n / 2];
    for (int i = 0; i < n / 2; i++) some[i] = fold<width>(v[i], v[i + n / 2]);
    return totals<n / 2, width / 2>(some);
  } else {
    vf sum = v[0];
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    for (int far = width; far > 0; far /= 2) sum += __builtin_shuffle(sum, lane ^ far);
    return sum;
  }
}
// Writes the totals of any number of vectors to s[i].
template <int n>
inline void all_totals(const vf* v, float* s) {
  if constexpr (n > 0) {
    constexpr int some = n >= W ? W : n >= 8 && W > 8 ? 8 : n >= 4 && W > 4 ? 4 : n >= 2 ? 2 : 1;
    vf t = totals<some>(v);
    if constexpr (some == W) memcpy(s, &t, sizeof t);
    else for (int i = 0; i < some; i++) s[i] = t[i * W / some];
    all_totals<n - some>(v + some, s + some);
  }
}

// How a chunk of k is loaded, multiplied and added to W running sums; the last chunk may be short. T is the type of
// weights in memory, X that of x: bfloat16 is converted to float32 when it is loaded, which is exact.
template <class T, class X> struct Plain {
  typedef vf In;
  static constexpr int step = W;
  template <class A> static inline In get(const A* p) { return load(p); }
  template <class A> static inline In get(const A* p, int64_t some) {
    A chunk[W] = {};
    memcpy(chunk, p, some * sizeof(A));
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
template <class T, class X> struct Best : Plain<T, X> {};
template <> struct Best<uint16_t, uint16_t> : Pairs {};
#else
template <class T, class X> struct Best : Plain<T, X> {};
#endif

// How a sum becomes a result: times `scale`, plus `bias` for each row of w, plus the present value of the output if
// `onto`.
struct Finish {
  const float* bias;
  float scale;
  bool onto;
};

// Rows of w that are multiplied at the same time are far apart in memory, so that each thread reads a few long
// streams, for which hardware prefetchers are made. Four neighbouring rows would be four streams of one row's length
// each: on Zen 4 these reach 65 to 85 % of the memory's rate, distant rows 90 to 100 %.
struct Streams {
  int64_t w;    // numbers from one of these rows to the next
  int64_t out;  // numbers from one of their results to the next
  // Bytes by which each stream is prefetched ahead of its use, and by how much the prefetch advances with each line
  // of 64 bytes that is used: if a row is read several times, each pass prefetches a part. Prefetches go to the
  // second-level cache, because a line on its way to the first level occupies one of its few miss buffers until it
  // arrives from memory.
  int64_t ahead, pace;
};

// Multiplies r rows of w with c rows of x, k numbers each: out[i * ld + j * far.out] for row i of x and row j of w.
// With `keep`, the rows of w, converted to float32, are left in `room`, one after the other.
template <class T, class X, class O, int r, int c, bool keep = false>
inline void tile(const T* w, const X* x, int64_t k, Streams far, Finish end, O* out, int64_t ld, float* room = nullptr) {
  typedef Best<T, X> B;
  vf sum[c * r] = {};
  const char* next = (const char*)w + far.ahead;
  int64_t at = 0;
  for (; at + B::step <= k; at += B::step) {
    if (at * sizeof(T) % 64 == 0 && far.pace) {
      for (int j = 0; j < r; j++) __builtin_prefetch(next + j * far.w * sizeof(T), 0, 2);
      next += far.pace;
    }
    typename B::In b[c];
    for (int i = 0; i < c; i++) b[i] = B::get(x + i * k + at);
    for (int j = 0; j < r; j++) {
      auto a = B::get(w + j * far.w + at);
      if constexpr (keep) memcpy(room + j * k + at, &a, sizeof a);
      for (int i = 0; i < c; i++) B::add(sum[i * r + j], a, b[i]);
    }
  }
  if (at < k) {  // the rest; k may even be shorter than one chunk, as a LoRA rank is
    typename B::In b[c];
    for (int i = 0; i < c; i++) b[i] = B::get(x + i * k + at, k - at);
    for (int j = 0; j < r; j++) {
      auto a = B::get(w + j * far.w + at, k - at);
      if constexpr (keep) memcpy(room + j * k + at, &a, (k - at) * sizeof(float));
      for (int i = 0; i < c; i++) B::add(sum[i * r + j], a, b[i]);
    }
  }
  float s[c * r];
  all_totals<c * r>(sum, s);
  for (int i = 0; i < c; i++)
    for (int j = 0; j < r; j++) {
      O* to = out + i * ld + j * far.out;
      put(to, s[i * r + j] * end.scale + (end.bias ? end.bias[j * far.out] : 0.0f) + (end.onto ? wide(*to) : 0.0f));
    }
}

// Multiplies r rows of w with all rows of x, C at a time. If fewer than C rows would be left, they are joined with
// the tile before and split evenly, because a tile of a single row has too few running sums to keep the multipliers
// busy.
template <class T, class X, class O, int r>
inline void strip(const T* w, const X* x, int64_t rows, int64_t k, Streams far, Finish end, O* out, int64_t ld) {
  int64_t visits = (rows + C - 1) / C;
  far.pace /= visits;
  for (int64_t i = 0; i < rows;) {
    int64_t left = rows - i, c = left >= 2 * C || left <= C ? (left < C ? left : C) : (left + 1) / 2;
    const X* from = x + i * k;
    O* to = out + i * ld;
    switch (c) {
      case 1: tile<T, X, O, r, 1>(w, from, k, far, end, to, ld); break;
      case 2: tile<T, X, O, r, 2>(w, from, k, far, end, to, ld); break;
      case 3: tile<T, X, O, r, 3>(w, from, k, far, end, to, ld); break;
#if FT_BYTES == 64
      case 4: tile<T, X, O, r, 4>(w, from, k, far, end, to, ld); break;
      case 5: tile<T, X, O, r, 5>(w, from, k, far, end, to, ld); break;
      case 6: tile<T, X, O, r, 6>(w, from, k, far, end, to, ld); break;
#endif
    }
    i += c;
    far.ahead += k * sizeof(T) / visits;
  }
}

// Does the same as `strip` for bfloat16 w and float32 x with more rows than one tile has: the first tile leaves the
// rows of w, converted to float32, in `room` (r rows) for the other tiles.
template <class O, int r>
inline void widened(const uint16_t* w, const float* x, int64_t rows, int64_t k, Streams far, Finish end, float* room, O* out,
                    int64_t ld) {
  int64_t c = rows < 2 * C ? (rows + 1) / 2 : C;
  switch (c) {
    case 2: tile<uint16_t, float, O, r, 2, true>(w, x, k, far, end, out, ld, room); break;
    case 3: tile<uint16_t, float, O, r, 3, true>(w, x, k, far, end, out, ld, room); break;
#if FT_BYTES == 64
    case 4: tile<uint16_t, float, O, r, 4, true>(w, x, k, far, end, out, ld, room); break;
    case 5: tile<uint16_t, float, O, r, 5, true>(w, x, k, far, end, out, ld, room); break;
    case 6: tile<uint16_t, float, O, r, 6, true>(w, x, k, far, end, out, ld, room); break;
#endif
  }
  strip<float, float, O, r>(room, x + c * k, rows - c, k, {k, far.out, 0, 0}, end, out + c * ld, ld);
}

// Multiplies rows [from, to) of w (n, k), r at a time, with x (rows, k): out (rows, ld). `room` is memory for r rows
// of float32 if w is bfloat16, x float32 and rows > C; otherwise it may be null.
template <class T, class X, class O, int r>
inline void strips(const T* w, const X* x, int64_t rows, int64_t k, int64_t from, int64_t to, Finish end, float* room,
                   O* out, int64_t ld) {
  constexpr int64_t block = 64;  // rows of x that stay in the cache while all weights are read
  int64_t apart = (to - from) / r;
  Streams far{apart * k, apart, rows == 1 ? kAheadOfOne : kAhead, 64};
  for (int64_t m = 0; m < rows; m += block) {
    int64_t some = rows - m < block ? rows - m : block;
    auto part = [&](int64_t j) { return Finish{end.bias ? end.bias + j : nullptr, end.scale, end.onto}; };
    for (int64_t j = from; j < from + apart; j++) {
      if constexpr (sizeof(T) < sizeof(X)) {
        if (some > C) {
          widened<O, r>(w + j * k, x + m * k, some, k, far, part(j), room, out + m * ld + j, ld);
          continue;
        }
      }
      strip<T, X, O, r>(w + j * k, x + m * k, some, k, far, part(j), out + m * ld + j, ld);
    }
    for (int64_t j = from + r * apart; j < to; j++)
      strip<T, X, O, 1>(w + j * k, x + m * k, some, k, {0, 0, 0, 0}, part(j), out + m * ld + j, ld);
  }
}

template <class T, class X, class O>
void product(const T* w, const X* x, int64_t rows, int64_t k, int64_t from, int64_t to, Finish end, float* room, O* out,
             int64_t ld) {
  strips<T, X, O, 4>(w, x, rows, k, from, to, end, room, out, ld);
}

}  // namespace
