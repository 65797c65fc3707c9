"""The training loss and its gradients in one call in C, for float32 on a CPU.

A block of tokens' logits, softmax and gradient by the hidden states follow one another while they are in the second
cache, and the head is packed once. `model.loss` does the same in four calls for each chunk of tokens, sum for sum in
the same order.
"""

import ctypes
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pgolf.model.kernels import linear, loss, native
from pgolf.model.raised_logits import Gradients, Raised

CHUNK_ELEMENTS = 384 * 1024
"""Of a chunk, whose gradients by the logits meet the hidden states before the next one."""
SHARED = 192  # tokens: four STEPs, which threads share, and three BLOCKs, which are summed in their order in any chunk

SOURCE = (
    linear.SOURCE
    + loss.SOURCE.removeprefix(native.VECTORS)
    + r"""
/* losses (n), d_hidden (n, d), d_head (m, d) and d_bias (m) of hidden (n, d), head (m, d), bias (m; null without one),
   targets and weights (n, count); amounts[f] (n, few[f]) raise the logits of raised[f], with gradients d_amounts[f].
   The logits of `chunk` tokens, a multiple of STEP and BLOCK, are in memory. */
void weighted_loss(const float *hidden, const float *head, const float *bias, const int64_t *targets,
                   const float *weights, float *losses, float *d_hidden, float *d_head, float *d_bias,
                   const int64_t *const *raised, const float *const *amounts, float *const *d_amounts, const int *few,
                   float cap, int n, int d, int m, int count, int forms, int chunk, int threads) {
  const int64_t stride = PAD(m) + LINE; /* no power of two, so that a column of logits spreads over the cache's sets */
  float *logits = memory(chunk * stride), *up, *down;
  memset(d_head, 0, (size_t)m * d * 4);
  if (d_bias) memset(d_bias, 0, (size_t)m * 4);
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
        const int steps = rows - i < STEP ? rows - i : STEP;
        const int64_t first = start + i;
        float *z = logits + i * stride;
        times_panels(hidden + first * d, up, z, steps, d, m, d, stride, 0);
        for (int64_t token = first; token < first + steps; token++) {
          float *row = z + (token - first) * stride;
          if (bias)
            for (int j = 0; j < m; j++) row[j] += bias[j];
          for (int f = 0; f < forms; f++)
            for (int64_t j = token * few[f]; j < (token + 1) * few[f]; j++) row[raised[f][j]] += amounts[f][j];
          losses[token] = softmax_row(row, powers, targets + token * count, weights + token * count, cap, m, count);
          for (int f = 0; f < forms; f++)
            for (int64_t j = token * few[f]; j < (token + 1) * few[f]; j++) d_amounts[f][j] = row[raised[f][j]];
        }
        times_panels(z, down, d_hidden + first * d, steps, m, d, stride, d, 0);
      }
      share_outer(logits, hidden + (int64_t)start * d, d_head, rows, m, d, stride);
      if (d_bias)
#pragma omp for schedule(static)
        for (int j = 0; j < m; j++)
          for (int r = 0; r < rows; r++) d_bias[j] += logits[r * stride + j];
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
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    cap: float,
    *raised: Raised,
) -> tuple[Tensor, Gradients]:
    """Weighted loss of each token (N,), and the gradients of their sum by hidden, head, bias and the tensors raised.

    hidden (N, d), head (V, d), bias (V,) or None, targets int64 (N, K), weights (N, K), each of raised (N, n), as in
    `model.loss`.
    """
    chunk = max(CHUNK_ELEMENTS // len(head) // SHARED, -(-torch.get_num_threads() // 4), 1) * SHARED
    return by_kernel(load().weighted_loss, hidden, head, bias, targets, weights, cap, raised, chunk)


def by_kernel(
    kernel: Callable[..., None],
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    cap: float,
    raised: Sequence[Raised],
    *more: int,
) -> tuple[Tensor, Gradients]:
    """As `weighted_loss`, by a kernel that takes its arguments; more: those between their numbers and the threads."""
    (count, width), pieces = hidden.shape, len(head)
    hidden, head, targets, weights = (part.contiguous() for part in (hidden, head, targets, weights))
    tokens, amounts = [part.tokens.contiguous() for part in raised], [part.amounts.contiguous() for part in raised]
    losses = hidden.new_empty(count)
    d_hidden, d_head = torch.empty_like(hidden), torch.empty_like(head)
    d_bias = None if bias is None else torch.empty_like(bias)
    d_amounts = [torch.empty_like(part) for part in amounts]
    addresses = ctypes.c_void_p * len(raised)
    lists = [addresses(*(part.data_ptr() for part in parts)) for parts in (tokens, amounts, d_amounts)]
    few = (ctypes.c_int * len(raised))(*(part.shape[1] for part in amounts))
    given = hidden, head, bias, targets, weights, losses, d_hidden, d_head, d_bias
    sizes = count, width, pieces, targets.shape[1], len(raised), *more, torch.get_num_threads()
    kernel(*map(native.pointer, given), *lists, few, ctypes.c_float(cap), *sizes)
    return losses, (d_hidden, d_head, d_bias, *chain(*((None, part) for part in d_amounts)))
