// Products of bfloat16 by AMX, where the build has it.
#pragma once
#include "product_tile.h"

#ifdef __AMX_BF16__
namespace {

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

}  // namespace
#endif
