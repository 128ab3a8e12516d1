// Matrix products and attention of decoding steps, on raw memory: few rows times large weights, which are read once
// and in place. Compiled once per instruction set (FT_ISA is part of the symbols' names, FT_BYTES is the vector width
// in bytes: columns of isa.h); decode.cpp chooses the build.
//
// Invariant: a row's result depends on that row alone. Each output is a sum over k in the same order, whatever the
// number of rows, so an answer does not change with its batch; and bfloat16 weights give the same bits as a float32
// copy.
//
// No headers of libtorch here: their inline functions would be compiled for instructions that some processors lack,
// and the linker might use these copies everywhere.
#include "numbers.h"
#include "dequantise.h"

#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, FT_ISA)

namespace {

typedef float vf __attribute__((vector_size(FT_BYTES)));
typedef int32_t vi __attribute__((vector_size(FT_BYTES)));
typedef uint32_t vu __attribute__((vector_size(FT_BYTES)));
typedef uint16_t vh __attribute__((vector_size(FT_BYTES / 2)));
constexpr int W = FT_BYTES / 4;
// Rows of x that are multiplied while a weight is in a register. Together with four rows of w this takes 24 of
// AVX-512's 32 registers for running sums, and 12 of 16 elsewhere.
constexpr int C = FT_BYTES == 64 ? 6 : 3;
// How far ahead, in bytes, weights are prefetched: for one row of x, and for several, which spend more time on each
// weight.
constexpr int64_t kAheadOfOne = 1 << 10, kAhead = 4 << 10;

inline vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
// Zero-extends 16-bit numbers, by one instruction if there is one: GCC 12 makes five of the general form for AVX2.
inline vu widened_bits(vh h) {
#if FT_BYTES == 32 && defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#elif FT_BYTES == 64
  return (vu)_mm512_cvtepu16_epi32((__m256i)h);
#else
  return __builtin_convertvector(h, vu);
#endif
}
inline vf load(const uint16_t* p) { vh h; memcpy(&h, p, sizeof h); return (vf)(widened_bits(h) << 16); }
inline float wide(float x) { return x; }
inline float wide(uint16_t x) { return from_bf16(x); }
inline void put(float* p, float x) { *p = x; }
inline void put(uint16_t* p, float x) { *p = to_bf16(x); }
// Returns the sum of a vector's numbers; one half of the lanes is added to the other, repeatedly.
inline float total(vf v) {
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  for (int width = W / 2; width > 0; width /= 2) v += __builtin_shuffle(v, lane ^ width);
  return v[0];
}

// Adds to each number the one `width` lanes away. Result lanes without the bit `width` are taken from a, the others
// from b.
template <int width>
inline vf fold(vf a, vf b) {
  vi own, other;
  for (int i = 0; i < W; i++) own[i] = i & width ? i + W : i, other[i] = own[i] ^ width;
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}
// Returns the totals of n vectors, n a power of two up to W: that of vector i in lane i * W / n. Does the same
// additions as `total`, for several vectors at a time.
template <int n, int width = W / 2>
inline vf totals(const vf* v) {
  if constexpr (n > 1) {
    vf some[n / 2];
    for (int i = 0; i < n / 2; i++) some[i] = fold<width>(v[i], v[i + n / 2]);
    return totals<n / 2, width / 2>(some);
  } else {
    vf sum = v[0];
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    for (int far = width; far > 0; far /= 2) sum += __builtin_shuffle(sum, lane ^ far);
    return sum;
  }
}
// Writes the totals of any number of vectors to s[i].
template <int n>
inline void all_totals(const vf* v, float* s) {
  if constexpr (n > 0) {
    constexpr int some = n >= W ? W : n >= 8 && W > 8 ? 8 : n >= 4 && W > 4 ? 4 : n >= 2 ? 2 : 1;
    vf t = totals<some>(v);
    if constexpr (some == W) memcpy(s, &t, sizeof t);
    else for (int i = 0; i < some; i++) s[i] = t[i * W / some];
    all_totals<n - some>(v + some, s + some);
  }
}

// How a chunk of k is loaded, multiplied and added to W running sums; the last chunk may be short. T is the type of
// weights in memory, X that of x: bfloat16 is converted to float32 when it is loaded, which is exact.
template <class T, class X> struct Plain {
  typedef vf In;
  static constexpr int step = W;
  template <class A> static inline In get(const A* p) { return load(p); }
  template <class A> static inline In get(const A* p, int64_t some) {
    A chunk[W] = {};
    memcpy(chunk, p, some * sizeof(A));
    return load(chunk);
  }
  static inline void add(vf& sum, In a, In b) { sum += a * b; }
};
#ifdef __AVX512BF16__
struct Pairs {
  typedef __m512bh In;
  static constexpr int step = 32;
  static inline In get(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static inline In get(const uint16_t* p, int64_t some) {
    return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32)((1u << some) - 1), p);
  }
  static inline void add(vf& sum, In a, In b) { sum = (vf)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
template <class T, class X> struct Best : Plain<T, X> {};
template <> struct Best<uint16_t, uint16_t> : Pairs {};
#else
template <class T, class X> struct Best : Plain<T, X> {};
#endif

// How a sum becomes a result: times `scale`, plus `bias` for each row of w, plus the present value of the output if
// `onto`.
struct Finish {
  const float* bias;
  float scale;
  bool onto;
};

// Rows of w that are multiplied at the same time are far apart in memory, so that each thread reads a few long
// streams, for which hardware prefetchers are made. Four neighbouring rows would be four streams of one row's length
// each: on Zen 4 these reach 65 to 85 % of the memory's rate, distant rows 90 to 100 %.
struct Streams {
  int64_t w;    // numbers from one of these rows to the next
  int64_t out;  // numbers from one of their results to the next
  // Bytes by which each stream is prefetched ahead of its use, and by how much the prefetch advances with each line
  // of 64 bytes that is used: if a row is read several times, each pass prefetches a part. Prefetches go to the
  // second-level cache, because a line on its way to the first level occupies one of its few miss buffers until it
  // arrives from memory.
  int64_t ahead, pace;
};

// Multiplies r rows of w with c rows of x, k numbers each: out[i * ld + j * far.out] for row i of x and row j of w.
// With `keep`, the rows of w, converted to float32, are left in `room`, one after the other.
template <class T, class X, class O, int r, int c, bool keep = false>
inline void tile(const T* w, const X* x, int64_t k, Streams far, Finish end, O* out, int64_t ld, float* room = nullptr) {
  typedef Best<T, X> B;
  vf sum[c * r] = {};
  const char* next = (const char*)w + far.ahead;
  int64_t at = 0;
  for (; at + B::step <= k; at += B::step) {
    if (at * sizeof(T) % 64 == 0 && far.pace) {
      for (int j = 0; j < r; j++) __builtin_prefetch(next + j * far.w * sizeof(T), 0, 2);
      next += far.pace;
    }
    typename B::In b[c];
    for (int i = 0; i < c; i++) b[i] = B::get(x + i * k + at);
    for (int j = 0; j < r; j++) {
      auto a = B::get(w + j * far.w + at);
      if constexpr (keep) memcpy(room + j * k + at, &a, sizeof a);
      for (int i = 0; i < c; i++) B::add(sum[i * r + j], a, b[i]);
    }
  }
  if (at < k) {  // the rest; k may even be shorter than one chunk, as a LoRA rank is
    typename B::In b[c];
    for (int i = 0; i < c; i++) b[i] = B::get(x + i * k + at, k - at);
    for (int j = 0; j < r; j++) {
      auto a = B::get(w + j * far.w + at, k - at);
      if constexpr (keep) memcpy(room + j * k + at, &a, (k - at) * sizeof(float));
      for (int i = 0; i < c; i++) B::add(sum[i * r + j], a, b[i]);
    }
  }
  float s[c * r];
  all_totals<c * r>(sum, s);
  for (int i = 0; i < c; i++)
    for (int j = 0; j < r; j++) {
      O* to = out + i * ld + j * far.out;
      put(to, s[i * r + j] * end.scale + (end.bias ? end.bias[j * far.out] : 0.0f) + (end.onto ? wide(*to) : 0.0f));
    }
}

// Multiplies r rows of w with all rows of x, C at a time. If fewer than C rows would be left, they are joined with
// the tile before and split evenly, because a tile of a single row has too few running sums to keep the multipliers
// busy.
template <class T, class X, class O, int r>
inline void strip(const T* w, const X* x, int64_t rows, int64_t k, Streams far, Finish end, O* out, int64_t ld) {
  int64_t visits = (rows + C - 1) / C;
  far.pace /= visits;
  for (int64_t i = 0; i < rows;) {
    int64_t left = rows - i, c = left >= 2 * C || left <= C ? (left < C ? left : C) : (left + 1) / 2;
    const X* from = x + i * k;
    O* to = out + i * ld;
    switch (c) {
      case 1: tile<T, X, O, r, 1>(w, from, k, far, end, to, ld); break;
      case 2: tile<T, X, O, r, 2>(w, from, k, far, end, to, ld); break;
      case 3: tile<T, X, O, r, 3>(w, from, k, far, end, to, ld); break;
#if FT_BYTES == 64
      case 4: tile<T, X, O, r, 4>(w, from, k, far, end, to, ld); break;
      case 5: tile<T, X, O, r, 5>(w, from, k, far, end, to, ld); break;
      case 6: tile<T, X, O, r, 6>(w, from, k, far, end, to, ld); break;
#endif
    }
    i += c;
    far.ahead += k * sizeof(T) / visits;
  }
}

// Does the same as `strip` for bfloat16 w and float32 x with more rows than one tile has: the first tile leaves the
// rows of w, converted to float32, in `room` (r rows) for the other tiles.
template <class O, int r>
inline void widened(const uint16_t* w, const float* x, int64_t rows, int64_t k, Streams far, Finish end, float* room, O* out,
                    int64_t ld) {
  int64_t c = rows < 2 * C ? (rows + 1) / 2 : C;
  switch (c) {
    case 2: tile<uint16_t, float, O, r, 2, true>(w, x, k, far, end, out, ld, room); break;
    case 3: tile<uint16_t, float, O, r, 3, true>(w, x, k, far, end, out, ld, room); break;
#if FT_BYTES == 64
    case 4: tile<uint16_t, float, O, r, 4, true>(w, x, k, far, end, out, ld, room); break;
    case 5: tile<uint16_t, float, O, r, 5, true>(w, x, k, far, end, out, ld, room); break;
    case 6: tile<uint16_t, float, O, r, 6, true>(w, x, k, far, end, out, ld, room); break;
#endif
  }
  strip<float, float, O, r>(room, x + c * k, rows - c, k, {k, far.out, 0, 0}, end, out + c * ld, ld);
}

// Multiplies rows [from, to) of w (n, k), r at a time, with x (rows, k): out (rows, ld). `room` is memory for r rows
// of float32 if w is bfloat16, x float32 and rows > C; otherwise it may be null.
template <class T, class X, class O, int r>
inline void strips(const T* w, const X* x, int64_t rows, int64_t k, int64_t from, int64_t to, Finish end, float* room,
                   O* out, int64_t ld) {
  constexpr int64_t block = 64;  // rows of x that stay in the cache while all weights are read
  int64_t apart = (to - from) / r;
  Streams far{apart * k, apart, rows == 1 ? kAheadOfOne : kAhead, 64};
  for (int64_t m = 0; m < rows; m += block) {
    int64_t some = rows - m < block ? rows - m : block;
    auto part = [&](int64_t j) { return Finish{end.bias ? end.bias + j : nullptr, end.scale, end.onto}; };
    for (int64_t j = from; j < from + apart; j++) {
      if constexpr (sizeof(T) < sizeof(X)) {
        if (some > C) {
          widened<O, r>(w + j * k, x + m * k, some, k, far, part(j), room, out + m * ld + j, ld);
          continue;
        }
      }
      strip<T, X, O, r>(w + j * k, x + m * k, some, k, far, part(j), out + m * ld + j, ld);
    }
    for (int64_t j = from + r * apart; j < to; j++)
      strip<T, X, O, 1>(w + j * k, x + m * k, some, k, {0, 0, 0, 0}, part(j), out + m * ld + j, ld);
  }
}

template <class T, class X, class O>
void product(const T* w, const X* x, int64_t rows, int64_t k, int64_t from, int64_t to, Finish end, float* room, O* out,
             int64_t ld) {
  strips<T, X, O, 4>(w, x, rows, k, from, to, end, room, out, ld);
}

#ifdef __AMX_BF16__
// AMX multiplies a tile of 16 rows of w, as they are in memory, with a tile of up to 16 rows of x whose pairs of
// numbers are in columns: 16 x 16 sums of 32 products each in one instruction. One row of x takes as long as 16, and
// reading the weights from memory takes longer than either, so AMX is used for every number of rows.
constexpr int64_t kTile = 16, kDepth = 32;  // rows of a tile, and numbers of each

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};
// Tiles 0 to 3 are sums, for two blocks of rows of w times two of x; 4 and 5 are blocks of w; 6 and 7 are blocks of
// x, which have `columns` rows of x as their columns.
inline void shape_tiles(int64_t columns) {
  TileShapes shapes;
  for (int t = 0; t < 8; t++) {
    shapes.rows[t] = kTile;
    shapes.bytes[t] = t == 4 || t == 5 ? kDepth * 2 : columns * 4;
  }
  _tile_loadconfig(&shapes);
}

// Writes rows [0, rows) of x (rows, k), at most 16, as tiles. The tile for each 32 numbers has 16 rows; each has one
// pair of numbers for each of `columns` rows of x, zeros beyond k and beyond `rows`.
inline void columns_of(const uint16_t* x, int64_t rows, int64_t k, int64_t columns, uint32_t* tiles) {
  int64_t pairs = (k + kDepth - 1) / kDepth * kTile;
  for (int64_t i = 0; i < columns; i++) {
    const uint16_t* from = x + i * k;
    for (int64_t p = 0; p < pairs; p++) {
      uint32_t pair = 0;
      if (i < rows && 2 * p + 1 < k) memcpy(&pair, from + 2 * p, 4);
      else if (i < rows && 2 * p < k) pair = from[2 * p];
      tiles[p * columns + i] = pair;
    }
  }
}

// Writes the results of sums s[j * columns + i], of row j of w and row i of x, to out[i * ld + j].
template <class O>
inline void finish(const float* s, int64_t columns, int64_t count, int64_t rows, Finish end, O* out, int64_t ld) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < count; j++)
      put(out + i * ld + j, s[j * columns + i] * end.scale + (end.bias ? end.bias[j] : 0.0f) +
                                (end.onto ? wide(out[i * ld + j]) : 0.0f));
}

// Does the same as `product`, by AMX. Each sum runs over k in the same order, whatever the other rows are. `tiles` is
// memory for x as `columns_of` arranges it.
template <class O>
void tiled(const uint16_t* w, const uint16_t* x, int64_t rows, int64_t k, int64_t from, int64_t to, Finish end,
           uint32_t* tiles, O* out, int64_t ld) {
  int64_t columns = rows < kTile ? rows : kTile, chunks = (k + kDepth - 1) / kDepth, whole = k / kDepth;
  int64_t blocks = (rows + kTile - 1) / kTile, tile = kTile * columns;
  for (int64_t b = 0; b < blocks; b++) {
    int64_t some = rows - b * kTile < kTile ? rows - b * kTile : kTile;
    columns_of(x + b * kTile * k, some, k, columns, tiles + b * chunks * tile);
  }
  shape_tiles(columns);
  alignas(64) uint16_t edge[2][kTile * kDepth];
  alignas(64) float sums[4][kTile * kTile];
  for (int64_t j = from; j < to; j += 2 * kTile) {
    const uint16_t* rows_of_w = w + j * k;
    int64_t count[2] = {to - j < kTile ? to - j : kTile, to - j - kTile < kTile ? to - j - kTile : kTile};
    bool second = count[1] > 0;
    for (int64_t b = 0; b < blocks; b += 2) {
      bool more = b + 1 < blocks;
      // Later rows of w are prefetched in the order of memory, while these rows are read for the first time.
      auto* later = (const char*)(rows_of_w + 2 * kTile * k);
      int64_t bytes = b == 0 && j + 4 * kTile <= to ? 2 * kTile * kDepth * 2 : 0;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const uint32_t* here = tiles + b * chunks * tile;
      const uint32_t* there = here + chunks * tile;
      auto load_w = [&](int64_t c, int half) -> const uint16_t* {
        const uint16_t* at = rows_of_w + half * kTile * k + c * kDepth;
        if (c < whole && count[half] == kTile) return at;
        int64_t some = c < whole ? kDepth : k - c * kDepth;
        memset(edge[half], 0, sizeof edge[half]);
        for (int64_t r = 0; r < count[half]; r++) memcpy(edge[half] + r * kDepth, at + r * k, some * 2);
        return nullptr;
      };
      for (int64_t c = 0; c < chunks; c++) {
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(later + line, 0, 2);
        later += bytes;
        if (auto* at = load_w(c, 0)) {
          _tile_loadd(4, at, k * 2);
        } else {
          _tile_loadd(4, edge[0], kDepth * 2);
        }
        _tile_loadd(6, here + c * tile, columns * 4);
        _tile_dpbf16ps(0, 4, 6);
        if (more) {
          _tile_loadd(7, there + c * tile, columns * 4);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (!second) continue;
        if (auto* at = load_w(c, 1)) {
          _tile_loadd(5, at, k * 2);
        } else {
          _tile_loadd(5, edge[1], kDepth * 2);
        }
        _tile_dpbf16ps(2, 5, 6);
        if (more) {
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, sums[0], columns * 4);
      _tile_stored(1, sums[1], columns * 4);
      _tile_stored(2, sums[2], columns * 4);
      _tile_stored(3, sums[3], columns * 4);
      for (int half = 0; half < 1 + second; half++)
        for (int64_t side = 0; side < 1 + more; side++) {
          int64_t row = (b + side) * kTile, at = j + half * kTile;
          Finish part{end.bias ? end.bias + at : nullptr, end.scale, end.onto};
          finish(sums[2 * half + side], columns, count[half], rows - row < kTile ? rows - row : kTile, part,
                 out + row * ld + at, ld);
        }
    }
  }
  _tile_release();
}
#endif

// Numbers of a quantised weight that are dequantised at a time: few enough to stay in the first-level cache.
constexpr int64_t kPanel = 6 << 10;
// Returns how many rows of k numbers are dequantised at a time; a multiple of the rows that are multiplied together.
inline int64_t panel_rows(int64_t k) {
#ifdef __AMX_BF16__
  constexpr int64_t unit = 2 * kTile;
#else
  constexpr int64_t unit = 4;
#endif
  int64_t rows = kPanel / k / unit * unit;
  return rows < unit ? unit : rows;
}

// Returns the number of the group, among those of all rows, that block `block` of row `row` is in.
inline int64_t group_of(const FtQuantised& w, int64_t row, int64_t block) {
  return row * groups_of(w) + block * kBlock / w.group;
}

// What is multiplied: float32; float32 that stands for bfloat16 (`round`); pairs of bfloat16. FourBits, Groups and Int8
// return numbers of a block, whose codes begin at `codes`, and have so many of them in a byte.
template <bool round> struct InFloats : Plain<float, float> {
  typedef float X;
  struct FourBits {
    static constexpr int64_t a_byte = 2;
    const Quantised::Scaled<round> table;
    inline FourBits(const FtQuantised& w, int64_t row, int64_t block)
        : table(w.values, block_scale(w, row * (w.columns / kBlock) + block)) {}
    inline FourBits(const float* values, float scale) : table(values, scale) {}
    inline vf get(const uint8_t* codes, int64_t i) const { return table.get(codes + i / 2); }
  };
  struct Groups : FourBits {
    inline Groups(const FtQuantised& w, int64_t row, int64_t block)
        : FourBits(less_zero(w.zeros[group_of(w, row, block)]), w.scales[group_of(w, row, block)]) {}
  };
  struct Int8 {
    static constexpr int64_t a_byte = 1;
    const float scale;
    inline Int8(const FtQuantised& w, int64_t row, int64_t) : scale(w.scales[row]) {}
    inline vf get(const uint8_t* codes, int64_t i) const {
      vf v = Quantised::widened(codes + i) * scale * kInt8Step;
      return round ? Quantised::as_bf16(v) : v;
    }
  };
};
#ifdef __AVX512BF16__
struct InPairs : Pairs {
  typedef uint16_t X;
  struct FourBits {
    static constexpr int64_t a_byte = 2;
    const Quantised::ScaledHalves table;
    inline FourBits(const FtQuantised& w, int64_t row, int64_t block)
        : table(w.values, block_scale(w, row * (w.columns / kBlock) + block)) {}
    inline FourBits(const float* values, float scale) : table(values, scale) {}
    inline In get(const uint8_t* codes, int64_t i) const { return (In)table.get(codes + i / 2); }
  };
  struct Groups : FourBits {
    inline Groups(const FtQuantised& w, int64_t row, int64_t block)
        : FourBits(less_zero(w.zeros[group_of(w, row, block)]), w.scales[group_of(w, row, block)]) {}
  };
  struct Int8 {
    static constexpr int64_t a_byte = 1;
    const float scale;
    inline Int8(const FtQuantised& w, int64_t row, int64_t) : scale(w.scales[row]) {}
    inline In get(const uint8_t* codes, int64_t i) const {
      __m256i low = Quantised::upper_halves(Quantised::widened(codes + i) * scale * kInt8Step);
      __m256i high = Quantised::upper_halves(Quantised::widened(codes + i + W) * scale * kInt8Step);
      return (In)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
  };
};
#endif

// Does the same as `tile` for four rows of a quantised weight, `row` and those `apart` from it, and c rows of x. Rows are
// whole blocks.
template <class Arithmetic, class Numbers, class O, int c>
inline void quantised_tile(const FtQuantised& w, int64_t row, int64_t apart, const typename Arithmetic::X* x, Finish end,
                           O* out, int64_t ld) {
  constexpr int r = 4;
  const int64_t k = w.columns;
  const uint8_t* codes[r];
  constexpr int64_t a_byte = Numbers::a_byte;
  for (int j = 0; j < r; j++) codes[j] = w.codes + (row + j * apart) * k / a_byte;
  vf sum[c * r] = {};
  for (int64_t block = 0; block < k / kBlock; block++) {
    for (int j = 0; j < r; j++) {
      const Numbers numbers(w, row + j * apart, block);
      const uint8_t* here = codes[j] + block * kBlock / a_byte;
      for (int64_t i = 0; i < kBlock; i += Arithmetic::step) {
        auto a = numbers.get(here, i);
        for (int m = 0; m < c; m++)
          Arithmetic::add(sum[m * r + j], a, Arithmetic::get(x + m * k + block * kBlock + i));
      }
    }
  }
  float s[c * r];
  all_totals<c * r>(sum, s);
  for (int m = 0; m < c; m++)
    for (int j = 0; j < r; j++) {
      O* to = out + m * ld + j * apart;
      put(to, s[m * r + j] * end.scale + (end.bias ? end.bias[j * apart] : 0.0f) + (end.onto ? wide(*to) : 0.0f));
    }
}

// Multiplies rows [from, to) of a quantised weight whose rows are whole blocks with up to C rows of x, four rows of the
// weight at a time. Returns the first of the up to three rows that are left.
template <class Arithmetic, class Numbers, class O>
inline int64_t quantised_strips(const FtQuantised& w, const typename Arithmetic::X* x, int64_t rows, int64_t from,
                                int64_t to, Finish end, O* out, int64_t ld) {
  const int64_t apart = (to - from) / 4;
  for (int64_t j = from; j < from + apart; j++) {
    Finish part{end.bias ? end.bias + j : nullptr, end.scale, end.onto};
    switch (rows) {
      case 1: quantised_tile<Arithmetic, Numbers, O, 1>(w, j, apart, x, part, out + j, ld); break;
      case 2: quantised_tile<Arithmetic, Numbers, O, 2>(w, j, apart, x, part, out + j, ld); break;
      case 3: quantised_tile<Arithmetic, Numbers, O, 3>(w, j, apart, x, part, out + j, ld); break;
#if FT_BYTES == 64
      case 4: quantised_tile<Arithmetic, Numbers, O, 4>(w, j, apart, x, part, out + j, ld); break;
      case 5: quantised_tile<Arithmetic, Numbers, O, 5>(w, j, apart, x, part, out + j, ld); break;
      case 6: quantised_tile<Arithmetic, Numbers, O, 6>(w, j, apart, x, part, out + j, ld); break;
#endif
    }
  }
  return from + 4 * apart;
}

// Multiplies rows [from, to) of a quantised weight with x (rows, k): out (rows, ld). The results have the bits of a
// product with the dequantised weight, whose numbers are what To writes.
//
// Few rows of x are multiplied while the codes are read. For more of them, the numbers of some rows at a time are
// written to `room` (panel_rows(k) * k numbers) and multiplied from there.
template <class To, class Arithmetic, class X, class O>
void product_of_quantised(const FtQuantised& w, const X* x, int64_t rows, int64_t from, int64_t to, Finish end,
                          typename To::Out* room, O* out, int64_t ld) {
  typedef typename To::Out T;
  constexpr int64_t block = 64;  // rows of x that stay in the cache
  int64_t k = w.columns, most = panel_rows(k);
  if (rows <= C && k % kBlock == 0) {
    if (w.values) {
      from = quantised_strips<Arithmetic, typename Arithmetic::FourBits, O>(w, x, rows, from, to, end, out, ld);
    } else if (!w.zeros) {
      from = quantised_strips<Arithmetic, typename Arithmetic::Int8, O>(w, x, rows, from, to, end, out, ld);
    } else if (!w.bytes && (w.group % kBlock == 0 || w.group >= k)) {
      from = quantised_strips<Arithmetic, typename Arithmetic::Groups, O>(w, x, rows, from, to, end, out, ld);
    }
  }
  for (int64_t j = from; j < to; j += most) {
    int64_t n = to - j < most ? to - j : most;
    Quantised::numbers<To>(w, j * k, (j + n) * k, room);
    for (int64_t m = 0; m < rows; m += block) {
      int64_t some = rows - m < block ? rows - m : block;
      for (int64_t i = 0; i < n;) {
        Finish part{end.bias ? end.bias + j + i : nullptr, end.scale, end.onto};
        O* results = out + m * ld + j + i;
        if (n - i >= 4) {
          strip<T, X, O, 4>(room + i * k, x + m * k, some, k, {k, 1, 0, 0}, part, results, ld);
          i += 4;
        } else {
          strip<T, X, O, 1>(room + i * k, x + m * k, some, k, {k, 1, 0, 0}, part, results, ld);
          i++;
        }
      }
    }
  }
}

// Sums s[i] times `count` vectors of row i of v (n, e), and multiplies by `inverse`. Even and odd keys have separate
// running sums, so that two chains of additions run in parallel.
template <class T, int count>
inline void weigh(const float* s, const T* v, int64_t n, int64_t e, float inverse, T* out) {
  vf even[count] = {}, odd[count] = {};
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    for (int j = 0; j < count; j++) even[j] += s[i] * load(v + i * e + j * W);
    for (int j = 0; j < count; j++) odd[j] += s[i + 1] * load(v + (i + 1) * e + j * W);
  }
  if (i < n)
    for (int j = 0; j < count; j++) even[j] += s[i] * load(v + i * e + j * W);
  for (int j = 0; j < count; j++) {
    vf a = (even[j] + odd[j]) * inverse;
    for (int l = 0; l < W; l++) put(out + j * W + l, a[l]);
  }
}

// Computes softmax(q k^T scale) v for `heads` queries over `n` keys: q (heads, e), k and v (n, e); scores
// (heads, n rounded up to W) is memory for the scores.
template <class T>
void attend(const T* q, const T* k, const T* v, int64_t heads, int64_t n, int64_t e, float scale, float* scores, T* out) {
  int64_t ld = (n + W - 1) / W * W;
  product<T, T, float>(k, q, heads, e, 0, n, {nullptr, scale, false}, nullptr, scores, ld);
  for (int64_t h = 0; h < heads; h++) {
    float* s = scores + h * ld;
    for (int64_t i = n; i < ld; i++) s[i] = -__builtin_inff();  // has probability 0
    vf largest = load(s);
    for (int64_t i = W; i < ld; i += W) {
      vf p = load(s + i);
      largest = p > largest ? p : largest;
    }
    float most = largest[0];
    for (int i = 1; i < W; i++) most = largest[i] > most ? largest[i] : most;
    vf sums = {};
    for (int64_t i = 0; i < ld; i += W) {
      vf p = exponential<vf, vi>(load(s + i) - most);
      sums += p;
      memcpy(s + i, &p, sizeof p);
    }
    float inverse = 1.0f / total(sums);
    int64_t at = 0;
    for (; at + 4 * W <= e; at += 4 * W) weigh<T, 4>(s, v + at, n, e, inverse, out + h * e + at);
    for (; at + W <= e; at += W) weigh<T, 1>(s, v + at, n, e, inverse, out + h * e + at);
    for (; at < e; at++) {
      float a = 0;
      for (int64_t i = 0; i < n; i++) a += s[i] * wide(v[i * e + at]);
      put(out + h * e + at, a * inverse);
    }
  }
}

}  // namespace

extern "C" {
// Products for x and w of the same dtype, and (`mixed`) for bfloat16 w with float32 x, for which `room` must have
// space for 4 rows of float32; the function with `_to_bf16` in its name rounds the result. With AMX, the `room` of the
// bfloat16 product must have space for x with its rows rounded up to 16 and its columns to 32.
#define ARGUMENTS(T, X) const T *w, const X *x, int64_t rows, int64_t k, int64_t from, int64_t to, const float *bias, bool onto
void NAME(ft_product_bf16)(ARGUMENTS(uint16_t, uint16_t), float* room, uint16_t* out, int64_t ld) {
#ifdef __AMX_BF16__
  tiled(w, x, rows, k, from, to, {bias, 1.0f, onto}, (uint32_t*)room, out, ld);
#else
  product<uint16_t, uint16_t, uint16_t>(w, x, rows, k, from, to, {bias, 1.0f, onto}, room, out, ld);
#endif
}
void NAME(ft_product_f32)(ARGUMENTS(float, float), float* out, int64_t ld) {
  product<float, float, float>(w, x, rows, k, from, to, {bias, 1.0f, onto}, nullptr, out, ld);
}
void NAME(ft_product_mixed)(ARGUMENTS(uint16_t, float), float* room, float* out, int64_t ld) {
  product<uint16_t, float, float>(w, x, rows, k, from, to, {bias, 1.0f, onto}, room, out, ld);
}
void NAME(ft_product_mixed_to_bf16)(ARGUMENTS(uint16_t, float), float* room, uint16_t* out, int64_t ld) {
  product<uint16_t, float, uint16_t>(w, x, rows, k, from, to, {bias, 1.0f, onto}, room, out, ld);
}
// Products for a quantised weight: of float32 x; of bfloat16 x, with the weight rounded to bfloat16 (does nothing on
// processors without an instruction for it); and (`_rounded_to_bf16`) the latter for x that was converted to float32. `room` must have space for ft_quantised_room(k)
// float32 numbers, and with AMX `tiles` as above.
#define QUANTISED(X) const FtQuantised *w, const X *x, int64_t rows, int64_t from, int64_t to, const float *bias, bool onto
int64_t NAME(ft_quantised_room)(int64_t k) { return panel_rows(k) * k; }
void NAME(ft_product_quantised_f32)(QUANTISED(float), float* room, float*, float* out, int64_t ld) {
  product_of_quantised<Quantised::Float, InFloats<false>>(*w, x, rows, from, to, {bias, 1.0f, onto}, room, out, ld);
}
void NAME(ft_product_quantised_bf16)(QUANTISED(uint16_t), float* room, float* tiles, uint16_t* out, int64_t ld) {
#ifdef __AMX_BF16__
  int64_t k = w->columns, most = panel_rows(k);
  for (int64_t j = from; j < to; j += most) {
    int64_t n = to - j < most ? to - j : most;
    Quantised::numbers<Quantised::Bf16>(*w, j * k, (j + n) * k, (uint16_t*)room);
    tiled((const uint16_t*)room, x, rows, k, 0, n, {bias ? bias + j : nullptr, 1.0f, onto}, (uint32_t*)tiles, out + j,
          ld);
  }
#elif defined(__AVX512BF16__)
  product_of_quantised<Quantised::Bf16, InPairs>(*w, x, rows, from, to, {bias, 1.0f, onto}, (uint16_t*)room, out, ld);
#endif
}
void NAME(ft_product_quantised_rounded_to_bf16)(QUANTISED(float), float* room, float*, uint16_t* out, int64_t ld) {
  product_of_quantised<Quantised::Rounded, InFloats<true>>(*w, x, rows, from, to, {bias, 1.0f, onto}, room, out, ld);
}
void NAME(ft_attend_bf16)(const uint16_t* q, const uint16_t* k, const uint16_t* v, int64_t heads, int64_t n, int64_t e,
                          float scale, float* scores, uint16_t* out) {
  attend<uint16_t>(q, k, v, heads, n, e, scale, scores, out);
}
void NAME(ft_attend_f32)(const float* q, const float* k, const float* v, int64_t heads, int64_t n, int64_t e,
                         float scale, float* scores, float* out) {
  attend<float>(q, k, v, heads, n, e, scale, scores, out);
}
// e^x, as attention computes it, of n numbers, a multiple of the vector's width.
void NAME(ft_vector_exponential)(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    vf v = exponential<vf, vi>(load(x + i));
    memcpy(y + i, &v, sizeof v);
  }
}
}
