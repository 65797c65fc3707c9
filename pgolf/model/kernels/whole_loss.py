"""The training loss and its gradients in one call in C, for float32 on a CPU where nothing raises a logit.

A block of tokens' logits, softmax and gradient by the hidden states follow one another while they are in the second
cache, and the head is packed once. `model.loss` does the same in four calls for each chunk of tokens, sum for sum in
the same order.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from pgolf.model.kernels import linear, loss, native
from pgolf.model.raised_logits import Gradients

CHUNK_ELEMENTS = 384 * 1024
"""Of a chunk, whose gradients by the logits meet the hidden states before the next one."""

SOURCE = (
    linear.SOURCE
    + loss.SOURCE.removeprefix(native.VECTORS)
    + r"""
/* losses (n), d_hidden (n, d) and d_head (m, d) of hidden (n, d), head (m, d), targets and weights (n, count), with the
   logits of `chunk` tokens in memory, a multiple of BLOCK */
void weighted_loss(const float *hidden, const float *head, const int64_t *targets, const float *weights, float *losses,
                   float *d_hidden, float *d_head, float cap, int n, int d, int m, int count, int chunk, int threads) {
  const int64_t stride = PAD(m) + LINE; /* no power of two, so that a column of logits spreads over the cache's sets */
  float *logits = memory(chunk * stride), *up, *down;
  memset(d_head, 0, (size_t)m * d * 4);
#pragma omp parallel num_threads(threads)
  {
#pragma omp sections
    {
#pragma omp section
      up = panels_of(head, d, m, 1);
#pragma omp section
      down = panels_of(head, m, d, 0);
    }
    float *powers = memory(PAD(m) + count);
    for (int start = 0; start < n; start += chunk) {
      const int rows = n - start < chunk ? n - start : chunk;
#pragma omp for schedule(static)
      for (int i = 0; i < rows; i += STEP) {
        const int few = rows - i < STEP ? rows - i : STEP;
        const int64_t first = start + i;
        float *z = logits + i * stride;
        times_panels(hidden + first * d, up, z, few, d, m, d, stride, 0);
        for (int64_t r = 0; r < few; r++) {
          const int64_t *wanted = targets + (first + r) * count;
          losses[first + r] = softmax_row(z + r * stride, powers, wanted, weights + (first + r) * count, cap, m, count);
        }
        times_panels(z, down, d_hidden + first * d, few, m, d, stride, d, 0);
      }
      share_outer(logits, hidden + (int64_t)start * d, d_head, rows, m, d, stride);
#pragma omp barrier
    }
    free(powers);
  }
  free(down), free(up), free(logits);
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable."""
    return native.library(SOURCE, (), folder)


def weighted_loss(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, cap: float
) -> tuple[Tensor, Gradients]:
    """Weighted loss of each token (N,), and the gradients of their sum by hidden, head and no bias.

    hidden (N, d), head (V, d), targets int64 (N, K), weights (N, K), as in `model.loss`.
    """
    (rows, width), pieces = hidden.shape, len(head)
    hidden, head, targets, weights = (part.contiguous() for part in (hidden, head, targets, weights))
    losses, d_hidden, d_head = hidden.new_empty(rows), torch.empty_like(hidden), torch.empty_like(head)
    given = hidden, head, targets, weights, losses, d_hidden, d_head
    chunk = max(CHUNK_ELEMENTS // pieces // 64, 1) * 64
    sizes = rows, width, pieces, targets.shape[1], chunk, torch.get_num_threads()
    load().weighted_loss(*map(native.pointer, given), ctypes.c_float(cap), *sizes)
    return losses, (d_hidden, d_head, None)
