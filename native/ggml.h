// Makes the numbers of ggml's blocks again: the formats of GGUF files, as src/gguf/quant.rs describes them. Included by
// code that is compiled once per instruction set; every function has internal linkage.
//
// A block is a run of `elements` numbers of one row in `bytes` bytes, at any address. Each `group` of them is
// `code * scale + offset`, with codes of at most 8 bits, in natural order.
//
// Invariant: a number has the same bits on every instruction set. Every product is exact in float32 (11 bits of a float16,
// at most 7 of a scale and 7 of a code), so that a fused multiplication and addition rounds like two operations.
#pragma once
#include "dequantise.h"

namespace {
namespace ggml {

typedef Quantised::vf vf;
constexpr int W = Quantised::W;

// As many bytes as half a block of 4-bit numbers, and as a plane of a block of 256 numbers.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
template <class V> inline V load(const uint8_t* p) { V v; memcpy(&v, p, sizeof v); return v; }
template <class V> inline void store(int8_t* q, const V& v) { memcpy(q, &v, sizeof v); }

inline uint16_t half_at(const uint8_t* b) { uint16_t h; memcpy(&h, b, 2); return h; }
inline float float_at(const uint8_t* b) { return from_f16(half_at(b)); }

// Tells the compiler that a value may have changed in memory. Without it, it would not read parts of what was stored from
// there, which costs nothing, but take them out of registers one by one.
template <class T> FT_INLINE void in_memory(T& value) { asm("" : "+m"(value)); }

// Writes 16 small numbers times a factor for each half, as floats.
inline void scaled(Bytes16 numbers, float first, float second, float* y) {
  int8_t n[16];
  store(n, numbers);
  Quantised::vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  for (int i = 0; i < 16; i += W) {
    vf v = Quantised::widened((const uint8_t*)n + i) * (lane + i < 8 ? vf{} + first : vf{} + second);
    memcpy(y + i, &v, sizeof v);
  }
}

// Writes the lower halves of 16 bytes, then the upper halves, each less `zero`.
inline void nibbles(const uint8_t* b, uint8_t zero, int8_t* q) {
  Bytes16 v = load<Bytes16>(b);
  store(q, (v & 15) - zero);
  store(q + 16, (v >> 4) - zero);
}
// Writes the same numbers with a fifth bit each, bit i of 32.
inline void five_bits(const uint8_t* low, const uint8_t* fifth, uint8_t zero, int8_t* q) {
  uint32_t word;
  memcpy(&word, fifth, 4);
  const Bytes16 all = (Bytes16)Words{word, word, word, word}, bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const Bytes16 first = __builtin_shuffle(all, Bytes16{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1});
  const Bytes16 second = __builtin_shuffle(all, Bytes16{2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3});
  auto upper = [&](Bytes16 bits) { return (Bytes16)((bits & bit) != 0) & 16; };
  const Bytes16 v = load<Bytes16>(low);
  store(q, ((v & 15) | upper(first)) - zero);
  store(q + 16, ((v >> 4) | upper(second)) - zero);
}

// Blocks of 32 numbers with one scale and perhaps an offset, both float16.
struct Of32 {
  static constexpr int elements = 32, group = 32;
};
struct Q4_0 : Of32 {
  static constexpr int bytes = 18, first_code = 2, zero = 8, plane = 16;
  static constexpr bool offset = false;
  static inline void codes(const uint8_t* b, int8_t* q) { nibbles(b + 2, 8, q); }
  static inline void scales(const uint8_t* b, float* scale, float*) { *scale = float_at(b); }
};
struct IQ4_NL : Of32 {
  static constexpr int bytes = 18;
  static constexpr bool offset = false;
  static inline void codes(const uint8_t* b, int8_t* q) {
    typedef int8_t Levels __attribute__((vector_size(16)));
    const Bytes16 levels = (Bytes16)Levels{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const Bytes16 v = load<Bytes16>(b + 2);
    store(q, __builtin_shuffle(levels, v & 15)), store(q + 16, __builtin_shuffle(levels, v >> 4));
  }
  static inline void scales(const uint8_t* b, float* scale, float*) { *scale = float_at(b); }
};
struct Q4_1 : Of32 {
  static constexpr int bytes = 20, first_code = 4, zero = 0, plane = 16;
  static constexpr bool offset = true;
  static inline void codes(const uint8_t* b, int8_t* q) { nibbles(b + 4, 0, q); }
  static inline void scales(const uint8_t* b, float* scale, float* off) { *scale = float_at(b), *off = float_at(b + 2); }
};
struct Q5_0 : Of32 {
  static constexpr int bytes = 22;
  static constexpr bool offset = false;
  static inline void codes(const uint8_t* b, int8_t* q) { five_bits(b + 6, b + 2, 16, q); }
  static inline void scales(const uint8_t* b, float* scale, float*) { *scale = float_at(b); }
};
struct Q5_1 : Of32 {
  static constexpr int bytes = 24;
  static constexpr bool offset = true;
  static inline void codes(const uint8_t* b, int8_t* q) { five_bits(b + 8, b + 4, 0, q); }
  static inline void scales(const uint8_t* b, float* scale, float* off) { *scale = float_at(b), *off = float_at(b + 2); }
};
struct Q8_0 : Of32 {
  static constexpr int bytes = 34;
  static constexpr bool offset = false;
  static inline void codes(const uint8_t* b, int8_t* q) { memcpy(q, b + 2, 32); }
  static inline void scales(const uint8_t* b, float* scale, float*) { *scale = float_at(b); }
};

// Blocks of 256 numbers, whose groups have scales of few bits times one float16, and perhaps offsets likewise.
struct Of256 {
  static constexpr int elements = 256;
};
struct Q2_K : Of256 {
  static constexpr int bytes = 84, group = 16;
  static constexpr bool offset = true;
  static inline void codes(const uint8_t* b, int8_t* q) {
    for (int half = 0; half < 2; half++) {
      Bytes32 v = load<Bytes32>(b + 16 + 32 * half);
      for (int j = 0; j < 4; j++) store(q + 128 * half + 32 * j, (v >> uint8_t(2 * j)) & 3);
    }
  }
  static inline void scales(const uint8_t* b, float* scale, float* off) {
    const float d = float_at(b + 80), least = -float_at(b + 82);
    const Bytes16 v = load<Bytes16>(b);
    scaled(v & 15, d, d, scale), scaled(v >> 4, least, least, off);
  }
};
struct Q3_K : Of256 {
  static constexpr int bytes = 110, group = 16;
  static constexpr bool offset = false;
  static inline void codes(const uint8_t* b, int8_t* q) {
    const Bytes32 mask = load<Bytes32>(b);
    for (int half = 0; half < 2; half++) {
      Bytes32 v = load<Bytes32>(b + 32 + 32 * half);
      for (int j = 0; j < 4; j++) {
        Bytes32 third = ((mask >> uint8_t(4 * half + j)) & 1) << 2;
        store(q + 128 * half + 32 * j, ((v >> uint8_t(2 * j)) & 3) + third - 4);
      }
    }
  }
  static inline void scales(const uint8_t* b, float* scale, float*) {
    const float d = float_at(b + 108);
    uint32_t low[2], high;
    memcpy(low, b + 96, 8), memcpy(&high, b + 104, 4);
    const Words four = Words{low[0], low[1], low[0], low[1]} >> Words{0, 0, 4, 4} & 0x0f0f0f0f;
    const Words upper = (Words{high, high, high, high} >> Words{0, 2, 4, 6} & 0x03030303) << 4;
    scaled((Bytes16)(four | upper) - 32, d, d, scale);
  }
};
// Eight groups with a scale and a minimum of six bits each, which are packed into 12 bytes.
struct WithMinima : Of256 {
  static constexpr int group = 32;
  static constexpr bool offset = true;
  static inline void scales(const uint8_t* b, float* scale, float* off) {
    uint32_t words[3];
    memcpy(words, b + 4, 12);
    const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, upper = 0x30303030;
    const Words low = Words{words[0], words[2], words[1], words[2]} >> Words{0, 0, 0, 4} & Words{six, four, six, four};
    const Words high = Words{words[0], words[0], words[1], words[1]} >> 2 & Words{0, upper, 0, upper};
    float y[16];
    scaled((Bytes16)(low | high), float_at(b), -float_at(b + 2), y);
    memcpy(scale, y, 32), memcpy(off, y + 8, 32);
  }
};
struct Q4_K : WithMinima {
  static constexpr int bytes = 144, first_code = 16, zero = 0, plane = 32;
  static inline void codes(const uint8_t* b, int8_t* q) {
    for (int j = 0; j < 4; j++) {
      Bytes32 v = load<Bytes32>(b + 16 + 32 * j);
      store(q + 64 * j, v & 15), store(q + 64 * j + 32, v >> 4);
    }
  }
};
struct Q5_K : WithMinima {
  static constexpr int bytes = 176;
  static inline void codes(const uint8_t* b, int8_t* q) {
    const Bytes32 fifth = load<Bytes32>(b + 16);
    for (int j = 0; j < 4; j++) {
      Bytes32 v = load<Bytes32>(b + 48 + 32 * j);
      store(q + 64 * j, (v & 15) | ((fifth >> uint8_t(2 * j)) & 1) << 4);
      store(q + 64 * j + 32, (v >> 4) | ((fifth >> uint8_t(2 * j + 1)) & 1) << 4);
    }
  }
};
struct Q6_K : Of256 {
  static constexpr int bytes = 210, group = 16;
  static constexpr bool offset = false;
  static inline void codes(const uint8_t* b, int8_t* q) {
    for (int half = 0; half < 2; half++, q += 128) {
      Bytes32 first = load<Bytes32>(b + 64 * half), second = load<Bytes32>(b + 64 * half + 32);
      Bytes32 upper = load<Bytes32>(b + 128 + 32 * half);
      store(q, ((first & 15) | (upper & 3) << 4) - 32);
      store(q + 32, ((second & 15) | ((upper >> 2) & 3) << 4) - 32);
      store(q + 64, ((first >> 4) | ((upper >> 4) & 3) << 4) - 32);
      store(q + 96, ((second >> 4) | (upper >> 6) << 4) - 32);
    }
  }
  static inline void scales(const uint8_t* b, float* scale, float*) {
    const float d = float_at(b + 208);
    scaled(load<Bytes16>(b + 192), d, d, scale);
  }
};

// One block, made ready for reading.
template <class Type> struct Block {
  static constexpr int groups = Type::elements / Type::group;
  alignas(64) int8_t codes[Type::elements];
  float scale[groups], offset[groups];
  inline Block(const uint8_t* b) {
    Type::codes(b, codes);
    Type::scales(b, scale, offset);
    in_memory(codes), in_memory(scale), in_memory(offset);
  }
  // Returns the numbers from i, which is a multiple of their count.
  inline vf get(int i) const {
    vf v = Quantised::widened((const uint8_t*)codes + i) * scale[i / Type::group];
    return Type::offset ? v + offset[i / Type::group] : v;
  }
};

#ifdef __AVX512BF16__
// Rounds 2 W numbers to bfloat16. The instruction takes subnormal numbers for 0, but there are none: all are multiples of
// 2^-24, the smallest float16.
inline __m512bh halves(vf first, vf second) { return _mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }
#endif

// Calls f(Type()) for the type with ggml's number. Returns false for a number that is none of these.
template <class F> inline bool with_common_type(int number, F f) {
  switch (number) {
    case 2: f(Q4_0()); return true;
    case 3: f(Q4_1()); return true;
    case 8: f(Q8_0()); return true;
    case 12: f(Q4_K()); return true;
    case 14: f(Q6_K()); return true;
    default: return false;
  }
}
template <class F> inline bool with_type(int number, F f) {
  switch (number) {
    case 6: f(Q5_0()); return true;
    case 7: f(Q5_1()); return true;
    case 10: f(Q2_K()); return true;
    case 11: f(Q3_K()); return true;
    case 13: f(Q5_K()); return true;
    case 20: f(IQ4_NL()); return true;
    default: return with_common_type(number, f);
  }
}

// Writes numbers [begin, end), whole blocks, of a matrix in blocks of one type.
template <class Type, class To>
inline void numbers_of(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
  for (int64_t i = begin; i < end; i += Type::elements, y += Type::elements) {
    const Block<Type> block(w.codes + i / Type::elements * Type::bytes);
#ifdef __AVX512BF16__
    if constexpr (sizeof(*y) == 2) {
      for (int at = 0; at < Type::elements; at += 2 * W) {
        __m512bh v = halves(block.get(at), block.get(at + W));
        memcpy(y + at, &v, sizeof v);
      }
      continue;
    }
#endif
    for (int at = 0; at < Type::elements; at += W) To::put(y + at, block.get(at));
  }
}
template <class To>
inline void numbers(const FtQuantised& w, int64_t begin, int64_t end, typename To::Out* y) {
  with_type(w.ggml, [&](auto type) { numbers_of<decltype(type), To>(w, begin, end, y); });
}

}  // namespace ggml
}  // namespace
