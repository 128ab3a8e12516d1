// The loops of merge.h, written so that the compiler vectorises them. This file is compiled once per instruction set (FT_ISA is its
// name). Only the table at its end may have external linkage.
#include "merge.h"
#include "numbers.h"

namespace {

// Entries that are worked on at a time where a loop keeps intermediate results: these stay in the innermost cache.
constexpr int64_t kPiece = 1024;

FT_INLINE float magnitude_of(float x) { return bits_to_float(float_to_bits(x) & 0x7fffffffu); }

void widen(const uint16_t* x, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = from_bf16(x[i]);
}

void narrow(const float* x, uint16_t* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = to_bf16(x[i]);
}

bool finite(const float* x, int64_t n) {
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits = float_to_bits(x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest < 0x7f800000u;
}

void subtract(const float* x, const float* y, float* z, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) z[i] = x[i] - y[i];
}

void combine(const float* const* terms, const float* factors, int64_t count, const float* added, float* y, int64_t n) {
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    float sum[kPiece];
    for (int64_t k = 0; k < count; k++) {
      const float* x = terms[k] + start;
      const float factor = factors[k];
      if (k == 0) {
#pragma omp simd
        for (int64_t i = 0; i < size; i++) sum[i] = factor * x[i];
      } else {
#pragma omp simd
        for (int64_t i = 0; i < size; i++) sum[i] += factor * x[i];
      }
    }
    float* to = y + start;
    if (added) {
      const float* more = added + start;
#pragma omp simd
      for (int64_t i = 0; i < size; i++) to[i] = sum[i] + more[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; i++) to[i] = sum[i];
    }
  }
}

void elect(const float* const* changes, const float* factors, const float* weights, int64_t count, bool normalise,
           float least, float lambda, const float* base, float* y, int64_t n) {
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    float total[kPiece], sum[kPiece], divisor[kPiece];
    for (int64_t i = 0; i < size; i++) total[i] = sum[i] = divisor[i] = 0;
    for (int64_t k = 0; k < count; k++) {
      const float* x = changes[k] + start;
#pragma omp simd
      for (int64_t i = 0; i < size; i++) total[i] += x[i];
    }
    for (int64_t k = 0; k < count; k++) {
      const float* x = changes[k] + start;
      const float factor = factors[k], weight = weights[k];
#pragma omp simd
      for (int64_t i = 0; i < size; i++) {
        float along = total[i] >= 0 ? x[i] : -x[i];
        sum[i] += along > 0 ? factor * x[i] : 0.0f;
        divisor[i] += along > 0 ? weight : 0.0f;
      }
    }
    const float* from = base + start;
    float* to = y + start;
    if (normalise) {
#pragma omp simd
      for (int64_t i = 0; i < size; i++) {
        float by = divisor[i] < least ? least : divisor[i];
        sum[i] /= by == 0 ? 1.0f : by;
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < size; i++) to[i] = sum[i] * lambda + from[i];
  }
}

double product(const float* x, const float* y, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += double(x[i]) * double(y[i]);
  return sum;
}

void products(const float* const* vectors, int64_t count, double* sums, int64_t n) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = i; j < count; j++) *sums++ += product(vectors[i], vectors[j], n);
}

void signs(const float* const* vectors, int64_t count, int64_t* found, int64_t n) {
  int64_t shared = 0, conflicts = 0;
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    int32_t up[kPiece], down[kPiece];
    for (int64_t i = 0; i < size; i++) up[i] = down[i] = 0;
    for (int64_t k = 0; k < count; k++) {
      const float* x = vectors[k] + start;
#pragma omp simd
      for (int64_t i = 0; i < size; i++) {
        up[i] += x[i] > 0;
        down[i] += x[i] < 0;
      }
    }
    int32_t both = 0, unlike = 0;
#pragma omp simd reduction(+ : both, unlike)
    for (int64_t i = 0; i < size; i++) {
      both += up[i] + down[i] >= 2;
      unlike += (up[i] > 0) & (down[i] > 0);
    }
    shared += both;
    conflicts += unlike;
  }
  found[0] += shared;
  found[1] += conflicts;
}

double magnitude(const float* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += double(magnitude_of(x[i]));
  return sum;
}

void count_upper(const float* x, uint32_t* counts, int64_t n) {
  for (int64_t i = 0; i < n; i++) counts[(float_to_bits(x[i]) >> 16) & 0x7fffu]++;
}

void count_lower(const float* x, uint32_t upper, uint32_t* counts, int64_t n) {
  constexpr int64_t kGroup = 64;
  for (int64_t start = 0; start < n; start += kGroup) {
    const int64_t size = n - start < kGroup ? n - start : kGroup;
    const float* from = x + start;
    uint32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < size; i++) any |= ((float_to_bits(from[i]) >> 16) & 0x7fffu) == upper;
    if (!any) continue;
    for (int64_t i = 0; i < size; i++) {
      uint32_t bits = float_to_bits(from[i]) & 0x7fffffffu;
      if (bits >> 16 == upper) counts[bits & 0xffffu]++;
    }
  }
}

int64_t count_equal(const float* x, float magnitude, int64_t n) {
  int64_t found = 0;
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    const float* from = x + start;
    int32_t equal = 0;
#pragma omp simd reduction(+ : equal)
    for (int64_t i = 0; i < size; i++) equal += magnitude_of(from[i]) == magnitude;
    found += equal;
  }
  return found;
}

void keep(float* x, float least, bool with_least, float most, bool without_most, float factor, int64_t n) {
  const uint32_t equal_least = with_least ? 1 : 0, equal_most = without_most ? 1 : 0;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float m = magnitude_of(x[i]);
    uint32_t inside = uint32_t(m > least) | (uint32_t(m == least) & equal_least);
    uint32_t beyond = uint32_t(m > most) | (uint32_t(m == most) & equal_most);
    x[i] = (inside & (beyond ^ 1u)) ? x[i] * factor : 0.0f;
  }
}

void keep_random(float* x, const double* random, const double* probability, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) x[i] = random[i] < probability[i] ? x[i] * factor : 0.0f;
}

void keep_share(float* x, const double* random, double probability, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) x[i] = random[i] < probability ? x[i] * factor : 0.0f;
}

}  // namespace

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
extern "C" const FtMergeKernels JOIN(ft_merge_kernels_, FT_ISA) = {
    TEXT(FT_ISA), widen,     narrow,      finite,      subtract,    combine, elect,       products,
    signs,        magnitude, count_upper, count_lower, count_equal, keep,    keep_random, keep_share,
};
