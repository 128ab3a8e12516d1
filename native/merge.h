// Loops over blocks of float32 numbers that merge whole models: each block fits the cache of a core, so that several loops over it
// cost little more than one.
//
// All pointers are to `n` numbers, unless something else is said. Sums are float64; their order depends on the build alone.
#pragma once
#include <cstdint>

struct FtMergeKernels {
  const char* name;

  // Converts bfloat16 to float32, and rounds float32 to bfloat16: to nearest, ties to even.
  void (*widen)(const uint16_t* x, float* y, int64_t n);
  void (*narrow)(const float* x, uint16_t* y, int64_t n);
  // Returns true if no number is NaN or infinite.
  bool (*finite)(const float* x, int64_t n);

  // z = x - y
  void (*subtract)(const float* x, const float* y, float* z, int64_t n);
  // y = sum of factors[k] * terms[k], plus `added` if it is not null.
  void (*combine)(const float* const* terms, const float* factors, int64_t count, const float* added, float* y,
                  int64_t n);
  // Elects the sign of each entry, that of the sum of the changes (0 counts as +), and adds up factors[k] * changes[k] of the
  // changes that have it. If `normalise`, the sum is divided by that of their weights, which is at least `least`; by 1 instead of
  // 0. y = base + lambda * sum.
  void (*elect)(const float* const* changes, const float* factors, const float* weights, int64_t count, bool normalise,
                float least, float lambda, const float* base, float* y, int64_t n);

  // Adds the inner products of all pairs of vectors (i <= j) to `sums`: (0, 0), (0, 1), …, (1, 1), …
  void (*products)(const float* const* vectors, int64_t count, double* sums, int64_t n);
  // Adds to `found` the number of entries where at least two vectors are not zero, and of those where two signs differ.
  void (*signs)(const float* const* vectors, int64_t count, int64_t* found, int64_t n);
  // Returns the sum of magnitudes.
  double (*magnitude)(const float* x, int64_t n);

  // Adds to `counts` (32768) how many numbers have each value of the upper 15 bits of their magnitude.
  void (*count_upper)(const float* x, uint32_t* counts, int64_t n);
  // Adds to `counts` (65536) how many numbers with these upper bits have each value of the lower 16 bits.
  void (*count_lower)(const float* x, uint32_t upper, uint32_t* counts, int64_t n);
  // Returns how many numbers have this magnitude.
  int64_t (*count_equal)(const float* x, float magnitude, int64_t n);

  // Multiplies the numbers whose magnitude is above `least` (or equal, if `with_least`) and not above `most` (nor equal, if
  // `without_most`) by `factor`, and sets the others to 0.
  void (*keep)(float* x, float least, bool with_least, float most, bool without_most, float factor, int64_t n);
  // Multiplies the numbers whose random number is below its probability by `factor`, and sets the others to 0.
  void (*keep_random)(float* x, const double* random, const double* probability, float factor, int64_t n);
  // The same with one probability for all.
  void (*keep_share)(float* x, const double* random, double probability, float factor, int64_t n);
};
