"""Matrix products in bfloat16 (`tiles`): linear maps, the MLP and the loss; float32 in and out.

Torch's own bfloat16 products need tensors of that type, and at a small model's widths rounding them takes as long as
the products. Here 32 rows at a time are rounded into the first cache, where the tiles meet them. The MLP is one
function, forward and backward, whose wide activations never leave the second cache: the backward pass computes them
again. Sums over tokens are made in parts of `PART` tokens, whatever the number of threads.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.model.kernels import loss, native, tiles, whole_loss
from pgolf.model.kernels.operator import operator
from pgolf.model.raised_logits import Gradients, Raising

SOURCE = (
    tiles.SOURCE
    + loss.SOURCE.removeprefix(native.VECTORS)
    + whole_loss.RAISED
    + r"""
/* out (n, m) = x (n, k) w; w is (k, m), or with turned (m, k) */
void product(const float *x, const float *w, float *out, int n, int k, int m, int turned, int threads) {
  half *right = memory(right_size(k, m));
  pack_right(right, w, k, m, turned, turned ? k : m);
#pragma omp parallel num_threads(threads)
  {
    begin_tiles();
    half *rows = memory(32 * UP(k, 32) * 2);
#pragma omp for schedule(static)
    for (int i = 0; i < n; i += 32) {
      round_rows(rows, x + (int64_t)i * k, 32, LESS(32, n - i), k, k);
      times(out + (int64_t)i * m, m, LESS(32, n - i), rows, right, k, m);
    }
    free(rows);
    end_tiles();
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
    begin_tiles();
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
    end_tiles();
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
    begin_tiles();
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
    end_tiles();
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
    begin_tiles();
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
    end_tiles();
  }
  free(up), free(back), free(down), free(sums);
}

#define CHUNK 256 /* tokens whose rounded logits exist at a time */

/* to[2][TILE], the second tile `step` numbers on: two tiles on the left, 32 rows of 32 columns, turned */
static inline void turn_tiles(half *to, const half *from, int64_t step) {
  static const int16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                  8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_loadu_si512(low), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  __m512i r[2][16];
  UNROLL for (int i = 0; i < 16; i++) {
    const __m512i a = _mm512_load_si512(from + i * 64), b = _mm512_load_si512(from + i * 64 + 32);
    r[0][i] = _mm512_permutex2var_epi16(a, first, b), r[1][i] = _mm512_permutex2var_epi16(a, second, b);
  }
  for (int k = 0; k < 2; k++) {
    transpose16(r[k]);
    UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to + k * step + i * 32, r[k][i]);
  }
}

/* Each token's loss as in `softmax_row` of logits hidden head^T (+ bias); gradients by hidden (n, d), head (v, d) and
   bias (v; null without a bias). weights, targets (n, count). */
void whole_loss(const float *hidden, const float *head, const float *bias, const int64_t *targets, const float *weights,
                float *losses, float *d_hidden, float *d_head, float *d_bias, const raising *by, float cap, int n,
                int d, int v, int count, int threads) {
  const int vp = UP(v, 32), dp = UP(d, 16), deep = CHUNK / 32;
  half *right = memory(right_size(d, v)), *back = memory(right_size(v, d));
  half *left = memory((size_t)vp * CHUNK * 2), *pairs_of = memory((size_t)dp * CHUNK * 2);
  float *sums = memory((size_t)vp * dp * 4), *raised_sums = room_to_raise(by, n);
  pack_right(right, head, d, v, 1, d);
  pack_right(back, head, v, d, 0, d);
  if (d_bias) memset(d_bias, 0, (size_t)v * 4);
#pragma omp parallel num_threads(threads)
  {
    begin_tiles();
    half *rows = memory(32 * UP(d, 32) * 2), *slopes = memory((size_t)vp * 32 * 2);
    float *z = memory((size_t)vp * 32 * 4), *powers = memory((size_t)(vp + count) * 4);
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
          raise_logits(row, by, token);
          losses[token] = softmax_row(row, powers, targets + token * count, weights + token * count, cap, v, count);
          for (int j = v; j < vp; j++) row[j] = 0.f;
          for (int j = 0; j < vp; j += 32) /* as tiles on the left, while the row is in the first cache */
            _mm512_store_si512(slopes + j * 32 + i * 32, rounded(row + j, 32));
        }
        raise_back(z, vp, by, raised_sums, n, at, tokens);
        for (int i = tokens; i < 32; i++)
          for (int j = 0; j < vp; j += 32) _mm512_store_si512(slopes + j * 32 + i * 32, (__m512i){});
        for (int j = 0; j < vp; j += 32)
          turn_tiles(left + (int64_t)(j / 16 * deep + part) * TILE, slopes + j * 32, deep * TILE);
        if (!tokens) continue;
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
    end_tiles();
  }
  end_of_raising(by, raised_sums, n);
  free(right), free(back), free(left), free(pairs_of), free(sums);
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernels. Raises native.Unavailable."""
    return tiles.library(SOURCE, folder)


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
    *raised: Raising,
) -> tuple[Tensor, Gradients]:
    """As `whole_loss.weighted_loss`, with every factor of a product rounded."""
    return whole_loss.by_kernel(load().whole_loss, hidden, head, bias, targets, weights, cap, raised)


@operator("pgolf::tiled_linear")
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., k) @ weight (m, k)^T."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(len(flat), len(weight))
    return product(flat, weight.contiguous(), out, turned=True).view(*x.shape[:-1], len(weight))


@operator("pgolf::tiled_linear_backward")
def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and weight."""
    g, flat = grad.reshape(-1, grad.shape[-1]).contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
    dx, dw = x.new_empty(x.shape), x.new_empty(weight.shape)
    product(g, weight.contiguous(), dx.view(flat.shape))
    return dx, outer(g, flat, dw)


@operator("pgolf::tiled_mlp")
def mlp(x: Tensor, fc: Tensor, proj: Tensor, slope: float) -> Tensor:
    """a(x @ fc^T)^2 @ proj^T with a the leaky rectifier of `slope`; x (..., d), fc (h, d), proj (d, h)."""
    x, fc, proj = x.contiguous(), fc.contiguous(), proj.contiguous()
    out, (hidden, width) = x.new_empty(x.shape), fc.shape
    sizes = x.numel() // width, width, hidden, torch.get_num_threads()
    load().mlp(*map(native.pointer, (x, fc, proj, out)), ctypes.c_float(slope), *sizes)
    return out


@operator("pgolf::tiled_mlp_backward")
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
