// Casts of an adapter's matrices, many at once: the trained factors are float32, the products have the model's format.

constexpr int kCasts = 64;  // of one launch: as many as fit into its arguments (4 KB)
constexpr int kCastNumbers = 1024;  // of one block

// `count` matrices. Matrix i has size[i] numbers in its result, contiguous, and ends before block end[i]. Column c of
// the result, of `to_width`, is column c - shift of the source, of `from_width`, or zero if the source has none.
struct Casts {
  const void* from[kCasts];
  void* to[kCasts];
  i64 size[kCasts];
  i64 end[kCasts];
  int from_width[kCasts], to_width[kCasts], shift[kCasts];
  float scale[kCasts];
  int count;
};

template <class From, class To>
FT_DEVICE void cast_block(const Casts& casts) {
  int i = 0;  // the first matrix that ends behind this block
  for (int last = casts.count - 1; i < last;) {
    const int middle = (i + last) / 2;
    if (FT_BLOCK < casts.end[middle]) last = middle; else i = middle + 1;
  }
  const i64 first = (FT_BLOCK - (i == 0 ? 0 : casts.end[i - 1])) * kCastNumbers, size = casts.size[i];
  const int from_width = casts.from_width[i], to_width = casts.to_width[i], shift = casts.shift[i];
  const From* from = static_cast<const From*>(casts.from[i]);
  To* to = static_cast<To*>(casts.to[i]);
  const float scale = casts.scale[i];
  FT_THREADS {
    for (i64 at = first + thread; at < size && at < first + kCastNumbers; at += 256) {
      const i64 row = at / to_width, column = at - row * to_width - shift;
      const bool there = column >= 0 && column < from_width;
      narrow(there ? widen(from[row * from_width + column]) * scale : 0.0f, to[at]);
    }
  }
}

// float32 -> the model's format, times each matrix's scale.
FT_KERNEL(256) narrow_all(Casts casts) { cast_block<float, Number>(casts); }

// The model's format -> float32, times each matrix's scale.
FT_KERNEL(256) widen_all(Casts casts) { cast_block<Number, float>(casts); }
