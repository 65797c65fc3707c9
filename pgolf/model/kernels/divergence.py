"""The divergence of softcapped logits from given ones and its gradient over rows in C, for float32 on a CPU.

Both rows stay in the first cache from the first pass to the gradient; torch's softmaxes, tanh and products go through
memory a dozen times: 11.4 ms for 256 rows of 2,048 in place of 1.9. See `model.divergence` for what it computes.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from pgolf.model.kernels import loss, native

SOURCE = (
    loss.SOURCE
    + r"""
/* x (width), tanh(from / cap) or without a cap `from`, up to a whole vector -infinity; returns the largest */
static float padded_row(float *x, const float *from, float cap, int width, int padded) {
  vec high = splat(-INFINITY);
  for (int i = width; i < padded; i++) x[i] = -INFINITY;
  memcpy(x, from, (size_t)width * 4);
  for (int i = 0; i < padded; i += LANES) {
    vec t = *(vec *)(x + i);
    if (cap > 0.f) {
      t = tanhv(t * splat(1.f / cap));
      if (i + LANES > width)
        for (int lane = width - i; lane < LANES; lane++) t[lane] = -INFINITY;
      *(vec *)(x + i) = t;
    }
    high = vmax(high, t);
  }
  return highest(high);
}

/* found[n] = weight * KL of the softmaxes of cap tanh(wanted / cap) and cap tanh(z / cap); with weights, z becomes the
   gradient by z */
void divergence(float *z, const float *wanted, const float *weights, float *found, float cap, int rows, int width,
                int threads) {
  const int padded = (width + LANES - 1) / LANES * LANES;
  const float scale = cap > 0.f ? cap : 1.f;
#pragma omp parallel num_threads(threads)
  {
    float *logits = aligned_alloc(BYTES, (size_t)padded * 16), *mine = logits + padded;
    float *p = mine + padded, *q = p + padded;
#pragma omp for schedule(static)
    for (int n = 0; n < rows; n++) {
      float *row = z + (int64_t)n * width;
      const float top_p = padded_row(logits, wanted + (int64_t)n * width, cap, width, padded);
      const float top_q = padded_row(mine, row, cap, width, padded);
      vec sum_p = {}, sum_q = {}, sum = {};
      for (int i = 0; i < padded; i += LANES) {
        const vec a = (*(vec *)(logits + i) - splat(top_p)) * splat(scale);
        const vec b = (*(vec *)(mine + i) - splat(top_q)) * splat(scale);
        vec x = exp2v(a * splat(LOG2E)), y = exp2v(b * splat(LOG2E)), apart = x * (a - b);
        if (i + LANES > width)
          for (int lane = width - i; lane < LANES; lane++) x[lane] = y[lane] = apart[lane] = 0.f;
        *(vec *)(p + i) = x, *(vec *)(q + i) = y;
        sum_p += x, sum_q += y, sum += apart;
      }
      const float all_p = total(sum_p), all_q = total(sum_q), weight = weights ? weights[n] : 1.f;
      found[n] = weight * (total(sum) / all_p - (logf(all_p) - logf(all_q)));
      if (!weights) continue;
      const vec by_p = splat(weight / all_p), by_q = splat(weight / all_q);
      for (int i = 0; i < padded; i += LANES) {
        const vec t = *(vec *)(mine + i), g = *(vec *)(q + i) * by_q - *(vec *)(p + i) * by_p;
        *(vec *)(q + i) = cap > 0.f ? g * (splat(1.f) - t * t) : g;
      }
      memcpy(row, q, (size_t)width * 4);
    }
    free(logits);
  }
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable."""
    return native.library(SOURCE, (), folder)


def divergence(z: Tensor, wanted: Tensor, weights: Tensor | None, cap: float) -> Tensor:
    """As `divergence.plain_divergence`: z (n, V) contiguous float32, overwritten by its gradient when there are
    weights."""
    rows, width = z.shape
    wanted, found = wanted.contiguous(), torch.empty(rows)
    weights = None if weights is None else weights.contiguous()
    tensors = map(native.pointer, (z, wanted, weights, found))
    load().divergence(*tensors, ctypes.c_float(cap), rows, width, torch.get_num_threads())
    return found
