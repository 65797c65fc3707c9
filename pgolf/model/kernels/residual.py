"""The norms of the stream in C, forward and backward, for float32 on a CPU, with the residual sum before and the short
convolution after those that start a half block.

    mixed = mix[0] * x + mix[1] * other + mix[2] * skip      (without skip two rows of mix; without mix x + other)
    n = factor * mixed / sqrt(mean(mixed^2) + eps)
    h_t = n_t + sum_k taps[k] * n_(t-k-1)        within a document (without taps: n)

`skip` is the stream of an earlier block; to join it in torch takes four passes over the stream, and nine backward.
torch.compile writes every shifted copy of the convolution to memory and sums the gradients by mix and taps column by
column, in strides of a row. Here `SPAN` tokens at a time pass through the first cache once in each direction; each span
has its own sums, added up in the order of the tokens whatever the number of threads.
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
#define SPAN 64 /* tokens */
#define SIMD _Pragma("omp simd")
#define EPS 1.1920928955078125e-07f /* torch's for float32 */

typedef float uvec __attribute__((vector_size(BYTES), aligned(4))), four __attribute__((vector_size(16)));

/* Written out: GCC 12 makes one chain of D additions of a loop with a reduction. */
static inline float dot(const float *a, const float *b) {
  vec parts[2] = {};
  int i = 0;
  for (; i + 2 * LANES <= D; i += 2 * LANES)
    UNROLL for (int p = 0; p < 2; p++)
      parts[p] += *(const uvec *)(a + i + p * LANES) * *(const uvec *)(b + i + p * LANES);
  four quarters[LANES / 4];
  parts[0] += parts[1];
  memcpy(quarters, parts, sizeof *parts);
  UNROLL for (int n = LANES / 8; n; n /= 2) UNROLL for (int k = 0; k < n; k++) quarters[k] += quarters[k + n];
  float sum = (quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]);
  for (; i < D; i++) sum += a[i] * b[i];
  return sum;
}

/* share[k] of the tap that looks k + 1 back from token t of a row */
static void shares(float *share, const float *inside, int t, int taps) {
  float all = 1.f;
  for (int k = 0; k < taps; k++) share[k] = all = t - k > 0 ? all * inside[t - k] : 0.f;
}

/* rows x length tokens of width D; other and skip (like x), mix (2 or 3, D), taps (taps, D), inside (rows, length),
   factor (1): of these mix, skip with mix, taps with inside, and factor may be null */
void enter(const float *x, const float *other, const float *skip, const float *mix, const float *taps,
           const float *inside, const float *factor, float *mixed, float *h, int rows, int length, int count,
           int threads) {
  const int spans = (length + SPAN - 1) / SPAN;
  const float by = factor ? *factor : 1.f;
#pragma omp parallel num_threads(threads)
  {
    float *normed = malloc((size_t)(SPAN + count) * D * 4), *row = malloc((size_t)D * 4);
    float *share = malloc(count * 4 + 4);
#pragma omp for schedule(static)
    for (int span = 0; span < rows * spans; span++) {
      const int start = span % spans * SPAN, stop = start + SPAN < length ? start + SPAN : length;
      const int64_t first = (int64_t)(span / spans) * length;
      for (int t = start < count ? 0 : start - count; t < stop; t++) {
        const float *a = x + (first + t) * D, *b = other + (first + t) * D;
        float *m = t < start ? row : mixed + (first + t) * D;
        float *n = count ? normed + (int64_t)(t - start + count) * D : h + (first + t) * D;
        if (skip) {
          const float *s = skip + (first + t) * D;
          SIMD for (int c = 0; c < D; c++) m[c] = mix[c] * a[c] + mix[D + c] * b[c] + mix[2 * D + c] * s[c];
        } else if (mix)
          SIMD for (int c = 0; c < D; c++) m[c] = mix[c] * a[c] + mix[D + c] * b[c];
        else
          SIMD for (int c = 0; c < D; c++) m[c] = a[c] + b[c];
        const float r = by / sqrtf(dot(m, m) / D + EPS);
        SIMD for (int c = 0; c < D; c++) n[c] = r * m[c];
      }
      for (int t = start; count && t < stop; t++) {
        float *to = h + (first + t) * D;
        const float *n = normed + (int64_t)(t - start + count) * D;
        SIMD for (int c = 0; c < D; c++) to[c] = n[c];
        shares(share, inside + first, t, count);
        for (int k = 0; k < count; k++) {
          const float *back = n - (int64_t)(k + 1) * D, *tap = taps + k * D, part = share[k];
          if (part != 0.f) SIMD for (int c = 0; c < D; c++) to[c] += part * tap[c] * back[c];
        }
      }
    }
    free(normed), free(row), free(share);
  }
}

/* Gradients for d_mixed and d_h by the outputs: d_x, with mix d_other, with skip d_skip, and sums (3 + count, D) by mix
   and taps; without mix d_x is d_other too, and rows of sums by what is not there are zero. */
void enter_backward(const float *d_mixed, const float *d_h, const float *x, const float *other, const float *skip,
                    const float *mix, const float *taps, const float *inside, const float *factor, const float *mixed,
                    float *d_x, float *d_other, float *d_skip, float *sums, int rows, int length, int count,
                    int threads) {
  const int spans = (length + SPAN - 1) / SPAN, kinds = 3 + count;
  const float by = factor ? *factor : 1.f;
  float *partial = calloc((size_t)rows * spans * kinds * D + 1, 4);
#pragma omp parallel num_threads(threads)
  {
    float *normed = malloc((size_t)(SPAN + count) * D * 4), *dn = malloc((size_t)D * 4), *share = malloc(count * 4 + 4);
#pragma omp for schedule(static)
    for (int span = 0; span < rows * spans; span++) {
      const int start = span % spans * SPAN, stop = start + SPAN < length ? start + SPAN : length;
      const int64_t first = (int64_t)(span / spans) * length;
      float *mine = partial + (int64_t)span * kinds * D, roots[SPAN];
      for (int t = start < count ? 0 : start - count; t < stop; t++) {
        const float *m = mixed + (first + t) * D;
        float *n = normed + (int64_t)(t - start + count) * D;
        const float r = 1.f / sqrtf(dot(m, m) / D + EPS);
        if (t >= start) roots[t - start] = r;
        SIMD for (int c = 0; c < D; c++) n[c] = r * m[c];
      }
      for (int t = start; t < stop; t++) {
        const float *n = normed + (int64_t)(t - start + count) * D, *g = d_h + (first + t) * D;
        SIMD for (int c = 0; c < D; c++) dn[c] = by * g[c];
        if (count) shares(share, inside + first, t, count);
        for (int k = 0; k < count; k++) {
          const float *back = n - (int64_t)(k + 1) * D, part = by * share[k];
          float *sum = mine + (3 + k) * D;
          if (part != 0.f) SIMD for (int c = 0; c < D; c++) sum[c] += part * g[c] * back[c];
        }
        for (int k = 0; k < count && t + k + 1 < length; k++) { /* the later tokens that look back at this one */
          shares(share, inside + first, t + k + 1, k + 1);
          const float *later = d_h + (first + t + k + 1) * D, *tap = taps + k * D, part = by * share[k];
          if (part != 0.f) SIMD for (int c = 0; c < D; c++) dn[c] += part * tap[c] * later[c];
        }
        const float r = roots[t - start], mean = dot(dn, n) / D;
        const float *res = d_mixed + (first + t) * D, *a = x + (first + t) * D, *b = other + (first + t) * D;
        float *to = d_x + (first + t) * D, *more = d_other + (first + t) * D;
        if (mix) {
          SIMD for (int c = 0; c < D; c++) {
            const float dm = dn[c] = res[c] + r * (dn[c] - n[c] * mean);
            to[c] = mix[c] * dm, more[c] = mix[D + c] * dm;
            mine[c] += dm * a[c], mine[D + c] += dm * b[c];
          }
          if (skip) {
            const float *s = skip + (first + t) * D, *share = mix + 2 * D;
            float *by_skip = d_skip + (first + t) * D, *sum = mine + 2 * D;
            SIMD for (int c = 0; c < D; c++) by_skip[c] = share[c] * dn[c], sum[c] += dn[c] * s[c];
          }
        } else {
          SIMD for (int c = 0; c < D; c++) to[c] = res[c] + r * (dn[c] - n[c] * mean);
        }
      }
    }
    free(normed), free(dn), free(share);
  }
  memset(sums, 0, (size_t)kinds * D * 4);
  for (int64_t span = 0; span < rows * spans; span++)
    for (int c = 0; c < kinds * D; c++) sums[c] += partial[span * kinds * D + c];
  free(partial);
}

/* out (count, D): x over the root of its mean square, at the embedding and at the end of a model */
void norm(const float *x, float *out, int count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < count; t++) {
    const float *from = x + t * D;
    const float r = 1.f / sqrtf(dot(from, from) / D + EPS);
    SIMD for (int c = 0; c < D; c++) out[t * D + c] = r * from[c];
  }
}

/* d_x for g, the gradient by out */
void norm_backward(const float *g, const float *x, float *d_x, int count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < count; t++) {
    const float *from = x + t * D, *by = g + t * D;
    const float r = 1.f / sqrtf(dot(from, from) / D + EPS);
    const float share = r * r * dot(by, from) / D;
    SIMD for (int c = 0; c < D; c++) d_x[t * D + c] = r * (by[c] - share * from[c]);
  }
}
"""
)


def load(width: int, folder: Path | None = None) -> ctypes.CDLL:
    """The kernel compiled for a width. Raises native.Unavailable."""
    return native.library(SOURCE, (f"D={width}",), folder)


@operator("pgolf::enter")
def enter(
    x: Tensor,
    other: Tensor,
    skip: Tensor | None,
    mix: Tensor | None,
    taps: Tensor | None,
    inside: Tensor | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`mixed` and `h` (B, T, d) of the formulas above.

    x, other, skip (B, T, d); mix (2, d), with skip (3, d); taps (K, d) and inside (B, T, 1), zero at document starts,
    both or neither; factor (), which gets no gradient. All float32.
    """
    given = [None if part is None else part.contiguous() for part in (x, other, skip, mix, taps, inside)]
    mixed, h = x.new_empty(x.shape), x.new_empty(x.shape)
    tensors = map(native.pointer, (*given, factor, mixed, h))
    sizes = *x.shape[:2], 0 if taps is None else len(taps), torch.get_num_threads()
    load(x.shape[2]).enter(*tensors, *sizes)
    return mixed, h


@operator("pgolf::enter_backward")
def enter_backward(
    d_mixed: Tensor,
    d_h: Tensor,
    x: Tensor,
    other: Tensor,
    skip: Tensor | None,
    mix: Tensor | None,
    taps: Tensor | None,
    inside: Tensor | None,
    factor: Tensor | None,
    mixed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, by other (empty without mix: that by x), by skip (empty without one), and by the three rows of
    mix (or zeros) and taps."""
    parts = d_mixed, d_h, x, other, skip, mix, taps, inside
    contiguous = [None if part is None else part.contiguous() for part in parts]
    count = 0 if taps is None else len(taps)
    d_x, d_other = x.new_empty(x.shape), x.new_empty(0 if mix is None else x.shape)
    d_skip, sums = x.new_empty(0 if skip is None else x.shape), x.new_empty(3 + count, x.shape[-1])
    tensors = map(native.pointer, (*contiguous, factor, mixed, d_x, d_other, d_skip, sums))
    load(x.shape[2]).enter_backward(*tensors, *x.shape[:2], count, torch.get_num_threads())
    return d_x, d_other, d_skip, sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _differentiate(ctx: Any, d_mixed: Tensor, d_h: Tensor) -> tuple[Tensor | None, ...]:
    skip, mix, taps = ctx.saved_tensors[2:5]
    d_x, d_other, d_skip, sums = enter_backward(d_mixed, d_h, *ctx.saved_tensors)
    by_mix, by_taps = None if mix is None else sums[: len(mix)], None if taps is None else sums[3:]
    return d_x, d_x if mix is None else d_other, None if skip is None else d_skip, by_mix, by_taps, None, None


enter.register_autograd(_differentiate, setup_context=_save)


@operator("pgolf::norm")
def norm(x: Tensor) -> Tensor:
    """x (..., d) / sqrt(mean(x^2) + eps), float32."""
    x = x.contiguous()
    out = x.new_empty(x.shape)
    load(x.shape[-1]).norm(native.pointer(x), native.pointer(out), *_sizes(x))
    return out


@operator("pgolf::norm_backward")
def norm_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient by x."""
    grad, x = grad.contiguous(), x.contiguous()
    d_x = x.new_empty(x.shape)
    load(x.shape[-1]).norm_backward(*map(native.pointer, (grad, x, d_x)), *_sizes(x))
    return d_x


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], torch.get_num_threads()


def _save_normed(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_norm(ctx: Any, grad: Tensor) -> Tensor:
    return norm_backward(grad, *ctx.saved_tensors)


norm.register_autograd(_differentiate_norm, setup_context=_save_normed)
