// Makes the numbers of quantised weights again. Included by code that is compiled once per instruction set (FT_BYTES is
// the vector width in bytes); every function has internal linkage.
//
// Invariant: a number has the same bits on every instruction set. Each is a rounded product (of two factors, or of
// three for int8), and `rounded` keeps the compiler from joining a product and a sum into one operation.
#pragma once
#include "numbers.h"
#include "quantised.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

// Returns x. The compiler does not look through it.
FT_INLINE float rounded(float x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  volatile float kept = x;
  x = kept;
#endif
  return x;
}

// Returns the scale of a block of 4-bit numbers.
FT_INLINE float block_scale(const FtQuantised& w, int64_t block) {
  if (w.scales) return w.scales[block];
  return rounded(w.scale_values[w.scale_codes[block]] * w.scale_scales[block / kGroup]) + w.offset;
}

namespace {

// As many numbers as a vector has, made of their codes.
struct Quantised {
  typedef float vf __attribute__((vector_size(FT_BYTES)));
  typedef int32_t vi __attribute__((vector_size(FT_BYTES)));
  typedef uint32_t vu __attribute__((vector_size(FT_BYTES)));
  typedef uint16_t vh __attribute__((vector_size(FT_BYTES / 2)));
  typedef int8_t vb __attribute__((vector_size(FT_BYTES / 4)));
  static constexpr int W = FT_BYTES / 4;

  // The table of a 4-bit code, in registers where an instruction can look it up.
  struct Table {
#if FT_BYTES == 64
    __m512 all;
    inline explicit Table(const float* values) { all = _mm512_loadu_ps(values); }
    // Each byte is copied to two numbers, of which the first is shifted; the look-up reads the lowest four bits.
    inline vf get(const uint8_t* codes) const {
      uint64_t bytes;
      memcpy(&bytes, codes, sizeof bytes);
      const __m512i spread = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0) | _mm512_set1_epi32(int(0x80808000));
      const __m512i shift = _mm512_set1_epi64(4);
      __m512i index = _mm512_srlv_epi32(_mm512_shuffle_epi8(_mm512_set1_epi64(bytes), spread), shift);
      return (vf)_mm512_permutexvar_ps(index, all);
    }
#elif FT_BYTES == 32 && defined(__AVX2__)
    __m256 low, high;
    inline explicit Table(const float* values) {
      low = _mm256_loadu_ps(values);
      high = _mm256_loadu_ps(values + 8);
    }
    inline vf get(const uint8_t* codes) const {
      uint32_t bytes;
      memcpy(&bytes, codes, sizeof bytes);
      const __m256i spread = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0) | _mm256_set1_epi32(int(0x80808000));
      const __m256i shift = _mm256_set1_epi64x(4);
      __m256i index = _mm256_srlv_epi32(_mm256_shuffle_epi8(_mm256_set1_epi32(bytes), spread), shift);
      __m256 first = _mm256_permutevar8x32_ps(low, index), second = _mm256_permutevar8x32_ps(high, index);
      return (vf)_mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    }
#else
    float pairs[512];
    inline explicit Table(const float* values) {
      for (int i = 0; i < 256; i++) pairs[2 * i] = values[i >> 4], pairs[2 * i + 1] = values[i & 15];
    }
    inline vf get(const uint8_t* codes) const {
      vf v;
      for (int i = 0; i < W / 2; i++) memcpy((float*)&v + 2 * i, pairs + 2 * codes[i], 8);
      return v;
    }
#endif
  };

  static inline vf widened(const uint8_t* codes) {
#if FT_BYTES == 64
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
#elif FT_BYTES == 32 && defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)codes)));
#else
    vb bytes;
    memcpy(&bytes, codes, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, vi), vf);
#endif
  }

  // Writes numbers in float32, in bfloat16, or in float32 rounded to bfloat16.
  struct Float {
    typedef float Out;
    static inline void put(float* y, vf v) { memcpy(y, &v, sizeof v); }
    static inline void put(float* y, float v) { *y = v; }
  };
  static inline vu rounded_bits(vf v) {
    vu u = (vu)v;
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  }
  struct Bf16 {
    typedef uint16_t Out;
    static inline void put(uint16_t* y, vf v) {
      vh h = __builtin_convertvector(rounded_bits(v), vh);
      memcpy(y, &h, sizeof h);
    }
    static inline void put(uint16_t* y, float v) { *y = to_bf16(v); }
  };
  struct Rounded {
    typedef float Out;
    static inline void put(float* y, vf v) {
      vu u = rounded_bits(v) << 16;
      memcpy(y, &u, sizeof u);
    }
    static inline void put(float* y, float v) { *y = from_bf16(to_bf16(v)); }
  };

  template <class To>
  static inline void four_bits(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
    const Table table(w.values);
    auto one = [&](int64_t i, float scale) {
      int code = i % 2 ? w.codes[i / 2] & 15 : w.codes[i / 2] >> 4;
      To::put(y + (i - begin), w.values[code] * scale);
    };
    for (int64_t i = begin; i < end;) {
      const int64_t block = i / kBlock, next = (block + 1) * kBlock, to = next < end ? next : end;
      const float scale = block_scale(w, block);
      if (i % 2) one(i++, scale);  // a row of an odd number of columns may begin in the middle of a byte
      for (; i + W <= to; i += W) To::put(y + (i - begin), table.get(w.codes + i / 2) * scale);
      for (; i < to; i++) one(i, scale);
    }
  }

  template <class To>
  static inline void int8(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / w.columns, next = (row + 1) * w.columns, to = next < end ? next : end;
      const float scale = w.scales[row];
      for (; i + W <= to; i += W) To::put(y + (i - begin), widened(w.codes + i) * scale * kInt8Step);
      for (; i < to; i++) To::put(y + (i - begin), float(int8_t(w.codes[i])) * scale * kInt8Step);
    }
  }

  // Writes numbers [begin, end) of the matrix to y, its first number being y[0].
  template <class To>
  static inline void numbers(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
    if (w.values) four_bits<To>(w, begin, end, y);
    else int8<To>(w, begin, end, y);
  }
};

}  // namespace
