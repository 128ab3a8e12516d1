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
