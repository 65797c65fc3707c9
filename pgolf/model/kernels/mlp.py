"""The MLP in C, forward and backward, for float32 on a CPU: onto + a(x fc^T)^2 proj^T with a the leaky rectifier.

Torch writes the hidden activations, three times as wide as the stream, to memory and reads them back several times
each way. Here they exist for `ROWS` tokens at a time, in the second cache; only x fc^T goes to memory, once: computing
it again would be a sixth more operations. Products are those of `linear`. The gradients by the weights are sums over at
most `PARTS` parts of the tokens, added up in their order whatever the number of threads.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.model.kernels import linear, native
from pgolf.model.kernels.operator import operator

WIDEST_VECTOR = 16  # floats; the hidden activations are padded to a multiple of it

SOURCE = (
    linear.SOURCE
    + r"""
#define ROWS BLOCK /* tokens at a time */
#define PARTS 16 /* of the tokens, at most, whose gradients by the weights are summed apart: a multiple of FEWEST, so */
#define FEWEST 4 /* that a few threads have equal shares */
#define PART 512

/* z, square (rows, PAD(h)): x fc^T and its rectified square; `up` are the panels of fc. z is stored panel by panel, so
   that the backward pass reads it in one stream. */
static void rise(const float *x, const float *up, float *z, float *square, float slope, int rows, int d, int h) {
  for (int j = 0, width; j < PAD(h); j += width, z += rows * width) {
    width = PAD(h) - j < panel(h) ? PAD(h) - j : panel(h);
    tile(z, x, up + (int64_t)j * d, rows, width, d, d, 1, width, width, 0);
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < width; c += LANES) {
        const vec v = *(vec *)(z + r * width + c), a = choose(v > splat(0.f), v, v * splat(slope));
        *(vec *)(square + (int64_t)r * PAD(h) + j + c) = a * a;
      }
  }
}

/* out (n, d) for x (n, d), fc (h, d), proj (d, h), onto (n, d) or null; z: n PAD(h) floats for the backward pass */
void mlp(const float *x, const float *fc, const float *proj, const float *onto, float *z, float *out, float slope,
         int n, int d, int h, int threads) {
  float *up = panels_of(fc, d, h, 1), *down = panels_of(proj, h, d, 1);
#pragma omp parallel num_threads(threads)
  {
    float *square = memory((size_t)ROWS * PAD(h));
#pragma omp for schedule(static)
    for (int i = 0; i < n; i += ROWS) {
      const int rows = n - i < ROWS ? n - i : ROWS;
      rise(x + (int64_t)i * d, up, z + (int64_t)i * PAD(h), square, slope, rows, d, h);
      if (onto) memcpy(out + (int64_t)i * d, onto + (int64_t)i * d, (size_t)rows * d * 4);
      times_panels(square, down, out + (int64_t)i * d, rows, h, d, PAD(h), d, onto != 0);
    }
    free(square);
  }
  free(up), free(down);
}

/* out (rows, PAD(d)): the rows of x (rows, d), or x itself where they end with a vector */
static const float *padded_rows(float *out, const float *x, int rows, int d) {
  if (PAD(d) == d) return x;
  for (int r = 0; r < rows; r++) memcpy(out + r * PAD(d), x + r * d, (size_t)d * 4);
  return out;
}

/* For g (n, d), the gradient by out: dx (n, d), dfc (h, d), dproj (d, h) */
void mlp_backward(const float *g, const float *x, const float *fc, const float *proj, const float *z, float *dx,
                  float *dfc, float *dproj, float slope, int n, int d, int h, int threads) {
  const int blocks = (n + ROWS - 1) / ROWS, some = (n + PART * FEWEST - 1) / (PART * FEWEST) * FEWEST;
  const int parts = some < PARTS ? some : PARTS;
  const int dp = PAD(d), hp = PAD(h), strips_size = (h + LINE - 1) / LINE * LINE * ROWS;
  const size_t size = (size_t)h * dp; /* of a part's sums by fc, and by the turned proj */
  float *back = panels_of(proj, d, h, 0), *down = panels_of(fc, h, d, 0), *sums = memory(parts * size * 2);
#pragma omp parallel num_threads(threads)
  {
    /* dz by rows, and in strips of LINE columns as the rectified square is */
    float *dz = memory((size_t)ROWS * hp), *strips = memory((size_t)strips_size * 2), *squares = strips + strips_size;
    float *copies = memory((size_t)ROWS * dp * 2);
#pragma omp for schedule(static)
    for (int part = 0; part < parts; part++) {
      float *by_fc = sums + part * size * 2, *by_proj = by_fc + size;
      memset(by_fc, 0, size * 8);
      for (int block = (int64_t)blocks * part / parts; block < (int64_t)blocks * (part + 1) / parts; block++) {
        const int64_t at = (int64_t)block * ROWS;
        const int rows = n - at < ROWS ? n - at : ROWS;
        const float *from = z + at * hp;
        for (int j = 0, width; j < hp; j += width, from += rows * width) {
          width = hp - j < panel(h) ? hp - j : panel(h);
          for (int i = 0; i < rows * width; i += 16) __builtin_prefetch(from + i, 0, 2);
          tile(dz + j, g + at * d, back + (int64_t)j * d, rows, width, d, d, 1, width, hp, 0);
          for (int r = 0; r < rows; r++)
            for (int c = j; c < j + width; c += LANES) {
              const vec v = *(const vec *)(from + r * width + c - j);
              const vec s = choose(v > splat(0.f), splat(1.f), splat(slope)), a = v * s;
              vec *by = (vec *)(dz + (int64_t)r * hp + c);
              const int to = (c / LINE * ROWS + r) * LINE + c % LINE;
              *by = *by * (a + a) * s;
              *(vec *)(strips + to) = *by;
              *(vec *)(squares + to) = a * a;
            }
        }
        times_panels(dz, down, dx + at * d, rows, h, d, hp, d, 0);
        const float *inputs = padded_rows(copies, x + at * d, rows, d);
        const float *grads = padded_rows(copies + ROWS * dp, g + at * d, rows, d);
        for (int i = 0; i < h; i += LINE) {
          const int wide = h - i < LINE ? h - i : LINE;
          add_outer(by_fc + (int64_t)i * dp, strips + i * ROWS, inputs, wide, rows, dp, dp, dp);
          add_outer(by_proj + (int64_t)i * dp, squares + i * ROWS, grads, wide, rows, dp, dp, dp);
        }
      }
    }
#pragma omp for schedule(static)
    for (int row = 0; row < h; row++) {
      float *up = sums + (size_t)row * dp, *turned = up + size;
      for (int part = 1; part < parts; part++)
        for (int c = 0; c < dp; c += LANES) {
          *(vec *)(up + c) += *(vec *)(up + part * size * 2 + c);
          *(vec *)(turned + c) += *(vec *)(turned + part * size * 2 + c);
        }
      memcpy(dfc + (int64_t)row * d, up, (size_t)d * 4);
      for (int c = 0; c < d; c++) dproj[(int64_t)c * h + row] = turned[c];
    }
    free(dz), free(strips), free(copies);
  }
  free(back), free(down), free(sums);
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable."""
    return native.library(SOURCE, (), folder)


@operator("pgolf::mlp")
def mlp(x: Tensor, fc: Tensor, proj: Tensor, slope: float, onto: Tensor | None) -> tuple[Tensor, Tensor]:
    """onto + a(x @ fc^T)^2 @ proj^T with a the leaky rectifier of `slope`.

    x, onto (..., d), fc (h, d), proj (d, h), all float32; without onto nothing is added.
    Returns it, (..., d), and x @ fc^T in an order that only the backward pass knows.
    """
    given = [None if part is None else part.contiguous() for part in (x, fc, proj, onto)]
    hidden, width = fc.shape
    count = x.numel() // width
    out, z = x.new_empty(x.shape), x.new_empty(count, padded_width(hidden))
    sizes = count, width, hidden, torch.get_num_threads()
    load().mlp(*map(native.pointer, (*given, z, out)), ctypes.c_float(slope), *sizes)
    return out, z


@operator("pgolf::mlp_backward")
def mlp_backward(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, z: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, fc and proj."""
    grad, x, fc, proj = grad.contiguous(), x.contiguous(), fc.contiguous(), proj.contiguous()
    gradients, (hidden, width) = (x.new_empty(x.shape), fc.new_empty(fc.shape), proj.new_empty(proj.shape)), fc.shape
    tensors = map(native.pointer, (grad, x, fc, proj, z, *gradients))
    load().mlp_backward(*tensors, ctypes.c_float(slope), len(z), width, hidden, torch.get_num_threads())
    return gradients


def padded_width(hidden: int) -> int:
    """Floats that a row of x @ fc^T may take."""
    return -(-hidden // WIDEST_VECTOR) * WIDEST_VECTOR


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.set_materialize_grads(False)  # the hidden activations get no gradient: torch would fill one with zeros
    ctx.slope, ctx.adds = inputs[3], inputs[4] is not None


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*mlp_backward(grad, *ctx.saved_tensors, ctx.slope), None, grad if ctx.adds else None)


mlp.register_autograd(_differentiate, setup_context=_save)
