// Makes the numbers of a quantised weight again, whatever its format.
#pragma once
#include "dequantise.h"
#include "ggml.h"

namespace {

// Writes numbers [begin, end) of the matrix to y, its first number being y[0]. To says how: Quantised::Float, Bf16 or
// Rounded.
template <class To>
inline void dequantise(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
  if (w.ggml) ggml::numbers<To>(w, begin, end, y);
  else Quantised::numbers<To>(w, begin, end, y);
}

}  // namespace
