// Makes the numbers of quantised weights again. Included by code that is compiled once per instruction set (FT_BYTES is
// the vector width in bytes); every function has internal linkage.
//
// Invariant: a number has the same bits on every instruction set. Each is a rounded product (of two factors, or of
// three for int8), and `rounded` keeps the compiler from joining a product and a sum into one operation. The difference of
// a code and a zero is exact.
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

// The whole numbers from -15 to 15. What the codes 0 to 15 stand for, less a zero, are 16 neighbours of them.
static constexpr float kWhole[31] = {-15, -14, -13, -12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0,
                                     1,   2,   3,   4,   5,   6,   7,  8,  9,  10, 11, 12, 13, 14, 15};
FT_INLINE const float* less_zero(uint8_t zero) { return kWhole + 15 - (zero & 15); }

// Returns the power of two that an exponent of 8 bits (e8m0) stands for: 2^(exponent - 127). The smallest is no normal number.
FT_INLINE float power_of_two(uint8_t exponent) {
  const uint32_t bits = exponent ? uint32_t(exponent) << 23 : 1u << 22;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// Returns how many groups a row has.
FT_INLINE int64_t groups_of(const FtQuantised& w) { return (w.columns + w.group - 1) / w.group; }

namespace {

// As many numbers as a vector has, made of their codes.
struct Quantised {
  typedef float vf __attribute__((vector_size(FT_BYTES)));
  typedef int32_t vi __attribute__((vector_size(FT_BYTES)));
  typedef uint32_t vu __attribute__((vector_size(FT_BYTES)));
  typedef uint16_t vh __attribute__((vector_size(FT_BYTES / 2)));
  typedef int8_t vb __attribute__((vector_size(FT_BYTES / 4)));
  static constexpr int W = FT_BYTES / 4;

  // Rounds numbers to bfloat16, which are the upper halves of the results.
  static inline vu rounded_bits(vf v) {
    vu u = (vu)v;
    return u + 0x7fffu + ((u >> 16) & 1u);
  }
  static inline vf as_bf16(vf v) { return (vf)(rounded_bits(v) & 0xffff0000u); }

  // The 16 values of a code times a scale, if `round` rounded to bfloat16: in registers where an instruction can look
  // them up. A block has 64 numbers of 16 values, so that it is cheaper to scale the values.
  template <bool round>
  struct Scaled {
    static inline vf made(vf v) { return round ? as_bf16(v) : v; }
#if FT_BYTES == 64
    __m512 all;
    inline Scaled(const float* values, float scale) { all = (__m512)made((vf)_mm512_loadu_ps(values) * scale); }
    // Eight numbers are four bytes. Each lane shifts its own code down; the look-up reads the lowest four bits.
    inline vf get(const uint8_t* codes) const {
      int32_t first, second;
      memcpy(&first, codes, 4);
      memcpy(&second, codes + 4, 4);
      const __m512i shift = _mm512_set_epi32(24, 28, 16, 20, 8, 12, 0, 4, 24, 28, 16, 20, 8, 12, 0, 4);
      __m512i bytes = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xff00, second);
      return (vf)_mm512_permutexvar_ps(_mm512_srlv_epi32(bytes, shift), all);
    }
#elif FT_BYTES == 32 && defined(__AVX2__)
    __m256 low, high;
    inline Scaled(const float* values, float scale) {
      low = (__m256)made((vf)_mm256_loadu_ps(values) * scale);
      high = (__m256)made((vf)_mm256_loadu_ps(values + 8) * scale);
    }
    inline vf get(const uint8_t* codes) const {
      int32_t bytes;
      memcpy(&bytes, codes, sizeof bytes);
      __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), _mm256_set_epi32(24, 28, 16, 20, 8, 12, 0, 4));
      __m256 first = _mm256_permutevar8x32_ps(low, index), second = _mm256_permutevar8x32_ps(high, index);
      return (vf)_mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    }
#else
    float all[16];
    inline Scaled(const float* values, float scale) {
      for (int i = 0; i < 16; i += W) {
        vf v;
        memcpy(&v, values + i, sizeof v);
        v = made(v * scale);
        memcpy(all + i, &v, sizeof v);
      }
    }
    inline vf get(const uint8_t* codes) const {
      vf v;
      for (int i = 0; i < W; i += 2) v[i] = all[codes[i / 2] >> 4], v[i + 1] = all[codes[i / 2] & 15];
      return v;
    }
#endif
  };

#if FT_BYTES == 64
  // The same in bfloat16, for 32 numbers at a time.
  struct ScaledHalves {
    __m512i all;
    inline ScaledHalves(const float* values, float scale) {
      __m256i halves = upper_halves((vf)_mm512_loadu_ps(values) * scale);
      all = _mm512_inserti64x4(_mm512_castsi256_si512(halves), halves, 1);
    }
    // Each byte is copied to two numbers, of which the first is shifted; the look-up reads the lowest five bits, and the
    // values are there twice.
    inline __m512i get(const uint8_t* codes) const {
      const __m512i spread = _mm512_set_epi64(0x8007800780068006, 0x8005800580048004, 0x8003800380028002, 0x8001800180008000,
                                              0x8007800780068006, 0x8005800580048004, 0x8003800380028002, 0x8001800180008000) +
                             _mm512_set_epi64(0x0008000800080008, 0x0008000800080008, 0x0008000800080008, 0x0008000800080008, 0, 0, 0, 0);
      const __m512i shift = _mm512_set1_epi32(4);
      __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)codes));
      return _mm512_permutexvar_epi16(_mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, spread), shift), all);
    }
  };
  static inline __m256i upper_halves(vf v) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)rounded_bits(v), 16));
  }
#endif

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
  struct Bf16 {
    typedef uint16_t Out;
    static inline void put(uint16_t* y, vf v) {
      vh h = __builtin_convertvector(rounded_bits(v) >> 16, vh);
      memcpy(y, &h, sizeof h);
    }
    static inline void put(uint16_t* y, float v) { *y = to_bf16(v); }
  };
  struct Rounded {
    typedef float Out;
    static inline void put(float* y, vf v) { Float::put(y, as_bf16(v)); }
    static inline void put(float* y, float v) { *y = from_bf16(to_bf16(v)); }
  };

  // Writes numbers [i, to) of one block, whose codes stand for `values` times `scale`, as far as whole vectors reach.
  // Returns the first number that is left.
  template <class To>
  static inline int64_t vectors(const uint8_t* codes, const float* values, float scale, int64_t i, int64_t to,
                                typename To::Out* y) {
#if FT_BYTES == 64
    if constexpr (sizeof(typename To::Out) == 2) {
      const ScaledHalves table(values, scale);
      for (; i + 32 <= to; i += 32, y += 32) _mm512_storeu_si512(y, table.get(codes + i / 2));
      return i;
    } else
#endif
    {
      const Scaled<false> table(values, scale);
      for (; i + W <= to; i += W, y += W) To::put(y, table.get(codes + i / 2));
      return i;
    }
  }

  // Writes numbers [i, to) of one block.
  template <class To>
  static inline void block(const uint8_t* codes, const float* values, float scale, int64_t i, int64_t to,
                           typename To::Out* y) {
    auto one = [&](int64_t i) { To::put(y++, values[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4] * scale); };
    if (i % 2) one(i++);  // a row of an odd number of columns may begin in the middle of a byte
    const int64_t left = vectors<To>(codes, values, scale, i, to, y);
    y += left - i;
    for (i = left; i < to; i++) one(i);
  }

  template <class To>
  static inline void four_bits(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
    for (int64_t i = begin, to; i < end; i = to) {
      const int64_t next = (i / kBlock + 1) * kBlock;
      to = next < end ? next : end;
      block<To>(w.codes, w.values, block_scale(w, i / kBlock), i, to, y + (i - begin));
    }
  }

  // Writes numbers of a row's groups, whose codes are 4 bits or bytes. Those with values have exponents instead of scales.
  template <class To>
  static inline void groups(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
    const int64_t count = groups_of(w);
    for (int64_t i = begin, to; i < end; i = to) {
      const int64_t row = i / w.columns, group = i % w.columns / w.group;
      const int64_t rest = w.columns - group * w.group;
      to = row * w.columns + group * w.group + (rest < w.group ? rest : w.group);
      to = to < end ? to : end;
      if (w.values) {
        block<To>(w.codes, w.values, power_of_two(w.scale_codes[row * count + group]), i, to, y + (i - begin));
        continue;
      }
      const float scale = w.scales[row * count + group];
      const uint8_t zero = w.zeros[row * count + group];
      if (!w.bytes) block<To>(w.codes, less_zero(zero), scale, i, to, y + (i - begin));
      else for (int64_t j = i; j < to; j++) To::put(y + (j - begin), float(int(w.codes[j]) - int(zero)) * scale);
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
    if (w.group) groups<To>(w, begin, end, y);
    else if (w.values) four_bits<To>(w, begin, end, y);
    else int8<To>(w, begin, end, y);
  }
};

}  // namespace
