// SwiGLU (Shazeer 2020, arXiv 2002.05202): y = silu(gate) up, elementwise over n numbers in rows of `width`. y and its
// gradient are contiguous; the rows of the other tensors begin `stride` numbers apart.

// Returns where a number is in a tensor with strided rows, given its place in a contiguous one.
FT_DEVICE i64 in_rows(i64 at, i64 width, i64 stride) {
  if (stride == width) return at;
  // 32 bits divide faster.
  const i64 row = (at | width) >> 32 ? at / width : i64(u32(at) / u32(width));
  return row * stride + (at - row * width);
}

FT_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int N>
FT_DEVICE void swiglu_at(const Number* gate, const Number* up, Number* y) {
  float a[N], b[N];
  load<N>(gate, a);
  load<N>(up, b);
  for (int i = 0; i < N; i++) a[i] = a[i] * sigmoid(a[i]) * b[i];
  store<N>(y, a);
}

// With `packed` every address and row begins at a multiple of the size of a pack. A thread computes kPack numbers.
FT_KERNEL(256) swiglu(const Number* gate, const Number* up, Number* y, i64 n, i64 width, i64 stride, int packed) {
  const i64 first = FT_BLOCK * 256 * kPack;
  FT_THREADS {
    const i64 begin = first + thread * kPack;
    if (packed && begin + kPack <= n) {
      const i64 at = in_rows(begin, width, stride);
      swiglu_at<kPack>(gate + at, up + at, y + begin);
    } else {
      for (i64 i = begin; i < n && i < begin + kPack; i++) {
        const i64 at = in_rows(i, width, stride);
        swiglu_at<1>(gate + at, up + at, y + i);
      }
    }
  }
}

template <int N>
FT_DEVICE void swiglu_backward_at(const Number* gate, const Number* up, const Number* g, Number* g_gate,
                                  Number* g_up) {
  float a[N], b[N], d[N];
  load<N>(gate, a);
  load<N>(up, b);
  load<N>(g, d);
  for (int i = 0; i < N; i++) {
    const float s = sigmoid(a[i]), silu = a[i] * s;
    b[i] = d[i] * b[i] * s * (1.0f + a[i] * (1.0f - s));
    d[i] *= silu;
  }
  store<N>(g_gate, b);
  store<N>(g_up, d);
}

// The gradients of gate and up, given the gradient g of y. Their rows begin `g_stride` numbers apart.
FT_KERNEL(256) swiglu_backward(const Number* gate, const Number* up, const Number* g, Number* g_gate, Number* g_up,
                               i64 n, i64 width, i64 stride, i64 g_stride, int packed) {
  const i64 first = FT_BLOCK * 256 * kPack;
  FT_THREADS {
    const i64 begin = first + thread * kPack;
    if (packed && begin + kPack <= n) {
      const i64 at = in_rows(begin, width, stride), to = in_rows(begin, width, g_stride);
      swiglu_backward_at<kPack>(gate + at, up + at, g + begin, g_gate + to, g_up + to);
    } else {
      for (i64 i = begin; i < n && i < begin + kPack; i++) {
        const i64 at = in_rows(i, width, stride), to = in_rows(i, width, g_stride);
        swiglu_backward_at<1>(gate + at, up + at, g + i, g_gate + to, g_up + to);
      }
    }
  }
}
