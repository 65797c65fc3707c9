"""Products of many rows with a small matrix in C, for float32 on a CPU with 512-bit vectors.

A small model's matrices have 32 to 1,024 columns and fit in the first caches, so a register tile of 8 rows by 48
columns needs no packing of the rows. On AMD processors it does 2.2 times the operations of torch's own product (MKL
keeps to 256-bit vectors there; see benchmarks/results). Where the compiler finds no 512-bit vectors torch's product
is used. The order of every sum depends on the shapes alone, never on the number of threads.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.kernels import native

LEAST_ROWS = 64  # below, calling it costs more than it saves

SOURCE = (
    native.VECTORS
    + r"""
typedef float uvec __attribute__((vector_size(64), aligned(4)));
#define BLOCK 256

int wide(void) {
#ifdef __AVX512F__
  return 1;
#else
  return 0;
#endif
}

/* sums[r][column] += sum over p < k of x[r * rx + p * px] * w[p * ldw + column] */
#define TILE(R, C) \
  static void tile_##R##_##C(vec (*sums)[3], const float *restrict x, const float *restrict w, int k, int64_t rx, \
                             int64_t px, int64_t ldw) { \
    vec a[R][C]; \
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) \
      _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) a[r][c] = sums[r][c]; \
    for (int p = 0; p < k; p++) { \
      vec b[C]; \
      _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) b[c] = *(const uvec *)(w + p * ldw + c * 16); \
      _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) { \
        vec s = splat(x[r * rx + p * px]); \
        _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) a[r][c] += s * b[c]; \
      } \
    } \
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) \
      _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) sums[r][c] = a[r][c]; \
  }
TILE(8, 3) TILE(8, 2) TILE(8, 1) TILE(1, 3) TILE(1, 2) TILE(1, 1)

/* out (rows, columns) (+)= the product of those rows and columns; w is readable up to a multiple of 16 columns */
static void tile(float *out, const float *x, const float *w, int rows, int columns, int k, int64_t rx, int64_t px,
                 int64_t ldw, int64_t ldo, int add) {
  const int parts = (columns + 15) / 16;
  for (int r = 0; r < rows;) {
    const int height = rows - r >= 8 ? 8 : 1;
    vec sums[8][3] = {};
    if (add)
      for (int i = 0; i < height; i++) memcpy(sums[i], out + (r + i) * ldo, (size_t)columns * 4);
    const float *from = x + r * rx;
    if (height == 8) {
      if (parts == 3) tile_8_3(sums, from, w, k, rx, px, ldw);
      else if (parts == 2) tile_8_2(sums, from, w, k, rx, px, ldw);
      else tile_8_1(sums, from, w, k, rx, px, ldw);
    } else {
      if (parts == 3) tile_1_3(sums, from, w, k, rx, px, ldw);
      else if (parts == 2) tile_1_2(sums, from, w, k, rx, px, ldw);
      else tile_1_1(sums, from, w, k, rx, px, ldw);
    }
    for (int i = 0; i < height; i++) memcpy(out + (r + i) * ldo, sums[i], (size_t)columns * 4);
    r += height;
  }
}

/* out (n, m) = x (n, k) w, w (k, m) or with turned (m, k) */
void product(const float *x, const float *w, float *out, int n, int k, int m, int turned, int threads) {
  const int padded = (m + 15) / 16 * 16;
  float *packed = 0;
  if (turned || padded != m) {
    packed = aligned_alloc(64, (size_t)k * padded * 4);
    memset(packed, 0, (size_t)k * padded * 4);
    for (int p = 0; p < k; p++)
      for (int j = 0; j < m; j++)
        packed[(int64_t)p * padded + j] = turned ? w[(int64_t)j * k + p] : w[(int64_t)p * m + j];
  }
  const float *columns = packed ? packed : w;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int i = 0; i < n; i += 32)
    for (int j = 0; j < m; j += 48)
      tile(out + (int64_t)i * m + j, x + (int64_t)i * k, columns + j, n - i < 32 ? n - i : 32, m - j < 48 ? m - j : 48,
           k, k, 1, padded, m, 0);
  free(packed);
}

/* out (m, k) (+)= g^T x, g (n, m), x (n, k) */
void outer(const float *g, const float *x, float *out, int n, int m, int k, int add, int threads) {
  const int padded = (k + 15) / 16 * 16;
  if (!add) memset(out, 0, (size_t)m * k * 4);
#pragma omp parallel num_threads(threads)
  {
    float *copy = padded == k ? 0 : aligned_alloc(64, (size_t)BLOCK * padded * 4);
    for (int start = 0; start < n; start += BLOCK) {
      const int count = n - start < BLOCK ? n - start : BLOCK;
      const float *rows = x + (int64_t)start * k;
      if (copy) {
        for (int i = 0; i < count; i++) memcpy(copy + (int64_t)i * padded, rows + (int64_t)i * k, (size_t)k * 4);
        rows = copy;
      }
#pragma omp for schedule(static) nowait
      for (int i = 0; i < m; i += 8)
        for (int j = 0; j < k; j += 48)
          tile(out + (int64_t)i * k + j, g + (int64_t)start * m + i, rows + j, m - i < 8 ? m - i : 8,
               k - j < 48 ? k - j : 48, count, 1, m, padded, k, 1);
    }
    free(copy);
  }
}
"""
)


def load() -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable, also where torch's own product is as fast."""
    library = native.library(SOURCE)
    if not library.wide():
        raise native.Unavailable("this processor has no 512-bit vectors")
    return library


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


@torch.library.custom_op("pgolf::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., k) @ weight (m, k)^T, float32."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(len(flat), len(weight))
    return product(flat, weight.contiguous(), out, turned=True).view(*x.shape[:-1], len(weight))


@torch.library.custom_op("pgolf::linear_backward", mutates_args=())
def linear_backward(grad: Tensor, x: Tensor, weight: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor, Tensor]:
    """Gradients by x and weight; an empty tensor for one that is not wanted."""
    g, flat = grad.reshape(-1, grad.shape[-1]).contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
    dx, dw = (x.new_empty(x.shape) if by_x else x.new_empty(0)), (x.new_empty(weight.shape if by_weight else 0))
    if by_x:
        product(g, weight.contiguous(), dx.view(flat.shape), turned=False)
    if by_weight:
        outer(g, flat, dw, add=False)
    return dx, dw


@linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if by_x else 0), x.new_empty(weight.shape if by_weight else 0)


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
