// bfloat16 and float32 as bits, for all kernels. Every function has internal linkage and is always inlined, so that no
// copy of it that is compiled for one instruction set can be used by code for another.
#pragma once
#include <cstdint>
#include <cstring>

#define FT_INLINE static inline __attribute__((always_inline))

FT_INLINE float bits_to_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
FT_INLINE uint32_t float_to_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

// Converts bfloat16 to float32; exact.
FT_INLINE float from_bf16(uint16_t x) { return bits_to_float(uint32_t(x) << 16); }
// Rounds float32 to bfloat16: to nearest, ties to even; NaN stays NaN.
FT_INLINE uint16_t to_bf16(float x) {
  uint32_t u = float_to_bits(x);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return uint16_t(x != x ? 0x7fc0u : rounded);
}
