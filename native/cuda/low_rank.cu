// Gradients of low-rank factors (Hu et al. 2021, arXiv 2106.09685): products wide^T narrow over all tokens, of which one
// matrix has few columns. Several products are one launch. Sums are float32.
//
// A block computes kStrip columns of a wide matrix times kGroup columns of a narrow one: a tile of kTile numbers. Each of its warps
// takes every kWarps-th token. The tokens of products with few tiles are divided into chunks, a block for each, so that they occupy
// a GPU, too. The block that finishes last among those of a tile adds up the chunks, in their order.

constexpr int kProducts = 16;  // of one launch
constexpr int kWarps = 4;
constexpr int kStrip = kLanes * kPack;
constexpr int kGroup = kPack;
constexpr int kTile = kStrip * kGroup;

// `count` products over `tokens` rows. Number (c, r) of product i, scaled, goes to to[i][c column_step + r rank_step]. It has
// chunks[i] chunks of chunk_tokens[i] tokens, and its blocks end before block end[i]. With packed[i] addresses, rows and columns are
// those of whole packs.
struct FactorProducts {
  const void* wide[kProducts];
  const void* narrow[kProducts];
  float* to[kProducts];
  i64 wide_stride[kProducts], narrow_stride[kProducts];
  i64 column_step[kProducts], rank_step[kProducts];
  i64 tokens;
  int columns[kProducts], ranks[kProducts], chunks[kProducts], chunk_tokens[kProducts], end[kProducts], packed[kProducts];
  float scale[kProducts];
  int count;
};

// Adds the products of rows of `wide` and `narrow` to `sums`; `columns` and `ranks` are what is left of each.
template <int N>
FT_DEVICE void add_rows(const Number* wide, const Number* narrow, i64 wide_stride, i64 narrow_stride, i64 begin, i64 end,
                        int columns, int ranks, float (&sums)[kPack][kGroup]) {
#ifdef __CUDACC__
#pragma unroll 2  // so that rows are loaded ahead, and everything stays in registers
#endif
  for (i64 token = begin; token < end; token += kWarps) {
    float a[kPack], b[kGroup];
    if constexpr (N == kPack) {
      load<kPack>(wide + token * wide_stride, a);
      load<kPack>(narrow + token * narrow_stride, b);
    } else {
      for (int c = 0; c < kPack; c++) a[c] = c < columns ? widen(wide[token * wide_stride + c]) : 0.0f;
      for (int r = 0; r < kGroup; r++) b[r] = r < ranks ? widen(narrow[token * narrow_stride + r]) : 0.0f;
    }
    for (int c = 0; c < kPack; c++) {
      for (int r = 0; r < kGroup; r++) sums[c][r] += a[c] * b[r];
    }
  }
}

// `parts` (blocks, kTile) is for the sums of chunks. `tickets` (blocks) are 0 before and after.
FT_KERNEL(128) factor_gradients(FactorProducts p, float* parts, u32* tickets) {
  FT_SHARED(float, sums, kWarps * kTile);
  FT_SHARED(u32, before, 1);
  const int block = int(FT_BLOCK);
  int i = 0;
  while (block >= p.end[i]) i++;
  const int in_product = block - (i == 0 ? 0 : p.end[i - 1]), chunks = p.chunks[i], chunk = in_product % chunks;
  const int tile = in_product / chunks, groups = (p.ranks[i] + kGroup - 1) / kGroup;
  const int first_column = tile / groups * kStrip, first_rank = tile % groups * kGroup;
  const i64 begin = i64(chunk) * p.chunk_tokens[i], after = begin + p.chunk_tokens[i];
  const i64 end = after < p.tokens ? after : p.tokens;
  FT_THREADS {
    const int warp = thread / kLanes, lane = thread % kLanes, column = first_column + lane * kPack;
    const int columns = p.columns[i] - column, ranks = p.ranks[i] - first_rank;
    const Number* wide = static_cast<const Number*>(p.wide[i]) + column;
    const Number* narrow = static_cast<const Number*>(p.narrow[i]) + first_rank;
    const i64 wide_stride = p.wide_stride[i], narrow_stride = p.narrow_stride[i];
    float own[kPack][kGroup] = {};
    if (columns > 0 && p.packed[i]) {
      add_rows<kPack>(wide, narrow, wide_stride, narrow_stride, begin + warp, end, columns, ranks, own);
    } else if (columns > 0) {
      add_rows<1>(wide, narrow, wide_stride, narrow_stride, begin + warp, end, columns, ranks, own);
    }
    for (int c = 0; c < kPack; c++) {
      for (int r = 0; r < kGroup; r++) sums[((warp * kPack + c) * kGroup + r) * kLanes + lane] = own[c][r];
    }
  }
  // The blocks of a tile follow each other.
  const int first_block = block - chunk;
  float* of_tile = parts + i64(first_block) * kTile;
  FT_THREADS {
    for (int at = thread; at < kTile; at += 128) {
      float sum = 0;
      for (int warp = 0; warp < kWarps; warp++) sum += sums[warp * kTile + at];
      of_tile[i64(chunk) * kTile + at] = sum;
    }
    publish();
  }
  FT_THREADS {
    if (thread == 0) before[0] = take_ticket(tickets + first_block);
  }
  FT_THREADS {
    if (before[0] == u32(chunks - 1)) {
      for (int at = thread; at < kTile; at += 128) {
        const int column = first_column + at % kLanes * kPack + at / (kLanes * kGroup);
        const int rank = first_rank + at / kLanes % kGroup;
        float sum = 0;
        for (int part = 0; part < chunks; part++) sum += published(of_tile + i64(part) * kTile + at);
        if (column < p.columns[i] && rank < p.ranks[i]) {
          p.to[i][column * p.column_step[i] + rank * p.rank_step[i]] = sum * p.scale[i];
        }
      }
      if (thread == 0) tickets[first_block] = 0;
    }
  }
}
