// Products of decoding steps with quantised weights, which read the codes. Compiled once per instruction set, as
// product.cpp; decode.cpp chooses the build.
//
// Invariant: the results have the bits of a product with the dequantised weight (product_tile.h).
#include "amx.h"
#include "formats.h"
#include "ggml_tile.h"
#include "product_tile.h"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, FT_ISA)

namespace {

// Whether few rows of x are multiplied while the codes are read. Not in the portable build where others exist: there it is
// for processors that hardly anybody has, and tiles for every format take half a minute to compile.
#if FT_BYTES == 16 && defined(__x86_64__)
constexpr bool kReadsCodes = false;
#else
constexpr bool kReadsCodes = true;
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

// Returns the number of the group, among those of all rows, that a block is in. Groups are whole blocks, rows whole groups.
FT_INLINE int64_t group_of(const FtQuantised& w, int64_t block) { return block * kBlock / w.group; }

// What is multiplied: float32; float32 that stands for bfloat16 (`round`); pairs of bfloat16. Each format is the `count`
// numbers of one block of a row, which are whole blocks.
template <bool round> struct InFloats : Plain<float, float> {
  typedef float X;
  static inline vf rounded(vf v) { return round ? Quantised::as_bf16(v) : v; }
  struct FourBits {
    static constexpr int64_t count = kBlock;
    const uint8_t* codes;
    const Quantised::Scaled<round> table;
    inline FourBits(const FtQuantised& w, int64_t block)
        : codes(w.codes + block * (kBlock / 2)), table(w.values, block_scale(w, block)) {}
    inline FourBits(const uint8_t* codes, const float* values, float scale) : codes(codes), table(values, scale) {}
    inline vf get(int64_t i) const { return table.get(codes + i / 2); }
  };
  struct Groups : FourBits {
    inline Groups(const FtQuantised& w, int64_t block)
        : FourBits(w.codes + block * (kBlock / 2), less_zero(w.zeros[group_of(w, block)]), w.scales[group_of(w, block)]) {}
  };
  struct Int8 {
    static constexpr int64_t count = kBlock;
    const uint8_t* codes;
    const float scale;
    inline Int8(const FtQuantised& w, int64_t block)
        : codes(w.codes + block * kBlock), scale(w.scales[block / (w.columns / kBlock)]) {}
    inline vf get(int64_t i) const { return rounded(Quantised::widened(codes + i) * scale * kInt8Step); }
  };
  template <class Type> struct Codes : ggml::FromCodes<Type> {
    using ggml::FromCodes<Type>::FromCodes;
    inline vf get(int64_t i) const { return rounded(ggml::FromCodes<Type>::get(i)); }
  };
#if FT_BYTES == 64
  template <class Type> using Table = ggml::FromTable<Type, round>;
#else
  template <class Type> using Table = Codes<Type>;
#endif
};
#ifdef __AVX512BF16__
struct InPairs : Pairs {
  typedef uint16_t X;
  struct FourBits {
    static constexpr int64_t count = kBlock;
    const uint8_t* codes;
    const Quantised::ScaledHalves table;
    inline FourBits(const FtQuantised& w, int64_t block)
        : codes(w.codes + block * (kBlock / 2)), table(w.values, block_scale(w, block)) {}
    inline FourBits(const uint8_t* codes, const float* values, float scale) : codes(codes), table(values, scale) {}
    inline In get(int64_t i) const { return (In)table.get(codes + i / 2); }
  };
  struct Groups : FourBits {
    inline Groups(const FtQuantised& w, int64_t block)
        : FourBits(w.codes + block * (kBlock / 2), less_zero(w.zeros[group_of(w, block)]), w.scales[group_of(w, block)]) {}
  };
  struct Int8 {
    static constexpr int64_t count = kBlock;
    const uint8_t* codes;
    const float scale;
    inline Int8(const FtQuantised& w, int64_t block)
        : codes(w.codes + block * kBlock), scale(w.scales[block / (w.columns / kBlock)]) {}
    inline In get(int64_t i) const {
      __m256i low = Quantised::upper_halves(Quantised::widened(codes + i) * scale * kInt8Step);
      __m256i high = Quantised::upper_halves(Quantised::widened(codes + i + W) * scale * kInt8Step);
      return (In)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
  };
  template <class Type> struct Codes : ggml::FromCodes<Type> {
    using ggml::FromCodes<Type>::FromCodes;
    inline In get(int64_t i) const {
      return ggml::halves(ggml::FromCodes<Type>::get(i), ggml::FromCodes<Type>::get(i + W));
    }
  };
  template <class Type> using Table = ggml::PairsFromTable<Type>;
};
#endif

// Calls f with 0 to n - 1, each as a constant. Sums that are only used with constant numbers are kept in registers.
template <int n, int i = 0, class F> FT_INLINE void each(const F& f) {
  if constexpr (i < n) {
    f(std::integral_constant<int, i>());
    each<n, i + 1>(f);
  }
}

// Rows of x up to which ggml's blocks are read while they are multiplied; for more, dequantising them first is as fast.
constexpr int kMostOfGgml = 3;

// How the numbers of a type are made: 4-bit codes are looked up, if that is faster.
template <class Arithmetic, class Type, class = void> struct Reader {
  typedef typename Arithmetic::template Codes<Type> Of;
};
template <class Arithmetic, class Type> struct Reader<Arithmetic, Type, decltype(void(Type::first_code))> {
  typedef typename Arithmetic::template Table<Type> Of;
};

// Writes the totals of c rows of x times r rows of the weight, which are `apart`.
template <class O, int r, int c> FT_INLINE void finish_tile(const vf* sum, int64_t apart, Finish end, O* out, int64_t ld) {
  float s[c * r];
  all_totals<c * r>(sum, s);
  for (int m = 0; m < c; m++)
    for (int j = 0; j < r; j++) {
      O* to = out + m * ld + j * apart;
      put(to, s[m * r + j] * end.scale + (end.bias ? end.bias[j * apart] : 0.0f) + (end.onto ? wide(*to) : 0.0f));
    }
}

// Does the same as `tile` for four rows of a quantised weight, `row` and those `apart` from it, and c rows of x. Rows are
// whole blocks.
template <class Arithmetic, class Numbers, class O, int c>
inline void quantised_tile(const FtQuantised& w, int64_t row, int64_t apart, const typename Arithmetic::X* x, Finish end,
                           O* out, int64_t ld) {
  constexpr int r = 4;
  const int64_t k = w.columns, blocks = k / Numbers::count;
  vf sum[c * r] = {};
  for (int64_t block = 0; block < blocks; block++) {
    const typename Arithmetic::X* from = x + block * Numbers::count;
    each<r>([&](auto j) __attribute__((always_inline)) {
      const Numbers numbers(w, (row + j * apart) * blocks + block);
      each<int(Numbers::count) / Arithmetic::step>([&](auto step) __attribute__((always_inline)) {
        constexpr int64_t i = step * Arithmetic::step;
        auto a = numbers.get(i);
        each<c>([&](auto m) __attribute__((always_inline)) { Arithmetic::add(sum[m * r + j], a, Arithmetic::get(from + m * k + i)); });
      });
    });
  }
  vf totals[c * r];
  each<c * r>([&](auto i) __attribute__((always_inline)) { totals[i] = sum[i]; });
  finish_tile<O, r, c>(totals, apart, end, out, ld);
}

// Does the same for ggml's blocks of one type.
template <class Arithmetic, class Type, class O, int c>
inline void ggml_tile(const FtQuantised& w, int64_t row, int64_t apart, const typename Arithmetic::X* x, Finish end, O* out,
                      int64_t ld) {
  typedef typename Reader<Arithmetic, Type>::Of Numbers;
  constexpr int r = 4;
  constexpr int64_t run = ggml::Factors<Type, r>::blocks, step = Numbers::count / Type::elements;
  const int64_t k = w.columns, blocks = k / Type::elements;
  const uint8_t* at[r];
  for (int j = 0; j < r; j++) at[j] = w.codes + (row + j * apart) * blocks * Type::bytes;
  vf sum[c * r] = {};
  ggml::Factors<Type, r> factors;
  for (int64_t first = 0; first < blocks; first += run) {
    const int64_t some = blocks - first < run ? blocks - first : run;
    factors.read(at, some);
    const typename Arithmetic::X* from = x + first * Type::elements;
    auto add = [&](int64_t block, auto count) __attribute__((always_inline)) {
      each<r>([&](auto j) __attribute__((always_inline)) {
        const uint8_t* b = at[j] + block * Type::bytes;
        for (int64_t line = 0; line < Type::bytes; line += 64) __builtin_prefetch(b + kAheadOfOne + line, 0, 2);
        const Numbers numbers(b, factors.scale(j, block), factors.offset(j, block));
        each<int(count) / Arithmetic::step>([&](auto step) __attribute__((always_inline)) {
          constexpr int64_t i = step * Arithmetic::step;
          auto a = numbers.get(i);
          each<c>([&](auto m) __attribute__((always_inline)) {
            Arithmetic::add(sum[m * r + j], a, Arithmetic::get(from + m * k + block * Type::elements + i));
          });
        });
      });
    };
    int64_t block = 0;
    for (; block + step <= some; block += step) add(block, std::integral_constant<int64_t, Numbers::count>());
    if (block < some) add(block, std::integral_constant<int64_t, Type::elements>());  // one block of two
    for (int j = 0; j < r; j++) at[j] += run * Type::bytes;
  }
  vf totals[c * r];
  each<c * r>([&](auto i) __attribute__((always_inline)) { totals[i] = sum[i]; });
  finish_tile<O, r, c>(totals, apart, end, out, ld);
}

// Multiplies rows [from, to) of a quantised weight whose rows are whole blocks with up to `most` rows of x, four rows of
// the weight at a time. Tile<c> multiplies c rows of x. Returns the first of the up to three rows that are left.
template <int most, template <int> class Tile, class X, class O>
inline int64_t quantised_strips(const FtQuantised& w, const X* x, int64_t rows, int64_t from, int64_t to, Finish end, O* out,
                                int64_t ld) {
  const int64_t apart = (to - from) / 4;
  for (int64_t j = from; j < from + apart; j++) {
    Finish part{end.bias ? end.bias + j : nullptr, end.scale, end.onto};
    each<most>([&](auto i) __attribute__((always_inline)) {
      if (rows == i + 1) Tile<i + 1>::run(w, j, apart, x, part, out + j, ld);
    });
  }
  return from + 4 * apart;
}

// Blocks of one format (InFloats::FourBits and the like), and of one of ggml's types.
template <class Arithmetic, class Numbers, class O> struct OfBlocks {
  template <int c> struct Tile {
    static inline void run(const FtQuantised& w, int64_t row, int64_t apart, const typename Arithmetic::X* x, Finish end, O* out,
                           int64_t ld) {
      quantised_tile<Arithmetic, Numbers, O, c>(w, row, apart, x, end, out, ld);
    }
  };
};
template <class Arithmetic, class Type, class O> struct OfGgml {
  template <int c> struct Tile {
    static inline void run(const FtQuantised& w, int64_t row, int64_t apart, const typename Arithmetic::X* x, Finish end, O* out,
                           int64_t ld) {
      ggml_tile<Arithmetic, Type, O, c>(w, row, apart, x, end, out, ld);
    }
  };
};

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
  if constexpr (kReadsCodes) {
    if (rows <= kMostOfGgml && w.ggml) {
      // The other types are dequantised first.
      ggml::with_common_type(w.ggml, [&](auto type) {
        from = quantised_strips<kMostOfGgml, OfGgml<Arithmetic, decltype(type), O>::template Tile>(w, x, rows, from, to, end, out, ld);
      });
    } else if (rows <= C && !w.ggml && k % kBlock == 0) {
      typedef OfBlocks<Arithmetic, typename Arithmetic::FourBits, O> FourBits;
      typedef OfBlocks<Arithmetic, typename Arithmetic::Int8, O> Int8;
      typedef OfBlocks<Arithmetic, typename Arithmetic::Groups, O> Groups;
      const bool groups = w.zeros && !w.bytes && w.group % kBlock == 0 && k % w.group == 0;
      if (w.values && !w.group) from = quantised_strips<C, FourBits::template Tile>(w, x, rows, from, to, end, out, ld);
      else if (groups) from = quantised_strips<C, Groups::template Tile>(w, x, rows, from, to, end, out, ld);
      else if (!w.group) from = quantised_strips<C, Int8::template Tile>(w, x, rows, from, to, end, out, ld);
    }
  }
  for (int64_t j = from; j < to; j += most) {
    int64_t n = to - j < most ? to - j : most;
    dequantise<To>(w, j * k, (j + n) * k, room);
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

}  // namespace

extern "C" {
// Products for a quantised weight: of float32 x; and of bfloat16 x, with the weight rounded to bfloat16: in builds with an
// instruction for it, `_bf16`, in the others, which get x converted to float32, `_rounded_to_bf16`. `room` must have space
// for ft_quantised_room(k) float32 numbers, and with AMX `tiles` as the products of product.cpp.
#define QUANTISED(X) const FtQuantised *w, const X *x, int64_t rows, int64_t from, int64_t to, const float *bias, bool onto
int64_t NAME(ft_quantised_room)(int64_t k) { return panel_rows(k) * k > kPanel ? panel_rows(k) * k : kPanel; }
#ifdef __AVX512BF16__
// These builds add instructions for bfloat16 only, so float32 has the code of avx512, whose panels fit into `room` too.
void ft_product_quantised_f32_avx512(QUANTISED(float), float* room, float*, float* out, int64_t ld);
void NAME(ft_product_quantised_f32)(QUANTISED(float), float* room, float* tiles, float* out, int64_t ld) {
  ft_product_quantised_f32_avx512(w, x, rows, from, to, bias, onto, room, tiles, out, ld);
}
#else
void NAME(ft_product_quantised_f32)(QUANTISED(float), float* room, float*, float* out, int64_t ld) {
  product_of_quantised<Quantised::Float, InFloats<false>>(*w, x, rows, from, to, {bias, 1.0f, onto}, room, out, ld);
}
#endif
void NAME(ft_product_quantised_bf16)(QUANTISED(uint16_t), float* room, float* tiles, uint16_t* out, int64_t ld) {
#ifdef __AMX_BF16__
  int64_t k = w->columns, most = panel_rows(k);
  for (int64_t j = from; j < to; j += most) {
    int64_t n = to - j < most ? to - j : most;
    dequantise<Quantised::Bf16>(*w, j * k, (j + n) * k, (uint16_t*)room);
    tiled((const uint16_t*)room, x, rows, k, 0, n, {bias ? bias + j : nullptr, 1.0f, onto}, (uint32_t*)tiles, out + j,
          ld);
  }
#elif defined(__AVX512BF16__)
  product_of_quantised<Quantised::Bf16, InPairs>(*w, x, rows, from, to, {bias, 1.0f, onto}, (uint16_t*)room, out, ld);
#endif
}
void NAME(ft_product_quantised_rounded_to_bf16)(QUANTISED(float), float* room, float*, uint16_t* out, int64_t ld) {
#ifndef __AVX512BF16__
  product_of_quantised<Quantised::Rounded, InFloats<true>>(*w, x, rows, from, to, {bias, 1.0f, onto}, room, out, ld);
#endif
}
}
