// bfloat16, the bits of float32 and the exponential, for all kernels. Every function has internal linkage and is always inlined, so that no
// copy of it that is compiled for one instruction set can be used by code for another.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __F16C__
#include <immintrin.h>
#endif

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

// Converts float16 to float32; exact. NaN and infinities become large numbers.
FT_INLINE float from_f16(uint16_t x) {
#ifdef __F16C__
  return _cvtsh_ss(x);
#else
  uint32_t sign = uint32_t(x & 0x8000) << 16, rest = uint32_t(x & 0x7fff);
  // A number's exponent is 112 less here. A subnormal number is a multiple of 2^-24: it becomes the lowest bits of 0.5.
  float normal = bits_to_float((rest << 13) + (112u << 23)), subnormal = bits_to_float(rest | (126u << 23)) - 0.5f;
  return bits_to_float(float_to_bits(rest < 0x400 ? subnormal : normal) | sign);
#endif
}

// Computes e^x by range reduction and the Cephes polynomial: within 1.1 ulp; 0 below -87.33 (where the result would be
// subnormal), inf above 88.72; NaN passes through. F is float, or a vector of floats with I the vector of integers.
template <class F, class I>
FT_INLINE F exponential(F x) {
  const F most = F{} + 88.72f, least = F{} - 87.33f;
  F c = x > most ? most : x < least ? least : x;
  F n = c * 1.44269504088896341f + 12582912.0f - 12582912.0f;  // rounds to the nearest integer
  F r = c - n * 0.693359375f + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n as two factors, because n may be 128, which one float32 exponent cannot hold.
  I whole;
  if constexpr (std::is_same_v<F, float>) whole = I(n);
  else whole = __builtin_convertvector(n, I);
  I low = whole >> 1, low_bits = (low + 127) << 23, high_bits = (whole - low + 127) << 23;
  F first, second;
  memcpy(&first, &low_bits, sizeof first);
  memcpy(&second, &high_bits, sizeof second);
  F y = p * first * second;
  y = x < least ? F{} : y;
  return x > most ? F{} + __builtin_inff() : y;
}
