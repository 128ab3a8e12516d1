// Log-probabilities, hits and entropies from a chunk of logits (rows, V), and the gradient of the log-probability. A
// block computes one row: one pass for the sums, one more for the gradient.
//
// While logits are read, the sums are kept relative to the largest logit so far (Milakov and Gimelshein 2018, arXiv
// 1805.02867): total = sum exp(v), along = sum exp(v) v, v = (z - largest) / T.

constexpr int kHeadThreads = 1024;
constexpr float kLowest = -3.402823466e38f;

struct RowSums {
  float largest, total, along;
  i64 first;  // index of the first of the largest logits
};

FT_DEVICE RowSums no_logits() { return RowSums{kLowest, 0.0f, 0.0f, 0}; }

// Changes the logit that the sums are relative to.
FT_DEVICE void relate(RowSums& sums, float largest, float inverse) {
  const float shift = (sums.largest - largest) * inverse, factor = expf(shift);
  // Without logits the shift may be huge, and zero times infinity is not a number.
  sums.along = sums.total == 0.0f ? 0.0f : factor * (sums.along + sums.total * shift);
  sums.total *= factor;
  sums.largest = largest;
}

template <int N>
FT_DEVICE void add_logits(RowSums& sums, const Number* z, i64 index, float inverse) {
  float v[N], largest = sums.largest;
  load<N>(z + index, v);
  i64 first = sums.first;
  for (int i = 0; i < N; i++) {
    if (v[i] > largest) { largest = v[i]; first = index + i; }
  }
  if (largest > sums.largest) relate(sums, largest, inverse);
  sums.first = first;
  // If a logit is NaN or infinite, the total becomes NaN, and so do all results of the row.
  for (int i = 0; i < N; i++) {
    const float x = (v[i] - largest) * inverse, e = expf(x);
    sums.total += e;
    sums.along += e == 0.0f ? 0.0f : e * x;
  }
}

FT_DEVICE RowSums joined(RowSums a, RowSums b, float inverse) {
  const float largest = b.largest > a.largest ? b.largest : a.largest;
  const bool b_first = b.largest > a.largest || (b.largest == a.largest && b.first < a.first);
  const i64 first = b_first ? b.first : a.first;
  relate(a, largest, inverse);
  relate(b, largest, inverse);
  return RowSums{largest, a.total + b.total, a.along + b.along, first};
}

template <int N>
FT_DEVICE void gradient_of_logits(Number* z, i64 index, i64 target, float largest, float inverse, float scale) {
  float v[N];
  load<N>(z + index, v);
  for (int i = 0; i < N; i++) {
    v[i] = expf((v[i] - largest) * inverse) * scale;
    if (index + i == target) v[i] += inverse;
  }
  store<N>(z + index, v);
}

// logits (rows, V) and targets (rows) -> the log-probability of each target in softmax(logits / T), 1 where the target
// is the first of the largest logits, and the entropy if there is room for it. `inverse` is 1 / T. With `direction`
// the logits are overwritten by the gradient of the log-probability, (onehot(target) - softmax) / T. With `packed` V is
// a multiple of kPack and the address of the size of a pack. A target outside [0, V) gives NaN.
FT_KERNEL(1024) head(Number* logits, const i64* target, float* log_prob, float* hit, float* entropy, i64 vocabulary,
                     float inverse, int direction, int packed) {
  FT_SHARED(RowSums, each, kHeadThreads);
  FT_SHARED(RowSums, lanes, kLanes);
  FT_SHARED(float, result, 2);
  const i64 row = FT_BLOCK;
  Number* z = logits + row * vocabulary;
  FT_THREADS {
    RowSums sums = no_logits();
    if (packed) {
      for (i64 i = thread * kPack; i < vocabulary; i += kHeadThreads * kPack) add_logits<kPack>(sums, z, i, inverse);
    } else {
      for (i64 i = thread; i < vocabulary; i += kHeadThreads) add_logits<1>(sums, z, i, inverse);
    }
    each[thread] = sums;
  }
  FT_THREADS {
    if (thread < kLanes) {
      RowSums sums = each[thread];
      for (int i = thread + kLanes; i < kHeadThreads; i += kLanes) sums = joined(sums, each[i], inverse);
      lanes[thread] = sums;
    }
  }
  FT_THREADS {
    if (thread == 0) {
      RowSums sums = lanes[0];
      for (int lane = 1; lane < kLanes; lane++) sums = joined(sums, lanes[lane], inverse);
      const i64 at = target[row];
      const bool valid = at >= 0 && at < vocabulary;
      const float logarithm = logf(sums.total), nan = bits_to_float(0x7fc00000u);
      log_prob[row] = valid ? (widen(z[at]) - sums.largest) * inverse - logarithm : nan;
      hit[row] = sums.first == at ? 1.0f : 0.0f;
      if (entropy) entropy[row] = logarithm - sums.along / sums.total;
      result[0] = sums.largest;
      result[1] = valid ? sums.total : nan;
    }
  }
  if (!direction) return;
  FT_THREADS {
    const float largest = result[0], scale = -inverse / result[1];
    const i64 at = target[row];
    if (packed) {
      for (i64 i = thread * kPack; i < vocabulary; i += kHeadThreads * kPack) {
        gradient_of_logits<kPack>(z, i, at, largest, inverse, scale);
      }
    } else {
      for (i64 i = thread; i < vocabulary; i += kHeadThreads) {
        gradient_of_logits<1>(z, i, at, largest, inverse, scale);
      }
    }
  }
}
