// SwiGLU (Shazeer 2020, arXiv 2002.05202): y = silu(gate) up, elementwise over n numbers.

FT_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int N>
FT_DEVICE void swiglu_at(const Number* gate, const Number* up, Number* y) {
  float a[N], b[N];
  load<N>(gate, a);
  load<N>(up, b);
  for (int i = 0; i < N; i++) a[i] = a[i] * sigmoid(a[i]) * b[i];
  store<N>(y, a);
}

// With `packed` every address is a multiple of the size of a pack. A thread computes kPack numbers.
FT_KERNEL(256) swiglu(const Number* gate, const Number* up, Number* y, i64 n, int packed) {
  const i64 first = FT_BLOCK * 256 * kPack;
  FT_THREADS {
    const i64 at = first + thread * kPack;
    if (packed && at + kPack <= n) {
      swiglu_at<kPack>(gate + at, up + at, y + at);
    } else {
      for (i64 i = at; i < n && i < at + kPack; i++) swiglu_at<1>(gate + i, up + i, y + i);
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

// The gradients of gate and up, given the gradient g of y.
FT_KERNEL(256) swiglu_backward(const Number* gate, const Number* up, const Number* g, Number* g_gate, Number* g_up,
                               i64 n, int packed) {
  const i64 first = FT_BLOCK * 256 * kPack;
  FT_THREADS {
    const i64 at = first + thread * kPack;
    if (packed && at + kPack <= n) {
      swiglu_backward_at<kPack>(gate + at, up + at, g + at, g_gate + at, g_up + at);
    } else {
      for (i64 i = at; i < n && i < at + kPack; i++) {
        swiglu_backward_at<1>(gate + i, up + i, g + i, g_gate + i, g_up + i);
      }
    }
  }
}
