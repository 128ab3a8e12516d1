// Lists the builds of the kernels that this processor can run, and runs loops in parallel on libtorch's threads.
#include "isa.h"
#include "kernels.h"
#include "merge.h"
#include "quantised.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

extern "C" {
#define DECLARE(isa, ...) extern const FtKernels ft_kernels_##isa;
FT_LEVELS(DECLARE)

#define DECLARE_MERGE(isa, ...) extern const FtMergeKernels ft_merge_kernels_##isa;
FT_LEVELS(DECLARE_MERGE)

#define QUANTISED(isa, ...)                                                                       \
  void ft_dequantise_##isa(const FtQuantised*, bool, int64_t, int64_t, void*);                    \
  void ft_quantise_4bit_##isa(const float*, int64_t, int64_t, int64_t, const float*, const uint8_t*, uint8_t*, float*);
FT_LEVELS(QUANTISED)

// Returns the build for a level of isa.h; null if this processor cannot run it or it is not to be used.
const FtKernels* ft_kernels(int level) {
#define ENTRY(isa, ...) &ft_kernels_##isa,
  static const FtKernels* const builds[] = {FT_LEVELS(ENTRY)};
  return level >= 0 && level <= ft_isa() ? builds[level] : nullptr;
}

// The same for the loops of merge.h.
const FtMergeKernels* ft_merge_kernels(int level) {
#define MERGE_ENTRY(isa, ...) &ft_merge_kernels_##isa,
  static const FtMergeKernels* const builds[] = {FT_LEVELS(MERGE_ENTRY)};
  return level >= 0 && level <= ft_isa() ? builds[level] : nullptr;
}

// Runs the build for a level of isa.h that this processor has: see quantised.cpp.
void ft_dequantise(int level, const FtQuantised* w, bool half, int64_t begin, int64_t end, void* y) {
#define DEQUANTISE(isa, ...) &ft_dequantise_##isa,
  static decltype(&ft_dequantise_portable) const builds[] = {FT_LEVELS(DEQUANTISE)};
  builds[level](w, half, begin, end, y);
}
void ft_quantise_4bit(int level, const float* x, int64_t n, int64_t begin, int64_t end, const float* borders,
                      const uint8_t* order, uint8_t* codes, float* scales) {
#define QUANTISE(isa, ...) &ft_quantise_4bit_##isa,
  static decltype(&ft_quantise_4bit_portable) const builds[] = {FT_LEVELS(QUANTISE)};
  builds[level](x, n, begin, end, borders, order, codes, scales);
}

// Calls f on disjoint parts of [0, rows), of at least `grain` rows each.
void ft_parallel(int64_t rows, int64_t grain, void (*f)(void* ctx, int64_t begin, int64_t end), void* ctx) {
  int64_t parts = std::min<int64_t>(omp_get_max_threads(), (rows + grain - 1) / grain);
  if (parts <= 1) { f(ctx, 0, rows); return; }
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t i = 0; i < parts; i++) f(ctx, rows * i / parts, rows * (i + 1) / parts);
}

// Copies rows of heads from a packed row (T, heads, bytes) to a padded block (n, heads, L, bytes). Position i of the
// block is row places[i]; if that is negative, it is padding (zeros); without places, row i. Handles positions
// [begin, end).
void ft_gather_heads(const char* row, char* block, const int64_t* places, int64_t heads, int64_t length, int64_t bytes,
                     int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) {
    int64_t from = places ? places[i] : i;
    char* to = block + ((i / length) * heads * length + i % length) * bytes;
    for (int64_t h = 0; h < heads; h++, to += length * bytes) {
      if (from < 0) memset(to, 0, bytes);
      else memcpy(to, row + (from * heads + h) * bytes, bytes);
    }
  }
}

// Copies a padded block back to the packed row, without padding.
void ft_scatter_heads(const char* block, char* row, const int64_t* places, int64_t heads, int64_t length, int64_t bytes,
                      int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) {
    int64_t to = places ? places[i] : i;
    if (to < 0) continue;
    const char* from = block + ((i / length) * heads * length + i % length) * bytes;
    for (int64_t h = 0; h < heads; h++, from += length * bytes) memcpy(row + (to * heads + h) * bytes, from, bytes);
  }
}
}
