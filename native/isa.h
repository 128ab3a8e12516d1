// The instruction sets that the program distinguishes, in increasing order: the only table of them. build.rs reads its
// rows too; each is one line that begins with `X(`.
//
// X(name, vector bytes, compiler flags, ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS): the name in
// FT_CPU and in the symbols of the builds of kernels.cpp and product.cpp, how these are compiled, and the values that
// restrict libtorch's libraries to the same set. Null: not restricted.
#pragma once

#define FT_PORTABLE_LEVEL(X) \
  X(portable, 16, "", "default", "SSE41", "SSE4_2")

// The vectors of 512 bits are for GCC, which would otherwise use half of them.
#define FT_X86_LEVELS(X) \
  X(avx2, 32, "-march=x86-64-v3", "avx2", "AVX2", "AVX2") \
  X(avx512, 64, "-march=x86-64-v4 -mprefer-vector-width=512", "avx512", "AVX512_CORE", "AVX512") \
  X(avx512_bf16, 64, "-march=x86-64-v4 -mprefer-vector-width=512 -mavx512bf16", "avx512", "AVX512_CORE_BF16", "AVX512") \
  X(amx, 64, "-march=x86-64-v4 -mprefer-vector-width=512 -mavx512bf16 -mamx-tile -mamx-bf16", nullptr, nullptr, nullptr)

#define FT_ALL_LEVELS(X) FT_PORTABLE_LEVEL(X) FT_X86_LEVELS(X)

// The levels that this architecture has builds for.
#ifdef __x86_64__
#define FT_LEVELS(X) FT_ALL_LEVELS(X)
#else
#define FT_LEVELS(X) FT_PORTABLE_LEVEL(X)
#endif

#define FT_LEVEL_NUMBER(name, ...) kLevel_##name,
enum FtLevel { FT_ALL_LEVELS(FT_LEVEL_NUMBER) kLevelCount };
#undef FT_LEVEL_NUMBER

extern "C" int ft_isa();
