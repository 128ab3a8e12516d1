// Quantises weights and dequantises them, on raw memory. Compiled once per instruction set; dispatch.cpp chooses the
// build.
#include "formats.h"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, FT_ISA)

extern "C" {
// Writes numbers [begin, end) of w to y, in bfloat16 if `half`, otherwise in float32.
void NAME(ft_dequantise)(const FtQuantised* w, bool half, int64_t begin, int64_t end, void* y) {
  if (half) dequantise<Quantised::Bf16>(*w, begin, end, (uint16_t*)y);
  else dequantise<Quantised::Float>(*w, begin, end, (float*)y);
}

// Returns the bytes of a row of `columns` numbers in blocks of ggml's type `number`; -1 if there is no such row or type.
int64_t NAME(ft_ggml_row_bytes)(int number, int64_t columns) {
  int64_t bytes = -1;
  ggml::with_type(number, [&](auto type) {
    if (columns % type.elements == 0) bytes = columns / type.elements * type.bytes;
  });
  return bytes;
}

// Quantises blocks [begin, end) of n numbers to 4 bits, as bitsandbytes does: each number is divided by the largest
// magnitude of its block, and gets the code of the interval between `borders` (15, ascending) in which it then lies.
// `order` (16) has the codes by ascending value. Writes the codes and each block's largest magnitude, NaN for a block
// with NaN or infinite numbers.
void NAME(ft_quantise_4bit)(const float* x, int64_t n, int64_t begin, int64_t end, const float* borders,
                            const uint8_t* order, uint8_t* codes, float* scales) {
  // The smallest divisor; a block of zeros has the scale 0.
  const float least = 1e-38f;
  for (int64_t b = begin; b < end; b++) {
    const float* from = x + b * kBlock;
    const int64_t count = n - b * kBlock < kBlock ? n - b * kBlock : kBlock;
    float v[kBlock] = {}, most = 0, broken = 0;
    for (int64_t i = 0; i < count; i++) v[i] = from[i];
    for (int i = 0; i < kBlock; i++) {
      float magnitude = v[i] < 0 ? -v[i] : v[i];
      most = magnitude > most ? magnitude : most;
    }
    for (int i = 0; i < kBlock; i++) broken += v[i] - v[i];  // NaN if any is not finite, otherwise 0
    const float divisor = most < least ? least : most;
    if (count == kBlock) {
      const float inverse = 1.0f / divisor;
      for (int i = 0; i < kBlock; i++) v[i] *= inverse;
    } else {  // bitsandbytes divides in an incomplete block, and stores the divisor
      for (int i = 0; i < kBlock; i++) v[i] /= divisor;
      most = divisor;
    }
    scales[b] = broken == 0 ? most : broken;
    int32_t rank[kBlock] = {};
    for (int j = 0; j < 15; j++) {
      const float border = borders[j];
      for (int i = 0; i < kBlock; i++) rank[i] += v[i] > border;
    }
    uint8_t* to = codes + b * (kBlock / 2);
    for (int64_t i = 0; i < (count + 1) / 2; i++) to[i] = uint8_t(order[rank[2 * i]] << 4 | order[rank[2 * i + 1]]);
  }
}
}
