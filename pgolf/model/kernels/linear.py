"""Products of many rows with a small matrix in C, for float32 on a CPU.

A small model's matrices have 32 to 1,024 columns. They are packed in panels of four or five vectors of columns, which
stay in the first cache while two or four rows at a time meet them. On one AMD core that is 0.9 to 1.05 times the rate
of torch's product with AVX2 and 1.1 to 1.2 times with AVX-512 (`benchmarks/results/training_speed.md`).
`fast_paths` measures which. The order of every sum depends on the shapes alone, never on the number of threads.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.kernels import native
from pgolf.model.kernels.operator import operator

LEAST_ROWS = 64  # below, calling it costs more than it saves

SOURCE = (
    native.VECTORS
    + r"""
typedef float uvec __attribute__((vector_size(BYTES), aligned(4)));
#define BLOCK 64 /* rows of x that stay in the first cache */
#define LINE 16 /* columns of g copied at a time: a cache line */
#define STEP 48 /* rows that meet one panel before the next */
/* The sums of HEIGHT rows of 4 or 5 vectors fill the registers as far as compilers keep them there. */
#define HEIGHT (REGISTERS == 32 ? 4 : 2)
#define WIDTH 5
#define PAD(n) (((n) + LANES - 1) / LANES * LANES)

/* out[r][column] (+)= sum over p < k of x[r * rx + p * px] * w[p * ldw + column], for R rows of C vectors */
static inline __attribute__((always_inline)) void sum_tile(const int R, const int C, float *restrict out,
                                                           const float *restrict x, const float *restrict w, int k,
                                                           int64_t rx, int64_t px, int64_t ldw, int64_t ldo, int add) {
  vec a[HEIGHT][WIDTH] = {};
  if (add)
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int c = 0; c < C; c++) a[r][c] = *(uvec *)(out + r * ldo + c * LANES);
#pragma GCC unroll 2
  for (int p = 0; p < k; p++) {
    vec b[WIDTH];
    UNROLL for (int c = 0; c < C; c++) b[c] = *(const uvec *)(w + p * ldw + c * LANES);
    UNROLL for (int r = 0; r < R; r++) {
      vec s = splat(x[r * rx + p * px]);
      UNROLL for (int c = 0; c < C; c++) a[r][c] += s * b[c];
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) *(uvec *)(out + r * ldo + c * LANES) = a[r][c];
}

/* out (rows, columns) (+)= the product of those rows and columns; w is readable up to a whole vector of columns */
static void tile(float *out, const float *x, const float *w, int rows, int columns, int k, int64_t rx, int64_t px,
                 int64_t ldw, int64_t ldo, int add) {
  const int parts = (columns + LANES - 1) / LANES, whole = columns % LANES == 0;
  float edge[HEIGHT * WIDTH * LANES];
  for (int r = 0; r < rows;) {
    const int height = rows - r >= HEIGHT ? HEIGHT : 1;
    float *sums = whole ? out + r * ldo : edge;
    const int64_t lds = whole ? ldo : WIDTH * LANES;
    if (add && !whole)
      for (int i = 0; i < height; i++) memcpy(edge + i * lds, out + (r + i) * ldo, (size_t)columns * 4);
#define CASE(R, C) if (height == R && parts == C) sum_tile(R, C, sums, x + r * rx, w, k, rx, px, ldw, lds, add);
#define CASES(R) CASE(R, 5) else CASE(R, 4) else CASE(R, 3) else CASE(R, 2) else CASE(R, 1)
    CASES(HEIGHT) else CASES(1)
    if (!whole)
      for (int i = 0; i < height; i++) memcpy(out + (r + i) * ldo, edge + i * lds, (size_t)columns * 4);
    r += height;
  }
}

/* columns of a panel of w: a panel's k rows lie one behind the other, so that they do not share a set of the cache */
static int panel(int m) { return LANES * (PAD(m) / LANES % 5 ? 4 : 5); }

/* to (k PAD(m)): the panels of w (k, m), or with turned (m, k), the last one filled up with zeros */
static void pack_panels(const float *w, float *to, int k, int m, int turned) {
  for (int j = 0; j < m; j += panel(m)) {
    const int width = PAD(m) - j < panel(m) ? PAD(m) - j : panel(m);
    for (int p = 0; p < k; p++)
      for (int c = j; c < j + width; c++) *to++ = c >= m ? 0.f : turned ? w[(int64_t)c * k + p] : w[(int64_t)p * m + c];
  }
}

static float *memory(size_t floats) { return aligned_alloc(64, (floats * 4 + 63) / 64 * 64); }

static float *panels_of(const float *w, int k, int m, int turned) {
  float *to = memory((size_t)k * PAD(m));
  pack_panels(w, to, k, m, turned);
  return to;
}

/* out (n, m) (+)= x (n, k) times the panels of w, on this thread; ldx, ldo: from row to row */
static void times_panels(const float *x, const float *panels, float *out, int n, int k, int m, int64_t ldx,
                         int64_t ldo, int add) {
  for (int j = 0; j < m; j += panel(m)) {
    const int width = PAD(m) - j < panel(m) ? PAD(m) - j : panel(m);
    tile(out + j, x, panels + (int64_t)j * k, n, m - j < width ? m - j : width, k, ldx, 1, width, ldo, add);
  }
}

/* out (n, m) = x (n, k) w; w is (k, m), or with turned (m, k) */
void product(const float *x, const float *w, float *out, int n, int k, int m, int turned, int threads) {
  float *panels = panels_of(w, k, m, turned);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int i = 0; i < n; i += STEP)
    times_panels(x + (int64_t)i * k, panels, out + (int64_t)i * m, n - i < STEP ? n - i : STEP, k, m, k, m, 0);
  free(panels);
}

/* out (wide, k) += line^T x: line (count, LINE), x (count, k) and out readable up to a whole vector or ending at k */
static void add_outer(float *out, const float *line, const float *x, int wide, int count, int k, int64_t ldx,
                      int64_t ldo) {
  for (int j = 0; j < k; j += panel(k))
    tile(out + j, line, x + j, wide, k - j < panel(k) ? k - j : panel(k), count, 1, LINE, ldx, ldo, 1);
}

/* out (m, k) += g^T x, g (n, m) with ldg from row to row, x (n, k); the threads of a parallel region share the rows of
   out and do not wait for one another at the end */
static void share_outer(const float *g, const float *x, float *out, int n, int m, int k, int64_t ldg) {
  const int padded = PAD(k); /* of x: copied where its rows do not end with a vector */
  float *copy = padded == k ? 0 : memory((size_t)BLOCK * padded);
  for (int start = 0; start < n; start += BLOCK) {
    const int count = n - start < BLOCK ? n - start : BLOCK;
    const float *rows = x + (int64_t)start * k;
    if (copy) {
      for (int i = 0; i < count; i++) memcpy(copy + (int64_t)i * padded, rows + (int64_t)i * k, (size_t)k * 4);
      rows = copy;
    }
#pragma omp for schedule(static) nowait
    for (int i = 0; i < m; i += LINE) {
      const int wide = m - i < LINE ? m - i : LINE;
      float line[BLOCK * LINE] __attribute__((aligned(64)));
      for (int r = 0; r < count; r++) memcpy(line + r * LINE, g + (start + r) * ldg + i, (size_t)wide * 4);
      add_outer(out + (int64_t)i * k, line, rows, wide, count, k, padded, k);
    }
  }
  free(copy);
}

/* out (m, k) (+)= g^T x, g (n, m), x (n, k) */
void outer(const float *g, const float *x, float *out, int n, int m, int k, int add, int threads) {
  if (!add) memset(out, 0, (size_t)m * k * 4);
#pragma omp parallel num_threads(threads)
  share_outer(g, x, out, n, m, k, m);
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable."""
    return native.library(SOURCE, (), folder)


def product(x: Tensor, w: Tensor, out: Tensor, turned: bool = False) -> Tensor:
    """out (n, m) = x (n, k) @ w, with w (k, m), or (m, k) when `turned`; all contiguous float32. Returns out."""
    (rows, inner), columns = x.shape, out.shape[1]
    tensors = map(native.pointer, (x, w, out))
    load().product(*tensors, rows, inner, columns, int(turned), torch.get_num_threads())
    return out


def outer(g: Tensor, x: Tensor, out: Tensor, add: bool) -> Tensor:
    """out (m, k) = or += g (n, m)^T @ x (n, k); all contiguous float32. Returns out."""
    (rows, height), width = g.shape, x.shape[1]
    tensors = map(native.pointer, (g, x, out))
    load().outer(*tensors, rows, height, width, int(add), torch.get_num_threads())
    return out


@operator("pgolf::linear")
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., k) @ weight (m, k)^T, float32."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(len(flat), len(weight))
    return product(flat, weight.contiguous(), out, turned=True).view(*x.shape[:-1], len(weight))


@operator("pgolf::linear_backward")
def linear_backward(grad: Tensor, x: Tensor, weight: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and weight; an empty tensor for one that is not required."""
    g, flat = grad.reshape(-1, grad.shape[-1]).contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
    dx, dw = (x.new_empty(x.shape) if by_x else x.new_empty(0)), (x.new_empty(weight.shape if by_weight else 0))
    if by_x:
        product(g, weight.contiguous(), dx.view(flat.shape), turned=False)
    if by_weight:
        outer(g, flat, dw, add=False)
    return dx, dw


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    by_x, by_weight = ctx.needs_input_grad[:2]
    dx, dw = linear_backward(grad, *ctx.saved_tensors, by_x, by_weight)
    return dx if by_x else None, dw if by_weight else None


linear.register_autograd(_differentiate, setup_context=_save)


def fast_linear(x: Tensor, weight: Tensor) -> Tensor:
    """As F.linear, through the kernel where that pays."""
    if x.dtype == torch.float32 and x.numel() >= LEAST_ROWS * x.shape[-1]:
        return linear(x, weight)
    return F.linear(x, weight.to(x.dtype))
