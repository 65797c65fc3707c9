"""Matrix products in bfloat16 by the tile unit (AMX) of Intel processors, in C; tensors in and out are float32.

Torch's own bfloat16 products need tensors of that type, and at a small model's widths rounding them takes as long as
the products. Here 32 rows at a time are rounded into the first cache, where the tiles meet them; sums are float32. The
MLP is one function, forward and backward, whose wide activations never leave the second cache: the backward pass
computes them again. Sums over tokens are made in parts of `PART` tokens, whatever the number of threads.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.model.kernels import native
from pgolf.model.raised_logits import Raised

TILES = (
    native.VECTORS
    + r"""
#if !defined(__AMX_BF16__) || !defined(__AVX512BF16__)
#error "this processor has no tiles of bfloat16"
#endif
#include <sys/syscall.h>
#include <unistd.h>
typedef uint16_t half; /* a bfloat16 number */
typedef struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } tile_config;
#define UP(n, to) (((n) + (to)-1) / (to) * (to))
#define TILE 512 /* numbers of a tile: 16 rows of 32, or 16 pairs of rows of 16 columns */
#define LESS(a, b) ((a) < (b) ? (a) : (b))

/* asks the system for the tiles; 0 when it gives them */
int permission(void) { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */); }

static void use_tiles(void) {
  tile_config all = {.palette = 1};
  for (int i = 0; i < 8; i++) all.bytes[i] = 64, all.rows[i] = 16;
  _tile_loadconfig(&all);
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

SOURCE = (
    TILES
    + r"""
/* out (n, m) = x (n, k) w; w is (k, m), or with turned (m, k) */
void product(const float *x, const float *w, float *out, int n, int k, int m, int turned, int threads) {
  half *right = memory(right_size(k, m));
  pack_right(right, w, k, m, turned, turned ? k : m);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    half *rows = memory(32 * UP(k, 32) * 2);
#pragma omp for schedule(static)
    for (int i = 0; i < n; i += 32) {
      round_rows(rows, x + (int64_t)i * k, 32, LESS(32, n - i), k, k);
      times(out + (int64_t)i * m, m, LESS(32, n - i), rows, right, k, m);
    }
    free(rows);
    _tile_release();
  }
  free(right);
}

/* out (m, k) = g^T x; g (n, m), x (n, k) */
void outer(const float *g, const float *x, float *out, int n, int m, int k, int threads) {
  const int parts = (n + PART - 1) / PART;
  const size_t size = (size_t)UP(m, 16) * UP(k, 16);
  float *sums = memory(parts * size * 4);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    half *left = memory((size_t)UP(m, 16) * SPAN * 2), *right = memory((size_t)UP(k, 16) * SPAN * 2);
#pragma omp for schedule(static)
    for (int part = 0; part < parts; part++) {
      memset(sums + part * size, 0, size * 4);
      for (int start = part * PART; start < LESS(n, (part + 1) * PART); start += SPAN) {
        for (int i = 0; i < SPAN; i += 32) {
          const int count = n - start - i;
          turn_rows(left + i / 32 * TILE, g + (int64_t)(start + i) * m, count, m, m, SPAN / 32 * TILE);
          pair_rows(right + i / 32 * TILE, x + (int64_t)(start + i) * k, count, k, k, SPAN / 32 * TILE);
        }
        add_outer(sums + part * size, left, right, m, k, SPAN / 32);
      }
    }
    add_parts(out, sums, parts, m, k, 0);
    free(left), free(right);
    _tile_release();
  }
  free(sums);
}

/* out (n, d) = a(x fc^T)^2 proj^T; fc (h, d), proj (d, h); a(z) = z above zero, slope z below */
void mlp(const float *x, const float *fc, const float *proj, float *out, float slope, int n, int d, int h,
         int threads) {
  half *up = memory(right_size(d, h)), *down = memory(right_size(h, d));
  pack_right(up, fc, d, h, 1, d);
  pack_right(down, proj, h, d, 1, h);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    half *rows = memory(32 * UP(d, 32) * 2), *wide = memory(32 * UP(h, 32) * 2);
    float *z = memory(32 * UP(h, 32) * 4);
    memset(z, 0, 32 * UP(h, 32) * 4);
#pragma omp for schedule(static)
    for (int i = 0; i < n; i += 32) {
      round_rows(rows, x + (int64_t)i * d, 32, LESS(32, n - i), d, d);
      times(z, UP(h, 32), 32, rows, up, d, h);
      for (int at = 0; at < 32 * UP(h, 32); at += 32) {
        vec a = *(vec *)(z + at), b = *(vec *)(z + at + 16);
        a = choose(a > splat(0.f), a, a * splat(slope)), b = choose(b > splat(0.f), b, b * splat(slope));
        _mm512_store_si512(wide + at, (__m512i)_mm512_cvtne2ps_pbh((__m512)(b * b), (__m512)(a * a)));
      }
      times(out + (int64_t)i * d, d, LESS(32, n - i), wide, down, h, d);
    }
    free(rows), free(wide), free(z);
    _tile_release();
  }
  free(up), free(down);
}

/* gradients dx (n, d), dfc (h, d), dproj (d, h) of `mlp` for g (n, d) by out */
void mlp_backward(const float *g, const float *x, const float *fc, const float *proj, float *dx, float *dfc,
                  float *dproj, float slope, int n, int d, int h, int threads) {
  const int parts = (n + PART - 1) / PART, hp = UP(h, 32), deep = SPAN / 32;
  const size_t size = (size_t)UP(d, 16) * UP(h, 16);
  half *up = memory(right_size(d, h)), *back = memory(right_size(d, h)), *down = memory(right_size(h, d));
  float *sums = memory(parts * size * 8), *more = sums + parts * size;
  pack_right(up, fc, d, h, 1, d);
  pack_right(back, proj, d, h, 0, h);
  pack_right(down, fc, h, d, 0, d);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    half *rows = memory(32 * UP(d, 32) * 4), *grads = rows + 32 * UP(d, 32), *wide = memory(32 * hp * 2);
    float *z = memory(32 * hp * 8), *dz = z + 32 * hp;
    memset(z, 0, 32 * hp * 8);
    half *x_turned = memory((size_t)SPAN * UP(d, 16) * 4), *g_turned = x_turned + SPAN * UP(d, 16);
    half *dz_pairs = memory((size_t)SPAN * UP(h, 16) * 4), *a_pairs = dz_pairs + SPAN * UP(h, 16);
#pragma omp for schedule(static)
    for (int part = 0; part < parts; part++) {
      memset(sums + part * size, 0, size * 4);
      memset(more + part * size, 0, size * 4);
      for (int start = part * PART; start < LESS(n, (part + 1) * PART); start += SPAN) {
        for (int i = 0; i < deep; i++) {
          const int at = start + i * 32, count = LESS(32, n - at);
          const float *mine = x + (int64_t)at * d, *theirs = g + (int64_t)at * d;
          turn_rows(x_turned + i * TILE, mine, count, d, d, deep * TILE);
          turn_rows(g_turned + i * TILE, theirs, count, d, d, deep * TILE);
          if (count > 0) {
            round_rows(rows, mine, 32, count, d, d);
            round_rows(grads, theirs, 32, count, d, d);
            times(z, hp, 32, rows, up, d, h);
            times(dz, hp, 32, grads, back, d, h);
            for (int to = 0; to < 32 * hp; to += 32) {
              __m512 by[2];
              UNROLL for (int p = 0; p < 2; p++) {
                vec v = *(vec *)(z + to + p * 16), s = choose(v > splat(0.f), splat(1.f), splat(slope)), a = v * s;
                vec c = *(vec *)(dz + to + p * 16) * (a + a) * s;
                *(vec *)(z + to + p * 16) = a * a;
                *(vec *)(dz + to + p * 16) = c;
                by[p] = (__m512)c;
              }
              _mm512_store_si512(wide + to, (__m512i)_mm512_cvtne2ps_pbh(by[1], by[0]));
            }
            times(dx + (int64_t)at * d, d, count, wide, down, h, d);
          }
          pair_rows(a_pairs + i * TILE, z, count, h, hp, deep * TILE);
          pair_rows(dz_pairs + i * TILE, dz, count, h, hp, deep * TILE);
        }
        add_outer(sums + part * size, x_turned, dz_pairs, d, h, deep);
        add_outer(more + part * size, g_turned, a_pairs, d, h, deep);
      }
    }
    add_parts(dfc, sums, parts, d, h, 1);
    add_parts(dproj, more, parts, d, h, 0);
    free(rows), free(wide), free(z), free(x_turned), free(dz_pairs);
    _tile_release();
  }
  free(up), free(back), free(down), free(sums);
}

/* 1 / x for x >= 1, to 23 bits */
static inline __m512 inverse(__m512 x) {
  const __m512 r = _mm512_rcp14_ps(x);
  return r * (_mm512_set1_ps(2.f) - x * r);
}

/* z (width): uncapped logits, overwritten by the gradient of sum_k weights[k] * -ln softmax(cap tanh(z / cap))[target],
   which is returned; powers: room for `width` numbers */
static float softmax_row(float *z, float *powers, const int64_t *targets, const float *weights, float cap, int width,
                         int count) {
  const float scale = cap > 0.f ? cap : 1.f;
  const __m512 one = _mm512_set1_ps(1.f), sign = _mm512_set1_ps(-0.f), twice = _mm512_set1_ps(2.f * LOG2E / scale);
  __m512 high = _mm512_set1_ps(-INFINITY), sum = {};
  for (int i = 0; i < width; i += 16) {
    __m512 x = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), first16(width - i), z + i);
    if (cap > 0.f) {
      const __m512 e = (__m512)exp2v((vec)_mm512_or_ps(x * twice, sign));
      x = _mm512_or_ps((one - e) * inverse(one + e), _mm512_and_ps(x, sign));
      if (i + 16 > width) x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), first16(width - i), x);
      _mm512_mask_storeu_ps(z + i, first16(width - i), x);
    }
    high = _mm512_max_ps(x, high);
  }
  const float top = _mm512_reduce_max_ps(high);
  for (int i = 0; i < width; i += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(first16(width - i), z + i);
    __m512 e = (__m512)exp2v((vec)((x - _mm512_set1_ps(top)) * _mm512_set1_ps(scale * LOG2E)));
    e = _mm512_maskz_mov_ps(first16(width - i), e);
    _mm512_mask_storeu_ps(powers + i, first16(width - i), e);
    sum += e;
  }
  const float all = _mm512_reduce_add_ps(sum), lse = scale * top + logf(all);
  float loss = 0.f, weight = 0.f;
  for (int k = 0; k < count; k++) {
    weight += weights[k];
    loss += weights[k] * (lse - scale * z[targets[k]]);
  }
  const __m512 share = _mm512_set1_ps(weight / all);
  for (int i = 0; i < width; i += 16) {
    const __m512 t = _mm512_maskz_loadu_ps(first16(width - i), z + i);
    __m512 e = _mm512_maskz_loadu_ps(first16(width - i), powers + i) * share;
    if (cap > 0.f) e *= one - t * t;
    _mm512_mask_storeu_ps(powers + i, first16(width - i), e);
  }
  for (int k = 0; k < count; k++) {
    const float t = z[targets[k]];
    powers[targets[k]] -= weights[k] * (cap > 0.f ? 1.f - t * t : 1.f);
  }
  memcpy(z, powers, (size_t)width * 4);
  return loss;
}

#define CHUNK 256 /* tokens whose rounded logits exist at a time */

/* Each token's loss as in `softmax_row` of logits hidden head^T (+ bias); gradients by hidden (n, d), head (v, d) and
   bias (v; null without a bias). weights, targets (n, count). amounts (n, few) are added to the logits of `raised`. */
void loss(const float *hidden, const float *head, const float *bias, const int64_t *targets, const float *weights,
          const int64_t *raised, const float *amounts, float *losses, float *d_hidden, float *d_head, float *d_bias,
          float *d_amounts, float cap, int n, int d, int v, int count, int few, int threads) {
  const int vp = UP(v, 32), dp = UP(d, 16), deep = CHUNK / 32;
  half *right = memory(right_size(d, v)), *back = memory(right_size(v, d));
  half *left = memory((size_t)vp * CHUNK * 2), *pairs_of = memory((size_t)dp * CHUNK * 2);
  float *sums = memory((size_t)vp * dp * 4);
  pack_right(right, head, d, v, 1, d);
  pack_right(back, head, v, d, 0, d);
  if (d_bias) memset(d_bias, 0, (size_t)v * 4);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    half *rows = memory(32 * UP(d, 32) * 2), *slopes = memory((size_t)vp * 32 * 2);
    float *z = memory((size_t)vp * 32 * 4), *powers = memory((size_t)vp * 4);
    memset(z, 0, (size_t)vp * 32 * 4);
#pragma omp for schedule(static)
    for (int i = 0; i < vp; i++) memset(sums + (int64_t)i * dp, 0, (size_t)dp * 4);
    for (int start = 0; start < n; start += CHUNK) {
#pragma omp for schedule(static)
      for (int part = 0; part < deep; part++) {
        const int at = start + part * 32, tokens = n - at < 0 ? 0 : LESS(32, n - at);
        round_rows(rows, hidden + (int64_t)at * d, 32, tokens, d, d);
        pair_rows(pairs_of + part * TILE, hidden + (int64_t)at * d, tokens, d, d, deep * TILE);
        times(z, vp, 32, rows, right, d, v);
        for (int i = 0; i < tokens; i++) {
          float *row = z + (int64_t)i * vp;
          if (bias)
            for (int j = 0; j < v; j++) row[j] += bias[j];
          const int64_t token = at + i;
          for (int j = 0; j < few; j++) row[raised[token * few + j]] += amounts[token * few + j];
          losses[token] = softmax_row(row, powers, targets + token * count, weights + token * count, cap, v, count);
          for (int j = 0; j < few; j++) d_amounts[token * few + j] = row[raised[token * few + j]];
        }
        for (int i = tokens; i < 32; i++) memset(z + (int64_t)i * vp, 0, (size_t)v * 4);
        turn_rows(left + part * TILE, z, 32, v, vp, deep * TILE);
        if (!tokens) continue;
        for (int j = 0; j < vp; j += 32) /* as tiles on the left */
          for (int i = 0; i < 32; i++)
            _mm512_store_si512(slopes + j * 32 + i * 32, rounded(z + (int64_t)i * vp + j, 32));
        float *to = d_hidden + (int64_t)at * d, edge[32 * 32] __attribute__((aligned(64)));
        for (int j = 0; j < d; j += 32) {
          const int wide = d - j > 16 ? 2 : 1, whole = tokens == 32 && d - j >= 16 * wide;
          const int64_t beside = (int64_t)vp / 32 * TILE;
          multiply(slopes, 32, 2 * TILE, TILE, back + j / 16 * beside, beside, vp / 32, whole ? to + j : edge,
                   whole ? d : 32, 2, wide, 0);
          if (!whole)
            for (int i = 0; i < tokens; i++)
              memcpy(d_hidden + (int64_t)(at + i) * d + j, edge + i * 32, (size_t)LESS(32, d - j) * 4);
        }
      }
#pragma omp for schedule(static)
      for (int i = 0; i < vp; i += 32) {
        const half *slopes_of = left + (int64_t)i / 16 * deep * TILE;
        add_outer(sums + (int64_t)i * dp, slopes_of, pairs_of, LESS(32, UP(v, 16) - i), d, deep);
        if (d_bias)
          for (int j = i; j < LESS(v, i + 32); j++)
            for (int p = 0; p < CHUNK; p++) {
              const half top = slopes_of[((j - i) / 16 * deep + p / 32) * TILE + j % 16 * 32 + p % 32];
              const uint32_t bits = (uint32_t)top << 16;
              float slope;
              memcpy(&slope, &bits, 4);
              d_bias[j] += slope;
            }
      }
    }
#pragma omp for schedule(static)
    for (int i = 0; i < v; i++) memcpy(d_head + (int64_t)i * d, sums + (int64_t)i * dp, (size_t)d * 4);
    free(rows), free(slopes), free(z), free(powers);
    _tile_release();
  }
  free(right), free(back), free(left), free(pairs_of), free(sums);
}

/* to [32 / 16][16][32] at each 32 columns: x (32, width) rounded, as tiles on the left */
static void left_tiles(half *to, const float *x, int width, int64_t ld) {
  for (int j = 0; j < width; j += 32)
    for (int i = 0; i < 32; i++) _mm512_store_si512(to + j * 32 + i * 32, rounded(x + i * ld + j, 32));
}

/* the lanes of the keys j to j + 15 that are low to high */
static inline __mmask16 seen(int j, int low, int high) {
  return (__mmask16)(first16(high + 1 - j) & ~first16(low - j));
}

/* Attention as in `attention`: q (batch, queries, heads, d), k and v (batch, length, kv_heads, d); query i sees the
   keys first[i] <= j <= i. The scores of 32 queries exist at a time. */
void attention_forward(const float *q, const float *k, const float *v, const int32_t *first, float *out, float *lse,
                       int batch, int length, int queries, int heads, int kv_heads, int d, int threads) {
  const int padded = UP(length, 32), groups = heads / kv_heads, shift = length - queries, dp = UP(d, 32);
  const int64_t beside = (int64_t)padded / 32 * TILE, ldk = (int64_t)kv_heads * d, ldq = (int64_t)heads * d;
  const float scale = LOG2E / sqrtf(d);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    half *keys = memory((size_t)padded * dp * 4), *values = keys + (size_t)padded * dp;
    half *rows = memory(32 * dp * 2), *weights = memory((size_t)padded * 64);
    float *score = memory((size_t)padded * 128), *sums = memory(32 * dp * 4), total[32];
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < batch * kv_heads; unit++) {
      const int b = unit / kv_heads, kv = unit % kv_heads;
      pack_right(keys, k + ((int64_t)b * length * kv_heads + kv) * d, d, length, 1, ldk);
      pack_right(values, v + ((int64_t)b * length * kv_heads + kv) * d, length, d, 0, ldk);
      const int32_t *low_of = first ? first + (int64_t)b * length : 0;
      for (int g = 0; g < groups; g++)
        for (int start = 0; start < queries; start += 32) {
          const int h = kv * groups + g, count = LESS(32, queries - start), place = shift + start;
          const int64_t at = ((int64_t)b * queries + start) * heads + h;
          const int begin = low_of ? low_of[place] / 32 * 32 : 0, wide = UP(place + count, 32) - begin;
          round_rows(rows, q + at * d, 32, count, d, ldq);
          for (int j = 0; j < wide; j += 32)
            multiply(rows, dp, 32, 16 * dp, keys + (int64_t)(begin + j) / 16 * dp * 16, (int64_t)dp * 16, dp / 32,
                     score + j, padded, 2, begin + j + 16 < UP(length, 16) ? 2 : 1, 0);
          for (int i = 0; i < count; i++) {
            float *row = score + (int64_t)i * padded;
            const int high = place + i - begin, low = low_of ? low_of[place + i] - begin : 0;
            __m512 top = _mm512_set1_ps(-1e30f), sum = {};
            for (int j = low / 16 * 16; j <= high; j += 16)
              top = _mm512_mask_max_ps(top, seen(j, low, high), top, _mm512_load_ps(row + j));
            const float most = _mm512_reduce_max_ps(top) * scale;
            for (int j = 0; j < wide; j += 16) {
              const __mmask16 m = seen(j, low, high);
              __m512 e = {};
              if (m) e = _mm512_maskz_mov_ps(m, (__m512)exp2v((vec)_mm512_maskz_mov_ps(
                             m, _mm512_load_ps(row + j) * _mm512_set1_ps(scale) - _mm512_set1_ps(most))));
              sum += e;
              _mm512_store_ps(row + j, e);
            }
            total[i] = _mm512_reduce_add_ps(sum);
            lse[((int64_t)b * heads + h) * queries + start + i] = most + log2f(total[i]);
          }
          left_tiles(weights, score, wide, padded);
          for (int j = 0; j < d; j += 32)
            multiply(weights, 32, 2 * TILE, TILE, values + j / 16 * beside + (int64_t)begin / 32 * TILE, beside,
                     wide / 32, sums + j, dp, 2, d - j > 16 ? 2 : 1, 0);
          for (int i = 0; i < count; i++) {
            const __m512 share = _mm512_set1_ps(1.f / total[i]);
            for (int j = 0; j < d; j += 16)
              _mm512_mask_storeu_ps(out + at * d + i * ldq + j, first16(d - j),
                                    _mm512_load_ps(sums + i * dp + j) * share);
          }
        }
    }
    free(keys), free(rows), free(weights), free(score), free(sums);
    _tile_release();
  }
}

void attention_backward(const float *grad, const float *q, const float *k, const float *v, const int32_t *first,
                        const float *out, const float *lse, float *dq, float *dk, float *dv, int batch, int length,
                        int queries, int heads, int kv_heads, int d, int threads) {
  const int padded = UP(length, 32), groups = heads / kv_heads, shift = length - queries, dp = UP(d, 32);
  const int64_t beside = (int64_t)padded / 32 * TILE, ldk = (int64_t)kv_heads * d, ldq = (int64_t)heads * d;
  const float scale = 1.f / sqrtf(d);
#pragma omp parallel num_threads(threads)
  {
    use_tiles();
    const size_t size = (size_t)padded * dp;
    half *keys = memory(size * 6), *values = keys + size, *back = values + size;
    float *dkeys = memory(size * 8), *dvalues = dkeys + size;
    half *rows = memory(32 * dp * 8), *grads = rows + 32 * dp, *row_pairs = grads + 32 * dp;
    half *grad_pairs = row_pairs + 32 * dp;
    half *weights = memory((size_t)padded * 64), *turned = memory((size_t)padded * 64);
    float *score = memory((size_t)padded * 256), *slope = score + (size_t)padded * 32, *sums = memory(32 * dp * 4);
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < batch * kv_heads; unit++) {
      const int b = unit / kv_heads, kv = unit % kv_heads;
      const int64_t own = ((int64_t)b * length * kv_heads + kv) * d;
      pack_right(keys, k + own, d, length, 1, ldk);
      pack_right(values, v + own, d, length, 1, ldk);
      pack_right(back, k + own, length, d, 0, ldk);
      memset(dkeys, 0, size * 8);
      const int32_t *low_of = first ? first + (int64_t)b * length : 0;
      for (int g = 0; g < groups; g++)
        for (int start = 0; start < queries; start += 32) {
          const int h = kv * groups + g, count = LESS(32, queries - start), place = shift + start;
          const int64_t at = ((int64_t)b * queries + start) * heads + h;
          const int begin = low_of ? low_of[place] / 32 * 32 : 0, wide = UP(place + count, 32) - begin;
          round_rows(rows, q + at * d, 32, count, d, ldq);
          round_rows(grads, grad + at * d, 32, count, d, ldq);
          pair_rows(row_pairs, q + at * d, count, d, ldq, TILE);
          pair_rows(grad_pairs, grad + at * d, count, d, ldq, TILE);
          for (int j = 0; j < wide; j += 32) {
            const int64_t tile = (int64_t)(begin + j) / 16 * dp * 16;
            const int two = begin + j + 16 < UP(length, 16) ? 2 : 1;
            multiply(rows, dp, 32, 16 * dp, keys + tile, (int64_t)dp * 16, dp / 32, score + j, padded, 2, two, 0);
            multiply(grads, dp, 32, 16 * dp, values + tile, (int64_t)dp * 16, dp / 32, slope + j, padded, 2, two, 0);
          }
          for (int i = 0; i < 32; i++) {
            float *row = score + (int64_t)i * padded, *by = slope + (int64_t)i * padded;
            const int high = i < count ? place + i - begin : -1;
            const int low = low_of && i < count ? low_of[place + i] - begin : 0;
            __m512 delta = {};
            if (i < count)
              for (int j = 0; j < d; j += 16)
                delta += floats(grad + at * d + i * ldq + j, d - j) * floats(out + at * d + i * ldq + j, d - j);
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(delta));
            const __m512 norm = _mm512_set1_ps(i < count ? lse[((int64_t)b * heads + h) * queries + start + i] : 0.f);
            for (int j = 0; j < wide; j += 16) {
              const __mmask16 m = seen(j, low, high);
              __m512 e = {}, s = {};
              if (m) {
                e = _mm512_maskz_mov_ps(m, (__m512)exp2v((vec)_mm512_maskz_mov_ps(
                        m, _mm512_load_ps(row + j) * _mm512_set1_ps(scale * LOG2E) - norm)));
                s = _mm512_maskz_mov_ps(m, e * (_mm512_load_ps(by + j) - mean));
              }
              _mm512_store_ps(row + j, e);
              _mm512_store_ps(by + j, s);
            }
          }
          left_tiles(weights, slope, wide, padded);
          for (int j = 0; j < d; j += 32)
            multiply(weights, 32, 2 * TILE, TILE, back + j / 16 * beside + (int64_t)begin / 32 * TILE, beside,
                     wide / 32, sums + j, dp, 2, d - j > 16 ? 2 : 1, 0);
          for (int i = 0; i < count; i++)
            for (int j = 0; j < d; j += 16)
              _mm512_mask_storeu_ps(dq + at * d + i * ldq + j, first16(d - j),
                                    _mm512_load_ps(sums + i * dp + j) * _mm512_set1_ps(scale));
          turn_rows(turned, slope, 32, wide, padded, TILE);
          for (int i = 0; i < wide; i += 32)
            for (int j = 0; j < d; j += 32)
              multiply(turned + i / 16 * TILE, 32, TILE, TILE, row_pairs + j / 16 * TILE, TILE, 1,
                       dkeys + (int64_t)(begin + i) * dp + j, dp, 2, d - j > 16 ? 2 : 1, 1);
          turn_rows(turned, score, 32, wide, padded, TILE);
          for (int i = 0; i < wide; i += 32)
            for (int j = 0; j < d; j += 32)
              multiply(turned + i / 16 * TILE, 32, TILE, TILE, grad_pairs + j / 16 * TILE, TILE, 1,
                       dvalues + (int64_t)(begin + i) * dp + j, dp, 2, d - j > 16 ? 2 : 1, 1);
        }
      for (int i = 0; i < length; i++)
        for (int j = 0; j < d; j += 16) {
          _mm512_mask_storeu_ps(dk + own + i * ldk + j, first16(d - j),
                                _mm512_load_ps(dkeys + (int64_t)i * dp + j) * _mm512_set1_ps(scale));
          _mm512_mask_storeu_ps(dv + own + i * ldk + j, first16(d - j), _mm512_load_ps(dvalues + (int64_t)i * dp + j));
        }
    }
    free(keys), free(dkeys), free(rows), free(weights), free(turned), free(score), free(sums);
    _tile_release();
  }
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernels. Raises native.Unavailable."""
    library = native.library(SOURCE, (), folder)
    if library.permission():
        raise native.Unavailable("the system does not grant the tiles")
    return library


def product(x: Tensor, w: Tensor, out: Tensor, turned: bool = False) -> Tensor:
    """out (n, m) = x (n, k) @ w, with w (k, m), or (m, k) when `turned`; all contiguous float32. Returns out."""
    (rows, inner), columns = x.shape, out.shape[1]
    tensors = map(native.pointer, (x, w, out))
    load().product(*tensors, rows, inner, columns, int(turned), torch.get_num_threads())
    return out


def outer(g: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """out (m, k) = g (n, m)^T @ x (n, k); all contiguous float32. Returns out."""
    (rows, height), width = g.shape, x.shape[1]
    load().outer(*map(native.pointer, (g, x, out)), rows, height, width, torch.get_num_threads())
    return out


def weighted_loss(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    cap: float,
    raised: Raised | None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Weighted loss of each token (N,), and the gradients of their sum by hidden, head, bias and the amounts raised.

    hidden (N, d), head (V, d), bias (V,) or None, targets int64 (N, K), weights (N, K), raised (N, n) or None, as in
    `model.loss`.
    """
    (count, width), pieces = hidden.shape, len(head)
    hidden, head, targets, weights = (part.contiguous() for part in (hidden, head, targets, weights))
    tokens, amounts = (None, None) if raised is None else (part.contiguous() for part in raised)
    losses = hidden.new_empty(count)
    d_hidden, d_head = torch.empty_like(hidden), torch.empty_like(head)
    d_bias = None if bias is None else torch.empty_like(bias)
    d_amounts = None if amounts is None else torch.empty_like(amounts)
    given = hidden, head, bias, targets, weights, tokens, amounts, losses, d_hidden, d_head, d_bias, d_amounts
    few = 0 if amounts is None else amounts.shape[1]
    sizes = count, width, pieces, targets.shape[1], few, torch.get_num_threads()
    load().loss(*map(native.pointer, given), ctypes.c_float(cap), *sizes)
    return losses, (d_hidden, d_head, d_bias, d_amounts)


@torch.library.custom_op("pgolf::tiled_attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `attention.attention`, with every factor of a product rounded."""
    (batch, queries, heads, width), (_, length, kv_heads, _) = q.shape, k.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    first = None if first is None else first.contiguous()
    y, lse = torch.empty_like(q), q.new_empty(batch, heads, queries)
    tensors = map(native.pointer, (q, k, v, first, y, lse))
    load().attention_forward(*tensors, batch, length, queries, heads, kv_heads, width, torch.get_num_threads())
    return y, lse


@torch.library.custom_op("pgolf::tiled_attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v, shaped like them; the arguments are as in `attention`."""
    (batch, queries, heads, width), (_, length, kv_heads, _) = q.shape, k.shape
    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    first = None if first is None else first.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tensors = map(native.pointer, (grad, q, k, v, first, y, lse, *gradients))
    sizes = batch, length, queries, heads, kv_heads, width, torch.get_num_threads()
    load().attention_backward(*tensors, *sizes)
    return gradients


@torch.library.custom_op("pgolf::tiled_linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., k) @ weight (m, k)^T."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(len(flat), len(weight))
    return product(flat, weight.contiguous(), out, turned=True).view(*x.shape[:-1], len(weight))


@torch.library.custom_op("pgolf::tiled_linear_backward", mutates_args=())
def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and weight."""
    g, flat = grad.reshape(-1, grad.shape[-1]).contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
    dx, dw = x.new_empty(x.shape), x.new_empty(weight.shape)
    product(g, weight.contiguous(), dx.view(flat.shape))
    return dx, outer(g, flat, dw)


@torch.library.custom_op("pgolf::tiled_mlp", mutates_args=())
def mlp(x: Tensor, fc: Tensor, proj: Tensor, slope: float) -> Tensor:
    """a(x @ fc^T)^2 @ proj^T with a the leaky rectifier of `slope`; x (..., d), fc (h, d), proj (d, h)."""
    x, fc, proj = x.contiguous(), fc.contiguous(), proj.contiguous()
    out, (hidden, width) = x.new_empty(x.shape), fc.shape
    sizes = x.numel() // width, width, hidden, torch.get_num_threads()
    load().mlp(*map(native.pointer, (x, fc, proj, out)), ctypes.c_float(slope), *sizes)
    return out


@torch.library.custom_op("pgolf::tiled_mlp_backward", mutates_args=())
def mlp_backward(grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, fc and proj."""
    grad, x, fc, proj = grad.contiguous(), x.contiguous(), fc.contiguous(), proj.contiguous()
    gradients, (hidden, width) = (x.new_empty(x.shape), fc.new_empty(fc.shape), proj.new_empty(proj.shape)), fc.shape
    tensors = map(native.pointer, (grad, x, fc, proj, *gradients))
    sizes = x.numel() // width, width, hidden, torch.get_num_threads()
    load().mlp_backward(*tensors, ctypes.c_float(slope), *sizes)
    return gradients


def _save_linear(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_linear(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return linear_backward(grad, *ctx.saved_tensors)


def _save_mlp(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.slope = inputs[3]


def _differentiate_mlp(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*mlp_backward(grad, *ctx.saved_tensors, ctx.slope), None)


linear.register_autograd(_differentiate_linear, setup_context=_save_linear)
mlp.register_autograd(_differentiate_mlp, setup_context=_save_mlp)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate_attention(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*attention_backward(grad, *ctx.saved_tensors), None)


attention.register_autograd(_differentiate_attention, setup_context=_save_attention)
