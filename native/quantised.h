// How a quantised weight is stored.
#pragma once
#include <cstdint>

// A matrix of 4-bit numbers in blocks (NF4, FP4), of int8 numbers with a scale for each row, of unsigned numbers of 4 or 8
// bits in groups of inputs that share a scale and a zero, of 4-bit numbers in groups that share a power of two (MXFP4), or of
// ggml's blocks.
struct FtQuantised {
  int64_t columns;             // numbers of a row
  int32_t ggml;                // ggml's number of the type of its blocks (ggml.h), which have all of what follows; 0: none
  const uint8_t* codes;        // 4 bits: two numbers a byte, the first in the upper half; or one number a byte; or blocks
  const float* values;         // the 16 values of 4-bit codes in blocks or MXFP4; null for the other formats
  const float* scales;         // the largest magnitude of each block or, for int8, of each row; the scale of each group of
                               // each row; null with double quantisation
  const uint8_t* scale_codes;  // double quantisation: the code of each block's scale; MXFP4: the exponent of each group
  const float* scale_scales;   // the largest magnitude of each kGroup of these
  const float* scale_values;   // the 256 values of their codes
  float offset;                // added to each scale
  const uint8_t* zeros;        // the code that stands for 0 in each group of each row; null for formats without groups
  int64_t group;               // numbers of a row that share a scale and a zero, or an exponent; the last group may be
                               // shorter; 0 for formats without groups
  bool bytes;                  // a code of a group is one byte, not 4 bits of which the first number's are the upper half
};

// Numbers of 4 bits that share a scale, and scales that share a scale.
constexpr int64_t kBlock = 64, kGroup = 256;
// What the code 127 of an int8 row stands for is its scale: 1 / 127, rounded as bitsandbytes does.
constexpr float kInt8Step = 7.874015718698502e-3f;
