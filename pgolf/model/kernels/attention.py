"""Causal attention in C: one pass over the keys, forward and backward, for float32 on a CPU.

Torch's CPU flash kernel runs a matrix product per tile and at head widths of 16 to 64 spends its time around them.
Here queries lie across vector lanes and every product stays in registers, as FlashAttention (arXiv 2307.08691)
tiles it: 8,192 tokens of 4 heads of 16 take a quarter of torch's time (benchmarks/results/training_speed.md). Query i
sees the keys first[i] <= j <= i, so documents and sliding windows cost only the keys that are seen. There may be fewer
queries than keys; the queries are then the last positions.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.model.kernels import native
from pgolf.model.kernels.operator import operator

SOURCE = (
    native.VECTORS
    + r"""
#define D HEAD_DIM
#define DLANES (D % LANES ? LANES / 2 : LANES)
typedef float dvec __attribute__((vector_size(DLANES * 4)));
typedef float unaligned __attribute__((vector_size(DLANES * 4), aligned(4)));
typedef float uvec __attribute__((vector_size(BYTES), aligned(4)));
#define DV (D / DLANES)
/* Q queries lie in VECS vectors; K keys are a block. */
#define VECS (REGISTERS == 32 && BYTES == 64 ? 2 : 4)
#define Q (VECS * LANES)
#define K 32
/* Rows of sums of so many vectors that compilers keep in the registers. */
#define TALL(width) ((REGISTERS == 32 ? 2 : 1) * ((width) > 3 ? 2 : 4))
#define ROWS TALL(VECS)

typedef struct { vec at[VECS]; } group;

/* out[j][lanes] = sum_d rows[j][d] * columns[d][lanes], j < K */
static inline void products(group *restrict out, const float *restrict rows, const group *restrict columns) {
  for (int j = 0; j < K; j += ROWS) {
    vec a[ROWS][VECS] = {};
#pragma GCC unroll 2
    for (int d = 0; d < D; d++) {
      const group c = columns[d];
      UNROLL for (int r = 0; r < ROWS; r++) {
        vec b = splat(rows[(j + r) * D + d]);
        UNROLL for (int n = 0; n < VECS; n++) a[r][n] += b * c.at[n];
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int n = 0; n < VECS; n++) out[j + r].at[n] = a[r][n];
  }
}

/* sums[d][lanes] += sum_j weights[j][lanes] * rows[j][d] */
static inline void gather(group *restrict sums, const group *restrict weights, const float *restrict rows) {
  for (int d = 0; d < D; d += ROWS) {
    vec a[ROWS][VECS];
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int n = 0; n < VECS; n++) a[r][n] = sums[d + r].at[n];
#pragma GCC unroll 2
    for (int j = 0; j < K; j++) {
      const group w = weights[j];
      UNROLL for (int r = 0; r < ROWS; r++) {
        vec b = splat(rows[j * D + d + r]);
        UNROLL for (int n = 0; n < VECS; n++) a[r][n] += b * w.at[n];
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int n = 0; n < VECS; n++) sums[d + r].at[n] = a[r][n];
  }
}

/* sums[j][v] += sum_i weights[j][i] * rows[i][v], i < Q, for TALL(WIDTH) keys and WIDTH vectors of the head. With five
   vectors and 16 registers compilers keep the sums there only where the loop is not unrolled. */
#define SCATTER(WIDTH, TIMES) \
  static inline void scatter_##WIDTH(float *restrict sums, const float *restrict w, const float *restrict rows) { \
    dvec a[TALL(WIDTH)][WIDTH]; \
    UNROLL for (int r = 0; r < TALL(WIDTH); r++) \
      UNROLL for (int n = 0; n < WIDTH; n++) a[r][n] = *(dvec *)(sums + r * D + n * DLANES); \
    _Pragma(TIMES) for (int i = 0; i < Q; i++) { \
      dvec x[WIDTH]; \
      UNROLL for (int n = 0; n < WIDTH; n++) x[n] = *(const dvec *)(rows + i * D + n * DLANES); \
      UNROLL for (int r = 0; r < TALL(WIDTH); r++) \
        UNROLL for (int n = 0; n < WIDTH; n++) a[r][n] += w[r * Q + i] * x[n]; \
    } \
    UNROLL for (int r = 0; r < TALL(WIDTH); r++) \
      UNROLL for (int n = 0; n < WIDTH; n++) *(dvec *)(sums + r * D + n * DLANES) = a[r][n]; \
  }
SCATTER(1, "GCC unroll 2") SCATTER(2, "GCC unroll 2") SCATTER(3, "GCC unroll 2") SCATTER(4, "GCC unroll 2")
#if REGISTERS == 32
SCATTER(5, "GCC unroll 2")
#else
SCATTER(5, "GCC unroll 1")
#endif

static inline void scatter(float *restrict sums, const group *restrict weights, const float *restrict rows) {
#define PASS(WIDTH, from) \
  for (int j = 0; j < K; j += TALL(WIDTH)) \
    scatter_##WIDTH(sums + j * D + (from) * DLANES, (const float *)(weights + j), rows + (from) * DLANES);
  const int fives = DV % 4 == 1 && DV > 4;
  for (int v = 0; v + 4 <= DV - fives * 5; v += 4) PASS(4, v)
  if (fives) PASS(5, DV - 5)
  if (DV % 4 == 1 && !fives) PASS(1, DV - 1)
  if (DV % 4 == 2) PASS(2, DV - 2)
  if (DV % 4 == 3) PASS(3, DV - 3)
}

static void pack(float *to, const float *from, int rows, int padded, int64_t stride) {
  for (int i = 0; i < rows; i++) memcpy(to + i * D, from + i * stride, D * 4);
  memset(to + rows * D, 0, (size_t)(padded - rows) * D * 4);
}

#ifndef HEADS /* `heads` computes here what it does to the heads before and after */
typedef void around;
#define ENTER(x, position, gain)
#define LEAVE(y, own, row)
#define LEAVE_BACK(g, y, own, by_own, row)
#define ENTER_BACK(g, x, position, gain) 0.f
#define KEEP(by_gain)
#endif

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* to[c][r] = scale * from[r][c] for LANES rows and columns, in registers: log2(LANES) times every row is shuffled with
   the one half of them further on. Element by element it made a forward pass 3 to 8% slower. */
static inline void turn_tile(float *restrict to, const float *restrict from, int ldt, int ldf, float scale) {
  vec a[LANES], b[LANES];
  UNROLL for (int r = 0; r < LANES; r++) a[r] = *(const uvec *)(from + r * ldf) * scale;
  UNROLL for (int n = 1; n < LANES; n *= 2) {
    UNROLL for (int r = 0; r < LANES / 2; r++) {
      b[2 * r] = SHUFFLE(a[r], a[r + LANES / 2], LOW);
      b[2 * r + 1] = SHUFFLE(a[r], a[r + LANES / 2], HIGH);
    }
    UNROLL for (int r = 0; r < LANES; r++) a[r] = b[r];
  }
  UNROLL for (int r = 0; r < LANES; r++) *(uvec *)(to + r * ldt) = a[r];
}

/* Where the blocks of `turn_tile` begin along a head; the last two overlap where its width is no multiple of LANES. */
#define BLOCKS(d) for (int d = 0, last = D - LANES; d < D; d = d < last && d + LANES > last ? last : d + LANES)

static void transpose(group *to, const float *rows, float scale) {
#if HEAD_DIM >= LANES
  BLOCKS(d)
    for (int i = 0; i < Q; i += LANES) turn_tile((float *)(to + d) + i, rows + i * D + d, Q, D, scale);
#else
  for (int d = 0; d < D; d++)
    for (int i = 0; i < Q; i++) ((float *)&to[d])[i] = rows[i * D + d] * scale;
#endif
}

/* rows (Q, D) of sums */
static void transpose_back(float *rows, const group *sums) {
#if HEAD_DIM >= LANES
  BLOCKS(d)
    for (int i = 0; i < Q; i += LANES) turn_tile(rows + i * D + d, (const float *)(sums + d) + i, D, Q, 1.f);
#else
  for (int d = 0; d < D; d++)
    for (int i = 0; i < Q; i++) rows[i * D + d] = ((const float *)&sums[d])[i];
#endif
}

/* query i sees the keys first[i] <= j <= i */
static inline ivec seen(const ivec *query, const ivec *first, int part, int j) {
  ivec key = (ivec){} + j;
  return (key <= query[part]) & (key >= first[part]);
}

static void edges(ivec *query, ivec *low, const int32_t *first, int start, int length) {
  for (int i = 0; i < Q; i++) {
    ((int32_t *)query)[i] = start + i;
    ((int32_t *)low)[i] = first && start + i < length ? first[start + i] : 0;
  }
}

/* ldq, ldk: from token to token of q, and of k and v */
void attention_forward(const float *q, const float *k, const float *v, const int32_t *first, const around *t,
                       float *out, float *lse, int batch, int length, int queries, int heads, int kv_heads, int ldq,
                       int ldk, int threads) {
  const int padded = (length + K - 1) / K * K, groups = heads / kv_heads, shift = length - queries;
  const float scale = LOG2E / sqrtf(D);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int unit = 0; unit < batch * kv_heads; unit++) {
    const int b = unit / kv_heads, kv = unit % kv_heads;
    float *keys = aligned_alloc(64, (size_t)padded * D * 8), *values = keys + padded * D;
    pack(keys, k + (int64_t)b * length * ldk + kv * D, length, padded, ldk);
    pack(values, v + (int64_t)b * length * ldk + kv * D, length, padded, ldk);
    for (int i = 0; i < length; i++) ENTER(keys + i * D, i, 1.f);
    const int32_t *low_of = first ? first + (int64_t)b * length : 0;
    for (int g = 0; g < groups; g++)
      for (int start = 0; start < queries; start += Q) {
        const int h = kv * groups + g, count = queries - start < Q ? queries - start : Q, place = shift + start;
        const int64_t row = (int64_t)b * queries + start, at = row * heads + h;
        float rows[Q * D] __attribute__((aligned(64)));
        group columns[D], sums[D], score[K];
        ivec query[VECS], low[VECS];
        pack(rows, q + row * ldq + h * D, count, Q, ldq);
        for (int i = 0; i < count; i++) ENTER(rows + i * D, place + i, t->gain[h]);
        transpose(columns, rows, scale);
        memset(sums, 0, sizeof sums);
        edges(query, low, low_of, place, length);
        vec top[VECS], total[VECS] = {};
        for (int part = 0; part < VECS; part++) top[part] = splat(-1e30f);
        const int begin = low_of ? low_of[place] / K * K : 0;
        const int clear = low_of ? low_of[place + count - 1] : 0;
        for (int block = begin; block < place + count; block += K) {
          products(score, keys + block * D, columns);
          const int edge = block + K > place || block < clear;
          for (int part = 0; part < VECS; part++) {
            vec high = top[part];
            if (edge)
              for (int j = 0; j < K; j++)
                score[j].at[part] = choose(seen(query, low, part, block + j), score[j].at[part], splat(-1e30f));
            for (int j = 0; j < K; j++) high = vmax(high, score[j].at[part]);
            vec shrink = exp2v(top[part] - high), sum = total[part] * shrink;
            for (int j = 0; j < K; j++) {
              vec p = exp2v(score[j].at[part] - high);
              if (edge) p = choose(seen(query, low, part, block + j), p, splat(0.f));
              sum += p;
              score[j].at[part] = p;
            }
            for (int d = 0; d < D; d++) sums[d].at[part] *= shrink;
            top[part] = high, total[part] = sum;
          }
          gather(sums, score, values + block * D);
        }
        for (int part = 0; part < VECS; part++) {
          const vec inverse = splat(1.f) / total[part];
          for (int d = 0; d < D; d++) sums[d].at[part] *= inverse;
        }
        transpose_back(rows, sums);
        for (int i = 0; i < count; i++) {
          LEAVE(rows + i * D, values + (place + i) * D, row + i);
          memcpy(out + (at + (int64_t)i * heads) * D, rows + i * D, D * 4);
          lse[((int64_t)b * heads + h) * queries + start + i] = ((float *)top)[i] + log2f(((float *)total)[i]);
        }
      }
    free(keys);
  }
}

void attention_backward(const float *grad, const float *q, const float *k, const float *v, const int32_t *first,
                        const around *t, const float *out, const float *lse, float *dq, float *dk, float *dv,
                        int batch, int length, int queries, int heads, int kv_heads, int ldq, int ldk, int threads) {
  const int padded = (length + K - 1) / K * K, groups = heads / kv_heads, shift = length - queries;
  const float scale = 1.f / sqrtf(D);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int unit = 0; unit < batch * kv_heads; unit++) {
    const int b = unit / kv_heads, kv = unit % kv_heads;
    const size_t size = (size_t)padded * D;
    float *keys = aligned_alloc(64, size * 16), *values = keys + size, *dkeys = values + size, *dvalues = dkeys + size;
    const float *own = k + (int64_t)b * length * ldk + kv * D;
    pack(keys, own, length, padded, ldk);
    pack(values, v + (int64_t)b * length * ldk + kv * D, length, padded, ldk);
    for (int i = 0; i < length; i++) ENTER(keys + i * D, i, 1.f);
    memset(dkeys, 0, size * 8);
    const int32_t *low_of = first ? first + (int64_t)b * length : 0;
    for (int g = 0; g < groups; g++) {
      float by_gain = 0.f;
      for (int start = 0; start < queries; start += Q) {
        const int h = kv * groups + g, count = queries - start < Q ? queries - start : Q, place = shift + start;
        const int64_t row = (int64_t)b * queries + start, at = row * heads + h;
        float rows[Q * D] __attribute__((aligned(64))), drows[Q * D] __attribute__((aligned(64)));
        group columns[D], dcolumns[D], sums[D], p[K], ds[K];
        vec norm[VECS] = {}, delta[VECS] = {};
        ivec query[VECS], low[VECS];
        pack(rows, q + row * ldq + h * D, count, Q, ldq);
        for (int i = 0; i < count; i++) ENTER(rows + i * D, place + i, t->gain[h]);
        pack(drows, grad + at * D, count, Q, heads * D);
        transpose(columns, rows, scale * LOG2E);
        memset(sums, 0, sizeof sums);
        edges(query, low, low_of, place, length);
        for (int i = 0; i < count; i++) {
          const float *y = out + (at + (int64_t)i * heads) * D;
          dvec dots = {};
          for (int d = 0; d < D; d += DLANES) dots += *(dvec *)(drows + i * D + d) * *(const unaligned *)(y + d);
          for (int d = 0; d < DLANES; d++) ((float *)delta)[i] += dots[d];
          LEAVE_BACK(drows + i * D, y, values + (place + i) * D, dvalues + (place + i) * D, row + i);
          ((float *)norm)[i] = lse[((int64_t)b * heads + h) * queries + start + i];
        }
        transpose(dcolumns, drows, 1.f);
        const int begin = low_of ? low_of[place] / K * K : 0;
        const int clear = low_of ? low_of[place + count - 1] : 0;
        for (int block = begin; block < place + count; block += K) {
          products(p, keys + block * D, columns);
          products(ds, values + block * D, dcolumns);
          const int edge = block + K > place || block < clear;
          for (int j = 0; j < K; j++)
            for (int part = 0; part < VECS; part++) {
              vec e = exp2v(p[j].at[part] - norm[part]);
              if (edge) e = choose(seen(query, low, part, block + j), e, splat(0.f));
              p[j].at[part] = e;
              ds[j].at[part] = e * (ds[j].at[part] - delta[part]);
            }
          gather(sums, ds, keys + block * D);
          scatter(dkeys + block * D, ds, rows);
          scatter(dvalues + block * D, p, drows);
        }
        for (int d = 0; d < D; d++)
          for (int part = 0; part < VECS; part++) sums[d].at[part] *= scale;
        transpose_back(rows, sums);
        for (int i = 0; i < count; i++) {
          by_gain += ENTER_BACK(rows + i * D, q + (row + i) * ldq + h * D, place + i, t->gain[h]);
          memcpy(dq + (row + i) * ldq + h * D, rows + i * D, D * 4);
        }
      }
      KEEP(by_gain);
    }
    for (int i = 0; i < length; i++) {
      const int64_t to = ((int64_t)b * length + i) * ldk + kv * D;
      for (int d = 0; d < D; d++) dk[to + d] = dkeys[i * D + d] * scale, dv[to + d] = dvalues[i * D + d];
      (void)ENTER_BACK(dk + to, own + i * ldk, i, 1.f);
    }
    free(keys);
  }
}
"""
)


def check(head_dim: int) -> None:
    """Raises native.Unavailable for heads of a width that the kernel does not take."""
    if head_dim % 8:
        raise native.Unavailable(f"head width {head_dim} is not a multiple of 8")


def load(head_dim: int, folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel for heads of this width. Raises native.Unavailable."""
    check(head_dim)
    return native.library(SOURCE, (f"HEAD_DIM={head_dim}",), folder)


@operator("pgolf::attention")
def attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """Causal attention; q (B, L, H, D), k and v (B, T, H_kv, D) float32, first (B, T) int32 or None for zeros.

    The queries are those of the last L of the T positions. Returns y (B, L, H, D) and the base-2 logarithm of each
    softmax's denominator (B, H, L).
    """
    (batch, queries, heads, head_dim), (_, length, kv_heads, _) = q.shape, k.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    first = None if first is None else first.contiguous()
    y, lse = torch.empty_like(q), q.new_empty(batch, heads, queries)
    tensors = map(native.pointer, (q, k, v, first, None, y, lse))
    sizes = batch, length, queries, heads, kv_heads, heads * head_dim, kv_heads * head_dim, torch.get_num_threads()
    load(head_dim).attention_forward(*tensors, *sizes)
    return y, lse


@operator("pgolf::attention_backward")
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v, shaped like them; the arguments are as in `attention`."""
    (batch, queries, heads, head_dim), (_, length, kv_heads, _) = q.shape, k.shape
    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    first = None if first is None else first.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tensors = map(native.pointer, (grad, q, k, v, first, None, y, lse, *gradients))
    sizes = batch, length, queries, heads, kv_heads, heads * head_dim, kv_heads * head_dim, torch.get_num_threads()
    load(head_dim).attention_backward(*tensors, *sizes)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)  # nothing but y gets a gradient: torch would fill one with zeros


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*attention_backward(grad, *ctx.saved_tensors), None)


attention.register_autograd(_differentiate, setup_context=_save)
