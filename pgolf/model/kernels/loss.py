"""The softcapped softmax and its gradient over rows of logits in C, for float32 on a CPU.

Three passes over a row that stays in the first cache, with vector exponentials; torch's own tanh, logsumexp and exp
go through memory six times. See `loss` for what it computes.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from pgolf.model.kernels import native

SOURCE = (
    native.VECTORS
    + r"""
static inline float highest(vec x) {
  float best = x[0];
  for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
  return best;
}

static inline float total(vec x) {
  float sum = 0.f;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

/* a / b for 1 <= b <= 2 */
static inline vec over(vec a, vec b) {
#if BYTES == 64
  const vec r = (vec)_mm512_rcp14_ps((__m512)b); /* with a Newton step 23 bits, in a third of a division's time */
  return a * r * (splat(2.f) - b * r);
#else
  return a / b;
#endif
}

/* tanh through 2^(-2|x| log2 e); NaN stays NaN */
static inline vec tanhv(vec x) {
  const ivec sign = {(int32_t)0x80000000};
  ivec signs = (ivec){} + sign[0];
  vec e = exp2v((vec)((ivec)x | signs) * splat(2.f * LOG2E));
  return (vec)((ivec)over(splat(1.f) - e, splat(1.f) + e) | ((ivec)x & signs));
}

/* sum_k weight * -ln softmax(cap tanh(row / cap))[target] of one row of width floats, aligned and up to a whole vector
   ours; with weights, row becomes the gradient by itself, else scratch. powers: a row and count floats */
static float softmax_row(float *row, float *powers, const int64_t *targets, const float *weights, float cap, int width,
                         int count) {
  const float scale = cap > 0.f ? cap : 1.f, inverse = 1.f / scale;
  const int padded = (width + LANES - 1) / LANES * LANES;
  vec high = splat(-INFINITY), sum = {};
  for (int i = width; i < padded; i++) row[i] = -INFINITY; /* tanh makes it -1, which no logit is below */
  for (int i = 0; i < padded; i += LANES) {
    vec x = *(vec *)(row + i);
    if (cap > 0.f) x = *(vec *)(row + i) = tanhv(x * splat(inverse));
    high = vmax(high, x);
  }
  const float top = highest(high); /* the cap itself in its place costs a digit */
  for (int i = 0; i < padded; i += LANES) {
    vec x = *(vec *)(row + i);
    vec e = exp2v((x - splat(top)) * splat(scale * LOG2E));
    if (i + LANES > width)
      for (int lane = width - i; lane < LANES; lane++) e[lane] = 0.f;
    *(vec *)(powers + i) = e;
    sum += e;
  }
  const float denominator = total(sum), lse = scale * top + logf(denominator);
  float loss = 0.f, weight = 0.f;
  for (int k = 0; k < count; k++) {
    const float w = weights ? weights[k] : 1.f;
    weight += w;
    loss += w * (lse - scale * row[targets[k]]);
  }
  if (!weights) return loss;
  for (int k = 0; k < count; k++) powers[padded + k] = cap > 0.f ? 1.f - row[targets[k]] * row[targets[k]] : 1.f;
  const vec share = splat(weight / denominator);
  for (int i = 0; i < padded; i += LANES) {
    vec t = *(vec *)(row + i), e = *(vec *)(powers + i) * share;
    *(vec *)(row + i) = cap > 0.f ? e * (splat(1.f) - t * t) : e;
  }
  for (int k = 0; k < count; k++) row[targets[k]] -= weights[k] * powers[padded + k];
  return loss;
}

/* losses[n] = softmax_row of each row of z */
void softmax(float *z, const int64_t *targets, const float *weights, float *losses, float cap, int rows, int width,
             int count, int threads) {
  const int padded = (width + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(threads)
  {
    float *copy = aligned_alloc(BYTES, ((size_t)padded * 8 + (size_t)count * 4 + BYTES - 1) / BYTES * BYTES);
#pragma omp for schedule(static)
    for (int n = 0; n < rows; n++) {
      float *row = z + (int64_t)n * width;
      const float *mine = weights ? weights + (int64_t)n * count : 0;
      memcpy(copy, row, (size_t)width * 4);
      losses[n] = softmax_row(copy, copy + padded, targets + (int64_t)n * count, mine, cap, width, count);
      if (mine) memcpy(row, copy, (size_t)width * 4);
    }
    free(copy);
  }
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable."""
    return native.library(SOURCE, (), folder)


def softmax(z: Tensor, targets: Tensor, weights: Tensor | None, cap: float) -> Tensor:
    """As `loss.plain_softmax`: z (n, V) contiguous float32, overwritten by its gradient when there are weights."""
    rows, width = z.shape
    targets = targets.contiguous()
    weights = None if weights is None else weights.contiguous()
    losses = torch.empty(rows)
    tensors = map(native.pointer, (z, targets, weights, losses))
    load().softmax(*tensors, ctypes.c_float(cap), rows, width, targets.shape[1], torch.get_num_threads())
    return losses
