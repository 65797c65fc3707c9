"""Products of bfloat16 tiles as C source: rounding, packing, and the sums of packed factors in float32.

By the tile unit (AMX) of Intel processors, else by vectors where there are products of bfloat16 pairs (AVX512_BF16, AMD
since Zen 4), which take twice as many numbers at once as float32. What is built on it: `bfloat16` and
`bfloat16_attention`.
"""

import ctypes
from pathlib import Path

from pgolf.model.kernels import native

SOURCE = (
    native.VECTORS
    + r"""
#ifndef __AVX512BF16__
#error "this processor has no products of bfloat16"
#endif
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__AMX_BF16__) && !defined(VECTORS_ALONE)
#define AMX
#endif
typedef uint16_t half; /* a bfloat16 number */
#define UP(n, to) (((n) + (to)-1) / (to) * (to))
#define TILE 512 /* numbers of a tile: 16 rows of 32, or 16 pairs of rows of 16 columns */
#define LESS(a, b) ((a) < (b) ? (a) : (b))

/* asks the system for the tile unit; 0 when it gives it, or where nothing uses it */
int permission(void) {
#ifdef AMX
  return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */);
#else
  return 0;
#endif
}

static void begin_tiles(void) {
#ifdef AMX
  struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } all = {.palette = 1};
  for (int i = 0; i < 8; i++) all.bytes[i] = 64, all.rows[i] = 16;
  _tile_loadconfig(&all);
#endif
}

static void end_tiles(void) {
#ifdef AMX
  _tile_release();
#endif
}

static void *memory(size_t bytes) { return aligned_alloc(64, UP(bytes, 64)); }

static inline __mmask16 first16(int count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }
static inline __m512 floats(const float *from, int count) { return _mm512_maskz_loadu_ps(first16(count), from); }
/* the first 32 of `count` numbers, rounded */
static inline __m512i rounded(const float *from, int count) {
  return (__m512i)_mm512_cvtne2ps_pbh(floats(from + 16, count - 16), floats(from, count));
}
/* pairs (a[i], b[i]), rounded */
static inline __m512i pairs(__m512 a, __m512 b) {
  const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  static const int16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_loadu_si512(order), odd);
}

/* 16 x 16 words of 32 bits */
static inline void transpose16(__m512i *r) {
  __m512i t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

/* to[rows][UP(k, 32)]: x (count, k), rows `from row to row` ld, rounded and filled up with zeros */
static void round_rows(half *to, const float *x, int rows, int count, int k, int64_t ld) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < k; j += 32)
      _mm512_store_si512(to + i * UP(k, 32) + j, i < count ? rounded(x + i * ld + j, k - j) : (__m512i){});
}

/* to[UP(m, 16) / 16][TILE]: 32 rows of x (count, m) as tiles on the right: pairs of rows */
static inline void pair_rows(half *to, const float *x, int count, int m, int64_t ld, int64_t step) {
  for (int j = 0; j < m; j += 16)
    for (int i = 0; i < 32; i += 2)
      _mm512_store_si512(to + j / 16 * step + i * 16,
                         pairs(floats(x + i * ld + j, i < count ? m - j : 0),
                               floats(x + (i + 1) * ld + j, i + 1 < count ? m - j : 0)));
}

/* to[UP(m, 16) / 16][TILE]: 32 rows of x (count, m), turned, as tiles on the left: 16 columns of 32 rows */
static inline void turn_rows(half *to, const float *x, int count, int m, int64_t ld, int64_t step) {
  for (int j = 0; j < m; j += 16) {
    __m512i r[16];
    UNROLL for (int i = 0; i < 16; i++)
      r[i] = pairs(floats(x + 2 * i * ld + j, 2 * i < count ? m - j : 0),
                   floats(x + (2 * i + 1) * ld + j, 2 * i + 1 < count ? m - j : 0));
    transpose16(r);
    UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to + j / 16 * step + i * 32, r[i]);
  }
}

/* to[UP(m, 16) / 16][UP(k, 32) / 32][TILE]: w (k, m), or with turned (m, k), as tiles on the right; ld: from row to
   row of w */
static void pack_right(half *to, const float *w, int k, int m, int turned, int64_t ld) {
  const int64_t deep = (int64_t)UP(k, 32) / 32 * TILE;
  if (!turned) {
    for (int p = 0; p < k; p += 32) pair_rows(to + p / 32 * TILE, w + p * ld, LESS(32, k - p), m, ld, deep);
    return;
  }
  for (int j = 0; j < m; j += 16)
    for (int p = 0; p < k; p += 32) {
      __m512i r[16];
      UNROLL for (int i = 0; i < 16; i++) r[i] = rounded(w + (j + i) * ld + p, j + i < m ? k - p : 0);
      transpose16(r);
      half *tile = to + j / 16 * deep + p / 32 * TILE;
      UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(tile + i * 32, r[i]);
    }
}
static size_t right_size(int k, int m) { return (size_t)UP(m, 16) * UP(k, 32) * 2; } /* bytes */

/* c (+)= a b for `high` x `wide` (1 or 2 each) tiles of c, `steps` tiles deep. From row to row: lda numbers in a, ldc
   in c; from tile to tile of the depth: `along` in a, TILE in b; to the second tile: `below` in a, `beside` in b. */
#ifdef AMX
static inline void multiply(const half *a, int64_t lda, int64_t along, int64_t below, const half *b, int64_t beside,
                            int steps, float *c, int64_t ldc, int high, int wide, int add) {
  lda *= 2, ldc *= 4;
  char *low = (char *)c + 16 * ldc;
  if (add) {
    _tile_loadd(0, c, ldc);
    if (wide == 2) _tile_loadd(1, c + 16, ldc);
    if (high == 2) _tile_loadd(2, low, ldc);
    if (high == 2 && wide == 2) _tile_loadd(3, low + 64, ldc);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int p = 0; p < steps; p++) {
    _tile_loadd(4, a + p * along, lda);
    _tile_loadd(6, b + p * TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (wide == 2) {
      _tile_loadd(7, b + beside + p * TILE, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (high == 2) {
      _tile_loadd(5, a + below + p * along, lda);
      _tile_dpbf16ps(2, 5, 6);
      if (wide == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, ldc);
  if (wide == 2) _tile_stored(1, c + 16, ldc);
  if (high == 2) _tile_stored(2, low, ldc);
  if (high == 2 && wide == 2) _tile_stored(3, low + 64, ldc);
}
#else
/* one tile of sums in height, 1 or 2 in width: with 8 rows of 2 tiles half of the registers hold sums */
static inline __attribute__((always_inline)) void multiply_tile(const half *a, int64_t lda, int64_t along,
                                                                const half *b, int64_t beside, int steps, float *c,
                                                                int64_t ldc, const int wide, int add) {
  for (int row = 0; row < 16; row += 8, a += 8 * lda, c += 8 * ldc) {
    __m512 sums[8][2] = {};
    if (add)
      UNROLL for (int i = 0; i < 8; i++)
        UNROLL for (int j = 0; j < wide; j++) sums[i][j] = _mm512_loadu_ps(c + i * ldc + 16 * j);
    for (int p = 0; p < steps; p++)
      for (int pair = 0; pair < 32; pair += 2) {
        __m512bh right[2];
        UNROLL for (int j = 0; j < wide; j++)
          right[j] = (__m512bh)_mm512_loadu_si512(b + j * beside + p * TILE + pair * 16);
        UNROLL for (int i = 0; i < 8; i++) {
          int32_t both;
          memcpy(&both, a + p * along + i * lda + pair, 4);
          const __m512bh left = (__m512bh)_mm512_set1_epi32(both);
          UNROLL for (int j = 0; j < wide; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
        }
      }
    UNROLL for (int i = 0; i < 8; i++)
      UNROLL for (int j = 0; j < wide; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sums[i][j]);
  }
}

static inline void multiply(const half *a, int64_t lda, int64_t along, int64_t below, const half *b, int64_t beside,
                            int steps, float *c, int64_t ldc, int high, int wide, int add) {
  for (int i = 0; i < high; i++, a += below, c += 16 * ldc)
    if (wide == 2) multiply_tile(a, lda, along, b, beside, steps, c, ldc, 2, add);
    else multiply_tile(a, lda, along, b, beside, steps, c, ldc, 1, add);
}
#endif

/* out (count <= 32, m) = the rounded rows x (32, UP(k, 32)) times the packed right (k, m) */
static void times(float *out, int64_t ldo, int count, const half *rows, const half *right, int k, int m) {
  const int deep = UP(k, 32) / 32;
  const int64_t beside = (int64_t)deep * TILE;
  float edge[32 * 32] __attribute__((aligned(64)));
  for (int j = 0; j < m; j += 32) {
    const int wide = m - j > 16 ? 2 : 1, whole = count == 32 && (m - j) >= 16 * wide;
    float *to = whole ? out + j : edge;
    multiply(rows, UP(k, 32), 32, 16 * UP(k, 32), right + j / 16 * beside, beside, deep, to, whole ? ldo : 32, 2, wide,
             0);
    if (!whole)
      for (int i = 0; i < count; i++) memcpy(out + i * ldo + j, edge + i * 32, (size_t)LESS(32, m - j) * 4);
  }
}

/* sums (UP(m, 16), UP(k, 16)) += left right over `steps` tiles of 32 tokens; both [tiles][steps][TILE] */
static void add_outer(float *sums, const half *left, const half *right, int m, int k, int steps) {
  for (int i = 0; i < UP(m, 16); i += 32)
    for (int j = 0; j < UP(k, 16); j += 32)
      multiply(left + (int64_t)i / 16 * steps * TILE, 32, TILE, steps * TILE, right + (int64_t)j / 16 * steps * TILE,
               steps * TILE, steps, sums + (int64_t)i * UP(k, 16) + j, UP(k, 16), UP(m, 16) - i > 16 ? 2 : 1,
               UP(k, 16) - j > 16 ? 2 : 1, 1);
}

#define PART 512 /* tokens whose outer products are summed by one thread */
#define SPAN 128 /* tokens that meet one tile of such sums before the next */

/* out (m, k), with turned (k, m), = the sum of `parts` padded sums (UP(m, 16), UP(k, 16)) */
static void add_parts(float *out, const float *sums, int parts, int m, int k, int turned) {
  const int64_t ld = UP(k, 16), size = UP(m, 16) * ld;
#pragma omp for schedule(static)
  for (int i = 0; i < m; i++)
    for (int j = 0; j < k; j += 16) {
      __m512 s = _mm512_loadu_ps(sums + i * ld + j);
      for (int p = 1; p < parts; p++) s += _mm512_loadu_ps(sums + p * size + i * ld + j);
      if (!turned) _mm512_mask_storeu_ps(out + (int64_t)i * k + j, first16(k - j), s);
      else
        for (int n = 0; n < LESS(16, k - j); n++) out[(int64_t)(j + n) * m + i] = s[n];
    }
}
"""
)


def library(source: str, folder: Path | None) -> ctypes.CDLL:
    """As `native.library`, of source that begins with `SOURCE`; by vectors where the system refuses the tile unit."""
    loaded = native.library(source, (), folder)
    return native.library(source, ("VECTORS_ALONE",), folder) if loaded.permission() else loaded
