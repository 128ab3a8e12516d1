// The language of the kernels in this folder: C++17 without any header. NVRTC compiles them for a GPU at run time; a
// host compiler compiles the same text for tests, with the second half of this file in place of a GPU.
//
// A kernel is a sequence of phases. FT_THREADS { … } is a phase: each thread of the block runs it with its own
// `thread`, and no thread begins it before all have finished the phase before. Code between phases must be the same
// for all threads: it may read arguments and the block's number, but no shared memory. Nothing of a thread outlives
// its phase except in shared memory.
//
// FT_NUMBER selects the format of tensors: 0 float32, 1 bfloat16, 2 float16. Arithmetic is float32 everywhere.
#pragma once

typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#ifdef __CUDACC__

#define FT_DEVICE static __device__ __forceinline__
#define FT_CONSTANT static __constant__
#define FT_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define FT_THREADS __syncthreads(); if (const int thread = int(threadIdx.x); true)
#define FT_SHARED(type, name, count) __shared__ type name[count]
#define FT_BLOCK i64(blockIdx.x)
#define FT_CHECK_ALIGNED(pointer, type)

FT_DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
FT_DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }

#else

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define FT_DEVICE static inline
#define FT_CONSTANT static const
#define FT_KERNEL(threads) static void
#define FT_THREADS for (int ft_turn = 0, thread = 0; thread = ft::thread_at(ft_turn), ft_turn < ft::here.threads; ft_turn++)
#define FT_SHARED(type, name, count) type name[count]; memset(static_cast<void*>(name), 0xff, sizeof name)
#define FT_BLOCK ft::here.block
#define FT_CHECK_ALIGNED(pointer, type) ft::check_aligned(pointer, alignof(type))

namespace ft {
// The block that runs now. Threads of a phase run one after the other, in ascending order or the reverse: a kernel
// whose result depends on the order has a data race on a GPU.
struct Here { i64 block; int threads; bool reversed; };
static thread_local Here here;
static inline int thread_at(int turn) { return here.reversed ? here.threads - 1 - turn : turn; }
// A GPU stops with "misaligned address" where a processor would carry on.
static inline void check_aligned(const void* pointer, size_t bytes) {
  if (uintptr_t(pointer) % bytes == 0) return;
  fprintf(stderr, "kernel: misaligned address %p, expected a multiple of %zu\n", pointer, bytes);
  abort();
}
}

FT_DEVICE float bits_to_float(u32 bits) { float x; memcpy(&x, &bits, 4); return x; }
FT_DEVICE u32 float_to_bits(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }

#endif

// ---- numbers

struct Bfloat16 { u16 bits; };
struct Float16 { u16 bits; };

#if FT_NUMBER == 0
typedef float Number;
#elif FT_NUMBER == 1
typedef Bfloat16 Number;
#elif FT_NUMBER == 2
typedef Float16 Number;
#else
#error "FT_NUMBER must be 0, 1 or 2"
#endif

FT_DEVICE float widen(float x) { return x; }
FT_DEVICE float widen(Bfloat16 x) { return bits_to_float(u32(x.bits) << 16); }
FT_DEVICE float widen(Float16 x) {
#ifdef __CUDACC__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const u32 sign = u32(x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, fraction = x.bits & 1023u;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = float(fraction) * bits_to_float(0x33800000u);  // 2^-24, the step of subnormal numbers
  return bits_to_float(sign | float_to_bits(small));
#endif
}

// Rounds to nearest, ties to even. NaN stays NaN; what is too large becomes infinite.
FT_DEVICE void narrow(float x, float& to) { to = x; }
FT_DEVICE void narrow(float x, Bfloat16& to) {
  const u32 bits = float_to_bits(x);
  to.bits = u16(x != x ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
FT_DEVICE void narrow(float x, Float16& to) {
#ifdef __CUDACC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const u32 bits = float_to_bits(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) { to.bits = u16(sign | 0x7e00u); return; }
  if (size >= 0x477ff000u) { to.bits = u16(sign | 0x7c00u); return; }  // 65520 and more
  if (size < 0x38800000u) {  // below 2^-14: steps of 2^-24, to which adding 0.5 rounds a float32
    const u32 rounded = float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u;
    to.bits = u16(sign | rounded);
    return;
  }
  to.bits = u16(sign | (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13);
#endif
}

// Returns x as a tensor of Number would hold it.
FT_DEVICE float rounded(float x) { Number n; narrow(x, n); return widen(n); }

// ---- memory

// Numbers that one thread loads or stores at once: 16 bytes of the narrow formats. An address that is not a multiple of
// this size needs the loop over single numbers.
constexpr int kPack = 8;
template <class T> struct alignas(sizeof(T) * kPack > 16 ? 16 : sizeof(T) * kPack) Pack { T at[kPack]; };

// Loads N numbers: 1 or kPack.
template <int N> FT_DEVICE void load(const Number* from, float (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = widen(*from);
  } else {
    FT_CHECK_ALIGNED(from, Pack<Number>);
    const Pack<Number> pack = *reinterpret_cast<const Pack<Number>*>(from);
    for (int i = 0; i < N; i++) to[i] = widen(pack.at[i]);
  }
}

template <int N> FT_DEVICE void store(Number* to, const float (&from)[N]) {
  if constexpr (N == 1) {
    narrow(from[0], *to);
  } else {
    FT_CHECK_ALIGNED(to, Pack<Number>);
    Pack<Number> pack;
    for (int i = 0; i < N; i++) narrow(from[i], pack.at[i]);
    *reinterpret_cast<Pack<Number>*>(to) = pack;
  }
}

// ---- sums over a block

constexpr int kLanes = 32;

// Adds up the kLanes sums that `fold` left, in a fixed order.
FT_DEVICE float sum_of_lanes(const float* sums) {
  float total = 0;
  for (int lane = 0; lane < kLanes; lane++) total += sums[lane];
  return total;
}

// ---- results of other blocks

// A block never waits for another: the one that takes the last ticket reads what all have written before they took theirs.

// Lets other blocks see what this thread has written.
FT_DEVICE void publish() {
#ifdef __CUDACC__
  __threadfence();
#endif
}

// Returns how many tickets were taken from the counter before.
FT_DEVICE u32 take_ticket(u32* counter) {
#ifdef __CUDACC__
  const u32 before = atomicAdd(counter, 1u);
  __threadfence();
  return before;
#else
  return (*counter)++;
#endif
}

// Reads what another block has published.
FT_DEVICE float published(const float* from) { return *static_cast<const volatile float*>(from); }
