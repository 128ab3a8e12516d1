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

// q (T, heads_q, E), k (T, heads_k, E), cos and sin (T, E/2), E = 2 half. Tokens begin stride_q and stride_k numbers
// apart. `turn` is 1, or -1 to turn back. The results may take the place of q and k. With `packed` half is a multiple
// of kPack and every token begins at a multiple of the size of a pack.
FT_KERNEL(256) rotate(const Number* q, const Number* k, Number* q_turned, Number* k_turned, const Number* cos,
                      const Number* sin, i64 stride_q, i64 stride_k, int heads_q, int heads_k, int half, float turn,
                      int packed) {
  const i64 token = FT_BLOCK, angle = token * half, at_q = token * stride_q, at_k = token * stride_k;
  FT_THREADS {
    if (packed) {
      rotate_heads<kPack>(q + at_q, q_turned + at_q, cos + angle, sin + angle, heads_q, half, turn, thread);
      rotate_heads<kPack>(k + at_k, k_turned + at_k, cos + angle, sin + angle, heads_k, half, turn, thread);
    } else {
      rotate_heads<1>(q + at_q, q_turned + at_q, cos + angle, sin + angle, heads_q, half, turn, thread);
      rotate_heads<1>(k + at_k, k_turned + at_k, cos + angle, sin + angle, heads_k, half, turn, thread);
    }
  }
}
