// Numbers in few bits.
//
// Weights of 4 bits: NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E), in the layout of bitsandbytes. Of the two
// numbers in a byte the first is in the upper half; each block of numbers has a float32 scale, its largest magnitude.

FT_CONSTANT float kNf4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Writes n numbers, `block_size` of which share a scale; block_size is a multiple of kPack, n is even. With `packed`
// the address of y is a multiple of the size of a pack.
FT_KERNEL(256) dequantise_nf4(const u8* codes, const float* scales, Number* y, i64 n, int block_size, int packed) {
  FT_SHARED(float, table, 16);
  FT_THREADS {
    if (thread < 16) table[thread] = kNf4[thread];
  }
  FT_THREADS {
    const i64 at = (FT_BLOCK * 256 + thread) * kPack;
    if (at < n) {
      const float scale = scales[at / block_size];
      float v[kPack];
      for (int i = 0; i < kPack && at + i < n; i += 2) {
        const u32 byte = codes[(at + i) / 2];
        v[i] = table[byte >> 4] * scale;
        v[i + 1] = table[byte & 15u] * scale;
      }
      if (packed && at + kPack <= n) {
        store<kPack>(y + at, v);
      } else {
        for (int i = 0; i < kPack && at + i < n; i++) narrow(v[i], y[at + i]);
      }
    }
  }
}

// Returns the code in FP8 (e4m3: a sign, 4 bits of exponent, 3 of fraction) of a number of a magnitude below 256, rounded to nearest, ties to
// even; that of NaN for NaN and infinite numbers.
FT_DEVICE u8 to_e4m3(float x) {
  const u32 bits = float_to_bits(x), sign = (bits >> 24) & 0x80u, size = bits & 0x7fffffffu;
  if (size >= 0x7f800000u) return u8(sign | 0x7fu);
  if (size < 0x3c800000u) {  // below 2^-6: steps of 2^-9, to which adding 2^14 rounds a float32
    return u8(sign | (float_to_bits(bits_to_float(size) + 16384.0f) - 0x46800000u));
  }
  return u8(sign | (size - 0x3c000000u + 0x7ffffu + ((size >> 20) & 1u)) >> 20);
}

// Returns the largest bits of the magnitudes of N numbers. Those of NaN are larger than those of infinity.
template <int N> FT_DEVICE u32 largest_bits(const Number* x, i64 at, u32 most) {
  float a[N];
  load<N>(x + at, a);
  for (int i = 0; i < N; i++) {
    const u32 size = float_to_bits(a[i]) & 0x7fffffffu;
    most = size > most ? size : most;
  }
  return most;
}

template <int N> FT_DEVICE void round_numbers(const Number* x, u8* codes, i64 at, float factor) {
  struct alignas(N) Codes { u8 at[N]; };
  float a[N];
  Codes rounded;
  load<N>(x + at, a);
  for (int i = 0; i < N; i++) rounded.at[i] = to_e4m3(a[i] * factor);
  *reinterpret_cast<Codes*>(codes + at) = rounded;
}

// Rounds rows of `width` numbers, which begin `stride` numbers apart, to FP8: number = code * scale of its row. A scale is 2^-7 of the largest
// power of two in the row, but not less than 2^-107, so that its reciprocal is finite. A block rounds one row. With `packed` width and stride
// are multiples of kPack and the address of x of the size of a pack.
FT_KERNEL(256) round_rows(const Number* x, u8* codes, float* scales, i64 width, i64 stride, int packed) {
  FT_SHARED(u32, each, 256);
  FT_SHARED(u32, lanes, kLanes);
  x += FT_BLOCK * stride;
  codes += FT_BLOCK * width;
  FT_THREADS {
    u32 most = 0;
    if (packed) {
      for (i64 i = thread * kPack; i < width; i += 256 * kPack) most = largest_bits<kPack>(x, i, most);
    } else {
      for (i64 i = thread; i < width; i += 256) most = largest_bits<1>(x, i, most);
    }
    each[thread] = most;
  }
  FT_THREADS {
    if (thread < kLanes) {
      u32 most = 0;
      for (int i = thread; i < 256; i += kLanes) most = each[i] > most ? each[i] : most;
      lanes[thread] = most;
    }
  }
  FT_THREADS {
    u32 most = 27u << 23;  // 2^-100
    for (int lane = 0; lane < kLanes; lane++) most = lanes[lane] > most ? lanes[lane] : most;
    const u32 scale = (most & 0x7f800000u) - (7u << 23);
    const float factor = bits_to_float((254u << 23) - scale);  // 1 / scale
    if (thread == 0) scales[FT_BLOCK] = bits_to_float(scale);
    if (packed) {
      for (i64 i = thread * kPack; i < width; i += 256 * kPack) round_numbers<kPack>(x, codes, i, factor);
    } else {
      for (i64 i = thread; i < width; i += 256) round_numbers<1>(x, codes, i, factor);
    }
  }
}
