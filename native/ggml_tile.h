// Reads weights in ggml's blocks while they are multiplied. Included by quantised_product.cpp.
#pragma once
#include "ggml.h"
#include "product_tile.h"

namespace {
namespace ggml {

// Converts float16 numbers, a multiple of 8, to float32.
inline void widen_halves(const uint16_t* h, int count, float* y) {
#ifdef __F16C__
  for (int i = 0; i < count; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(h + i))));
#else
  for (int i = 0; i < count; i++) y[i] = from_f16(h[i]);
#endif
}

// The scales and offsets of a run of up to `blocks` blocks of a few rows. Those of small blocks are first copied from the
// blocks of all rows and then converted, because a vector cannot be read from narrower stores before they are over.
template <class Type, int rows> struct Factors {
  static constexpr bool small = Type::elements == 32;
  static constexpr int blocks = small ? 64 : 1, groups = small ? 1 : Type::elements / Type::group;
  // Floats from a scale to the next: a small block's offset follows its scale.
  static constexpr int apart = small && Type::offset ? 2 : 1;
  float scales[rows][blocks * groups * apart], offsets[small ? 1 : rows][groups];
  inline void read(const uint8_t* const* at, int count) {
    if constexpr (small) {
      uint16_t halves[rows][blocks * apart];
      for (int j = 0; j < rows; j++)
        for (int i = 0; i < count; i++) {
          typename std::conditional<apart == 2, uint32_t, uint16_t>::type both;
          memcpy(&both, at[j] + i * Type::bytes, sizeof both);
          asm("" : "+r"(both));  // one at a time: compilers would make vectors of them, which takes longer
          memcpy(halves[j] + i * apart, &both, sizeof both);
        }
      for (int j = 0; j < rows; j++) widen_halves(halves[j], (count * apart + 7) / 8 * 8, scales[j]);
    } else {
      for (int j = 0; j < rows; j++) Type::scales(at[j], scales[j], offsets[j]);
    }
    in_memory(scales), in_memory(offsets);
  }
  // Those of block number `block` of a row.
  inline const float* scale(int row, int64_t block) const { return scales[row] + block * groups * apart; }
  inline const float* offset(int row, int64_t block) const { return small ? scale(row, block) + 1 : offsets[row]; }
};

// Numbers of one block, made from their codes and the block's factors.
template <class Type> struct FromCodes {
  static constexpr int64_t count = Type::elements;
  alignas(64) int8_t codes[Type::elements];
  const float *scale, *offset;
  inline FromCodes(const uint8_t* b, const float* scale, const float* offset) : scale(scale), offset(offset) {
    Type::codes(b, codes);
    in_memory(codes);
  }
  inline vf get(int64_t i) const {
    vf v = Quantised::widened((const uint8_t*)codes + i) * scale[i / Type::group];
    return Type::offset ? v + offset[i / Type::group] : v;
  }
};

template <> struct FromCodes<Q8_0> {
  static constexpr int64_t count = 32;
  const uint8_t* codes;
  const float* scale;
  inline FromCodes(const uint8_t* b, const float* scale, const float*) : codes(b + 2), scale(scale) {}
  inline vf get(int64_t i) const { return Quantised::widened(codes + i) * *scale; }
};

#if FT_BYTES == 64
// The 16 values of a group's 4-bit codes.
template <class Type> inline __m512 values(float scale, float offset) {
  const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) - float(Type::zero);
  return Type::offset ? steps * scale + offset : steps * scale;
}

// Numbers of one block of a type with codes of 4 bits, looked up among their values. Each half of a byte is a number; the
// other half belongs to the number `Type::plane` further.
template <class Type, bool round> struct FromTable {
  static constexpr int64_t count = Type::elements;
  static constexpr int groups = Type::elements / Type::group;
  const uint8_t* codes;
  vf table[groups];
  inline FromTable(const uint8_t* b, const float* scale, const float* offset) : codes(b + Type::first_code) {
    for (int g = 0; g < groups; g++) {
      vf v = (vf)values<Type>(scale[g], offset[g]);
      table[g] = round ? Quantised::as_bf16(v) : v;
    }
  }
  inline vf get(int64_t i) const {
    constexpr int64_t plane = Type::plane;
    const int64_t at = i / (2 * plane) * plane + i % plane;
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(codes + at)));
    if (i / plane % 2) index = _mm512_srli_epi32(index, 4);
    return (vf)_mm512_permutexvar_ps(index, (__m512)table[i / Type::group]);  // reads the lowest four bits
  }
};
#endif

#ifdef __AVX512BF16__
// The values of two groups in bfloat16. Which of the groups is meant is the fifth bit of an index.
template <class Type> inline __m512i two_tables(const float* scale, const float* offset, int second) {
  return (__m512i)halves((vf)values<Type>(*scale, *offset), (vf)values<Type>(scale[second], offset[second]));
}

// The same as FromTable in pairs of bfloat16. Q4_0 and Q4_1: two blocks of 32.
template <class Type> struct PairsFromTable {
  static constexpr int64_t count = 64;
  const uint8_t* codes;
  const __m512i table;
  inline PairsFromTable(const uint8_t* b, const float* scale, const float* offset)
      : codes(b + Type::first_code), table(two_tables<Type>(scale, offset, Type::offset ? 2 : 1)) {}
  // A byte's lower half is number i, its upper half number i + 16.
  inline __m512bh get(int64_t i) const {
    const __m512i spread = _mm512_set_epi64(0x800f800e800d800c, 0x800b800a80098008, 0x8007800680058004, 0x8003800280018000,
                                            0x800f800e800d800c, 0x800b800a80098008, 0x8007800680058004, 0x8003800280018000);
    const __m512i shift = _mm512_set_epi64(0x0004000400040004, 0x0004000400040004, 0x0004000400040004, 0x0004000400040004, 0, 0, 0, 0);
    const __m512i four = _mm512_set1_epi16(15), fifth = _mm512_set1_epi16(16);
    __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(codes + i / 32 * Type::bytes)));
    __m512i index = _mm512_and_si512(_mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, spread), shift), four);
    if (i) index = _mm512_or_si512(index, fifth);
    return (__m512bh)_mm512_permutexvar_epi16(index, table);
  }
};
template <> struct PairsFromTable<Q4_K> {
  static constexpr int64_t count = 256;
  const uint8_t* codes;
  __m512i table[4];
  inline PairsFromTable(const uint8_t* b, const float* scale, const float* offset) : codes(b + Q4_K::first_code) {
    for (int i = 0; i < 4; i++) table[i] = two_tables<Q4_K>(scale + 2 * i, offset + 2 * i, 1);
  }
  inline __m512bh get(int64_t i) const {
    __m512i index = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(codes + i / 64 * 32)));
    index = i / 32 % 2 ? _mm512_or_si512(_mm512_srli_epi16(index, 4), _mm512_set1_epi16(16)) : _mm512_and_si512(index, _mm512_set1_epi16(15));
    return (__m512bh)_mm512_permutexvar_epi16(index, table[i / 64]);
  }
};
#endif

}  // namespace ggml
}  // namespace
