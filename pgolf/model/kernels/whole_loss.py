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

from pgolf.model.kernels import copies, linear, loss, native
from pgolf.model.raised_logits import Gradients, Raised, Raising

CHUNK_ELEMENTS = 384 * 1024
"""Of a chunk, whose gradients by the logits meet the hidden states before the next one."""
SHARED = 192  # tokens: four STEPs, which threads share, and three BLOCKs, which are summed in their order in any chunk

RAISED = (
    copies.COUNTED
    + r"""
/* What raises the logits of n tokens: amounts[f] (n, few[f]) those of raised[f], and each of counts those of its
   documents; with room for the gradients. */
typedef struct {
  const int64_t *const *raised;
  const float *const *amounts;
  float *const *d_amounts;
  const int *few;
  const counted *counts;
  int forms, kinds;
} raising;

static void raise_logits(float *row, const raising *by, int64_t token) {
  for (int f = 0; f < by->forms; f++)
    for (int64_t j = token * by->few[f]; j < (token + 1) * by->few[f]; j++) row[by->raised[f][j]] += by->amounts[f][j];
  for (int k = 0; k < by->kinds; k++) add_counted(row, by->counts + k, token);
}

/* the gradients of `count` tokens, a piece or several, for theirs by the logits; sums: `room_to_raise` */
static void raise_back(const float *rows, int64_t width, const raising *by, float *sums, int64_t n, int64_t first,
                       int count) {
  for (int f = 0; f < by->forms; f++)
    for (int i = 0; i < count; i++)
      for (int64_t j = (first + i) * by->few[f]; j < (first + i + 1) * by->few[f]; j++)
        by->d_amounts[f][j] = rows[i * width + by->raised[f][j]];
  for (int k = 0; k < by->kinds; sums += counted_sums(by->counts + k++, n))
    for (int i = 0; i < count; i += PIECE)
      differentiate_counted(rows + i * width, width, by->counts + k,
                            sums + (first + i) / PIECE * counted_span(by->counts + k), first + i,
                            first + (i + PIECE < count ? i + PIECE : count));
}

static float *room_to_raise(const raising *by, int64_t n) {
  size_t floats = 0;
  for (int k = 0; k < by->kinds; k++) floats += counted_sums(by->counts + k, n);
  return malloc(floats * 4);
}

static void end_of_raising(const raising *by, float *sums, int64_t n) {
  const float *from = sums;
  for (int k = 0; k < by->kinds; from += counted_sums(by->counts + k++, n))
    add_counted_sums(by->counts + k, from, 0, n);
  free(sums);
}
"""
)
"""C of all that raises logits, for a loss in one call."""

SOURCE = (
    linear.SOURCE
    + loss.SOURCE.removeprefix(native.VECTORS)
    + RAISED
    + r"""
/* losses (n), d_hidden (n, d), d_head (m, d) and d_bias (m) of hidden (n, d), head (m, d), bias (m; null without one),
   targets and weights (n, count). The logits of `chunk` tokens, a multiple of STEP and BLOCK, are in memory. */
void weighted_loss(const float *hidden, const float *head, const float *bias, const int64_t *targets,
                   const float *weights, float *losses, float *d_hidden, float *d_head, float *d_bias,
                   const raising *by, float cap, int n, int d, int m, int count, int chunk, int threads) {
  const int64_t stride = PAD(m) + LINE; /* no power of two, so that a column of logits spreads over the cache's sets */
  float *logits = memory(chunk * stride), *sums = room_to_raise(by, n), *up, *down;
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
          raise_logits(row, by, token);
          losses[token] = softmax_row(row, powers, targets + token * count, weights + token * count, cap, m, count);
        }
        raise_back(z, stride, by, sums, n, first, steps);
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
  end_of_raising(by, sums, n);
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
    *raised: Raising,
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
    raised: Sequence[Raising],
    *more: int,
) -> tuple[Tensor, Gradients]:
    """As `weighted_loss`, by a kernel that takes its arguments; more: those between their numbers and the threads."""
    (count, width), pieces = hidden.shape, len(head)
    hidden, head, targets, weights = (part.contiguous() for part in (hidden, head, targets, weights))
    losses = hidden.new_empty(count)
    d_hidden, d_head = torch.empty_like(hidden), torch.empty_like(head)
    d_bias = None if bias is None else torch.empty_like(bias)
    forms = [form if isinstance(form, copies.Counted) else _whole(form.spread()) for form in raised]
    gradients = [form.gradients() for form in forms]
    given = hidden, head, bias, targets, weights, losses, d_hidden, d_head, d_bias
    sizes = count, width, pieces, targets.shape[1], *more, torch.get_num_threads()
    kernel(*map(native.pointer, given), ctypes.byref(_in_c(forms, gradients)), ctypes.c_float(cap), *sizes)
    return losses, (d_hidden, d_head, d_bias, *chain(*gradients))


def _whole(form: Raised) -> Raised:
    """Without gaps; the caller keeps it alive while C has its addresses."""
    return Raised(*(part.contiguous() for part in form))


def _in_c(forms: Sequence[Raised | copies.Counted], gradients: Sequence[Gradients]) -> "_InC":
    """`raising` of `RAISED`, as long as the tensors are alive."""
    paired = list(zip(forms, gradients, strict=True))
    single = [(*form, by[1]) for form, by in paired if isinstance(form, Raised)]
    counts = [form.in_c(*by[2:4]) for form, by in paired if isinstance(form, copies.Counted)]
    addresses = ctypes.c_void_p * len(single)
    columns = list(zip(*single, strict=True)) or [()] * 3
    lists = [addresses(*(part.data_ptr() for part in column)) for column in columns]
    few = (ctypes.c_int * len(single))(*(amounts.shape[-1] for _, amounts, _ in single))
    return _InC(*lists, few, (copies.InC * len(counts))(*counts), len(single), len(counts))


class _InC(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("raised", "amounts", "d_amounts")),
        ("few", ctypes.POINTER(ctypes.c_int)),
        ("counts", ctypes.POINTER(copies.InC)),
        ("forms", ctypes.c_int),
        ("kinds", ctypes.c_int),
    )
