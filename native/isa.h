// The instruction sets that the program distinguishes, in increasing order: the only table of them. build.rs has the
// compiler flags of each.
//
// X(name, ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS): the name in FT_CPU and in the symbols of
// product.cpp's builds, and the values that restrict libtorch's libraries to the same set. Null: not restricted.
#pragma once

#define FT_ALL_LEVELS(X)                                           \
  X(portable, "default", "SSE41", "SSE4_2")                        \
  X(avx2, "avx2", "AVX2", "AVX2")                                  \
  X(avx512, "avx512", "AVX512_CORE", "AVX512")                     \
  X(avx512_bf16, "avx512", "AVX512_CORE_BF16", "AVX512")           \
  X(amx, nullptr, nullptr, nullptr)

// The levels that this architecture has builds for.
#ifdef __x86_64__
#define FT_LEVELS(X) FT_ALL_LEVELS(X)
#else
#define FT_LEVELS(X) X(portable, "default", "SSE41", "SSE4_2")
#endif

#define FT_LEVEL_NUMBER(name, aten, onednn, mkl) kLevel_##name,
enum FtLevel { FT_ALL_LEVELS(FT_LEVEL_NUMBER) kLevelCount };
#undef FT_LEVEL_NUMBER

extern "C" int ft_isa();
