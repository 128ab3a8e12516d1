// Rotary position embedding (Su et al. 2021, arXiv 2104.09864): turns the pairs (i, i + E/2) of each head by the angle
// of its token. A block computes one token of queries and keys.

template <int N>
FT_DEVICE void rotate_at(const Number* from, Number* to, const Number* cos, const Number* sin, int half, float turn) {
  float a[N], b[N], c[N], s[N], first[N], second[N];
  load<N>(from, a);
  load<N>(from + half, b);
  load<N>(cos, c);
  load<N>(sin, s);
  for (int i = 0; i < N; i++) {
    first[i] = a[i] * c[i] - b[i] * (turn * s[i]);
    second[i] = b[i] * c[i] + a[i] * (turn * s[i]);
  }
  store<N>(to, first);
  store<N>(to + half, second);
}

template <int N>
FT_DEVICE void rotate_heads(const Number* from, Number* to, const Number* cos, const Number* sin, int heads, int half,
                            float turn, int thread) {
  const int pieces = half / N;
  for (int i = thread; i < heads * pieces; i += 256) {
    const int at = i / pieces * 2 * half + i % pieces * N, angle = i % pieces * N;
    rotate_at<N>(from + at, to + at, cos + angle, sin + angle, half, turn);
  }
}

// Copies `count` numbers; with N > 1 a multiple of N.
template <int N>
FT_DEVICE void copy_numbers(const Number* from, Number* to, int count, int thread) {
  for (int i = thread * N; i < count; i += 256 * N) {
    float v[N];
    load<N>(from + i, v);
    store<N>(to + i, v);
  }
}

// q (T, heads_q, E), k and v (T, heads_k, E), cos and sin (T, E/2), E = 2 half. Tokens begin stride_q, stride_k and stride_v
// numbers apart, those of the results stride_q_turned and so on. `turn` is 1, or -1 to turn back. The results may take the
// place of q and k. v is only copied; with null it is not. With `packed` half is a multiple of kPack and every token begins
// at a multiple of the size of a pack.
FT_KERNEL(256) rotate(const Number* q, const Number* k, const Number* v, Number* q_turned, Number* k_turned,
                      Number* v_copied, const Number* cos, const Number* sin, i64 stride_q, i64 stride_k, i64 stride_v,
                      i64 stride_q_turned, i64 stride_k_turned, i64 stride_v_copied, int heads_q, int heads_k, int half,
                      float turn, int packed) {
  const i64 token = FT_BLOCK, angle = token * half;
  q += token * stride_q, q_turned += token * stride_q_turned;
  k += token * stride_k, k_turned += token * stride_k_turned;
  if (v) v += token * stride_v, v_copied += token * stride_v_copied;
  FT_THREADS {
    const Number *c = cos + angle, *s = sin + angle;
    if (packed) {
      rotate_heads<kPack>(q, q_turned, c, s, heads_q, half, turn, thread);
      rotate_heads<kPack>(k, k_turned, c, s, heads_k, half, turn, thread);
      if (v) copy_numbers<kPack>(v, v_copied, heads_k * 2 * half, thread);
    } else {
      rotate_heads<1>(q, q_turned, c, s, heads_q, half, turn, thread);
      rotate_heads<1>(k, k_turned, c, s, heads_k, half, turn, thread);
      if (v) copy_numbers<1>(v, v_copied, heads_k * 2 * half, thread);
    }
  }
}
