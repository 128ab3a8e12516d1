// Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467) of rows of `width` numbers:
// y = x / sqrt(mean(x^2) + eps) w. A block computes one row. The rows of y and its gradient are contiguous; those of the other
// tensors begin `stride` numbers apart.

// Leaves in sums[0..kLanes) the sums over the block's 256 numbers `each`.
FT_DEVICE void fold(const float* each, float* sums) {
  FT_THREADS {
    if (thread < kLanes) {
      float sum = 0;
      for (int i = thread; i < 256; i += kLanes) sum += each[i];
      sums[thread] = sum;
    }
  }
}

// A low-rank update low B^T of a row: low (rank) and B (width, rank), contiguous. With `packed` rank is a multiple of kPack and both
// addresses of the size of a pack. Without an update low is null.
struct RowUpdate { const Number *low, *b; int rank, packed; };

// Adds an update to N columns of its row, from `at` on. M of its numbers are read at once.
template <int N, int M>
FT_DEVICE void add_update(const RowUpdate& update, i64 at, float (&to)[N]) {
  for (int first = 0; first < update.rank; first += M) {
    float low[M], b[M];
    load<M>(update.low + first, low);
    for (int i = 0; i < N; i++) {
      load<M>(update.b + (at + i) * update.rank + first, b);
      for (int m = 0; m < M; m++) to[i] += low[m] * b[m];
    }
  }
}

// Adds the residual and its update to the N numbers of x at `at`, if there is one, as `sum`; returns the sum of their squares.
template <int N>
FT_DEVICE float squares(const Number* x, const Number* residual, const RowUpdate& update, Number* sum, i64 at) {
  float a[N], total = 0;
  load<N>(x + at, a);
  if (residual) {
    float b[N];
    load<N>(residual + at, b);
    if (update.low && update.packed) {
      add_update<N, kPack>(update, at, b);
    } else if (update.low) {
      add_update<N, 1>(update, at, b);
    }
    for (int i = 0; i < N; i++) a[i] = rounded(a[i] + b[i]);
    store<N>(sum + at, a);
  }
  for (int i = 0; i < N; i++) total += a[i] * a[i];
  return total;
}

template <int N>
FT_DEVICE void normalise(const Number* x, const Number* w, Number* y, float inverse, i64 at) {
  float a[N], b[N];
  load<N>(x + at, a);
  load<N>(w + at, b);
  for (int i = 0; i < N; i++) a[i] = rounded(a[i] * inverse) * b[i];
  store<N>(y + at, a);
}

// Normalises x, or with a `residual` the rounded sum x + residual + low B^T, which is stored in `sum`; that may be `residual` itself.
// Without `low` (rows, rank) there is no update, without `w` only the sum is computed. `inverse` (rows) gets the reciprocal root mean
// square of each row. With `packed` width and strides are multiples of kPack and every address of the size of a pack; `packed_update`
// says so of low and B.
FT_KERNEL(256) rms_norm(const Number* x, const Number* residual, const Number* low, const Number* b, const Number* w,
                        Number* sum, Number* y, float* inverse, i64 width, i64 x_stride, i64 residual_stride,
                        i64 sum_stride, i64 low_stride, int rank, float eps, int packed, int packed_update) {
  FT_SHARED(float, each, 256);
  FT_SHARED(float, sums, kLanes);
  x += FT_BLOCK * x_stride;
  y += FT_BLOCK * width;
  if (residual) {
    residual += FT_BLOCK * residual_stride;
    sum += FT_BLOCK * sum_stride;
  }
  const RowUpdate update = {low ? low + FT_BLOCK * low_stride : low, b, rank, packed_update};
  FT_THREADS {
    float total = 0;
    if (packed) {
      for (i64 i = thread * kPack; i < width; i += 256 * kPack) total += squares<kPack>(x, residual, update, sum, i);
    } else {
      for (i64 i = thread; i < width; i += 256) total += squares<1>(x, residual, update, sum, i);
    }
    each[thread] = total;
  }
  if (!w) return;
  fold(each, sums);
  const Number* normal = residual ? sum : x;
  FT_THREADS {
    const float scale = 1.0f / sqrtf(sum_of_lanes(sums) / float(width) + eps);
    if (thread == 0) inverse[FT_BLOCK] = scale;
    if (packed) {
      for (i64 i = thread * kPack; i < width; i += 256 * kPack) normalise<kPack>(normal, w, y, scale, i);
    } else {
      for (i64 i = thread; i < width; i += 256) normalise<1>(normal, w, y, scale, i);
    }
  }
}

template <int N>
FT_DEVICE float along_row(const Number* x, const Number* w, const Number* g, i64 at) {
  float a[N], b[N], d[N], total = 0;
  load<N>(x + at, a);
  load<N>(w + at, b);
  load<N>(g + at, d);
  for (int i = 0; i < N; i++) total += d[i] * b[i] * a[i];
  return total;
}

template <int N>
FT_DEVICE void gradient_of_row(const Number* x, const Number* w, const Number* g, const Number* residual, Number* g_x,
                               float back, float inverse, i64 at) {
  float a[N], b[N], d[N];
  load<N>(x + at, a);
  load<N>(w + at, b);
  load<N>(g + at, d);
  for (int i = 0; i < N; i++) a[i] = (d[i] * b[i] - a[i] * back) * inverse;
  if (residual) {
    load<N>(residual + at, b);
    for (int i = 0; i < N; i++) a[i] += b[i];
  }
  store<N>(g_x + at, a);
}

// The gradient of x, given the gradient g of y, plus `g_residual` if there is one.
FT_KERNEL(256) rms_norm_backward(const Number* x, const Number* w, const float* inverse, const Number* g,
                                 const Number* g_residual, Number* g_x, i64 width, i64 x_stride, i64 residual_stride,
                                 i64 g_x_stride, int packed) {
  FT_SHARED(float, each, 256);
  FT_SHARED(float, sums, kLanes);
  x += FT_BLOCK * x_stride;
  g += FT_BLOCK * width;
  g_x += FT_BLOCK * g_x_stride;
  if (g_residual) g_residual += FT_BLOCK * residual_stride;
  FT_THREADS {
    float total = 0;
    if (packed) {
      for (i64 i = thread * kPack; i < width; i += 256 * kPack) total += along_row<kPack>(x, w, g, i);
    } else {
      for (i64 i = thread; i < width; i += 256) total += along_row<1>(x, w, g, i);
    }
    each[thread] = total;
  }
  fold(each, sums);
  FT_THREADS {
    const float scale = inverse[FT_BLOCK];
    // The factor on x in (g w . n) n / width, where n = x scale.
    const float back = sum_of_lanes(sums) * scale * scale / float(width);
    if (packed) {
      for (i64 i = thread * kPack; i < width; i += 256 * kPack) {
        gradient_of_row<kPack>(x, w, g, g_residual, g_x, back, scale, i);
      }
    } else {
      for (i64 i = thread; i < width; i += 256) gradient_of_row<1>(x, w, g, g_residual, g_x, back, scale, i);
    }
  }
}

// Sums of the weight's gradient g x inverse over parts of the rows: parts (ceil(rows / rows_each), width) float32. A
// block computes 256 columns of one part.
FT_KERNEL(256) rms_norm_weight(const Number* x, const float* inverse, const Number* g, float* parts, i64 rows,
                               i64 width, i64 x_stride, i64 rows_each) {
  const i64 strips = (width + 255) / 256, part = FT_BLOCK / strips, strip = FT_BLOCK % strips;
  const i64 begin = part * rows_each, end = begin + rows_each < rows ? begin + rows_each : rows;
  FT_THREADS {
    const i64 column = strip * 256 + thread;
    if (column < width) {
      float total = 0;
      for (i64 row = begin; row < end; row++) {
        total += widen(g[row * width + column]) * widen(x[row * x_stride + column]) * inverse[row];
      }
      parts[part * width + column] = total;
    }
  }
}
