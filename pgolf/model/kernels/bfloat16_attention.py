"""Attention in bfloat16 (`tiles`), forward and backward; float32 in and out, see `attention`."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.model.kernels import native, tiles
from pgolf.model.kernels.operator import operator

SOURCE = (
    tiles.SOURCE
    + r"""
/* to [32 / 16][16][32] at each 32 columns: x (32, width) rounded, as tiles on the left */
static void left_tiles(half *to, const float *x, int width, int64_t ld) {
  for (int j = 0; j < width; j += 32)
    for (int i = 0; i < 32; i++) _mm512_store_si512(to + j * 32 + i * 32, rounded(x + i * ld + j, 32));
}

/* the lanes of the keys j to j + 15 that are low to high */
static inline __mmask16 seen(int j, int low, int high) {
  return (__mmask16)(first16(high + 1 - j) & ~first16(low - j));
}

/* Attention as in `attention`: q (batch, queries, heads, d), k and v (batch, length, kv_heads, d); query i sees the
   keys first[i] <= j <= i. The scores of 32 queries exist at a time. */
void attention_forward(const float *q, const float *k, const float *v, const int32_t *first, float *out, float *lse,
                       int batch, int length, int queries, int heads, int kv_heads, int d, int threads) {
  const int padded = UP(length, 32), groups = heads / kv_heads, shift = length - queries, dp = UP(d, 32);
  const int64_t beside = (int64_t)padded / 32 * TILE, ldk = (int64_t)kv_heads * d, ldq = (int64_t)heads * d;
  const float scale = LOG2E / sqrtf(d);
#pragma omp parallel num_threads(threads)
  {
    begin_tiles();
    half *keys = memory((size_t)padded * dp * 4), *values = keys + (size_t)padded * dp;
    half *rows = memory(32 * dp * 2), *weights = memory((size_t)padded * 64);
    float *score = memory((size_t)padded * 128), *sums = memory(32 * dp * 4), total[32];
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < batch * kv_heads; unit++) {
      const int b = unit / kv_heads, kv = unit % kv_heads;
      pack_right(keys, k + ((int64_t)b * length * kv_heads + kv) * d, d, length, 1, ldk);
      pack_right(values, v + ((int64_t)b * length * kv_heads + kv) * d, length, d, 0, ldk);
      const int32_t *low_of = first ? first + (int64_t)b * length : 0;
      for (int g = 0; g < groups; g++)
        for (int start = 0; start < queries; start += 32) {
          const int h = kv * groups + g, count = LESS(32, queries - start), place = shift + start;
          const int64_t at = ((int64_t)b * queries + start) * heads + h;
          const int begin = low_of ? low_of[place] / 32 * 32 : 0, wide = UP(place + count, 32) - begin;
          round_rows(rows, q + at * d, 32, count, d, ldq);
          for (int j = 0; j < wide; j += 32)
            multiply(rows, dp, 32, 16 * dp, keys + (int64_t)(begin + j) / 16 * dp * 16, (int64_t)dp * 16, dp / 32,
                     score + j, padded, 2, begin + j + 16 < UP(length, 16) ? 2 : 1, 0);
          for (int i = 0; i < count; i++) {
            float *row = score + (int64_t)i * padded;
            const int high = place + i - begin, low = low_of ? low_of[place + i] - begin : 0;
            __m512 top = _mm512_set1_ps(-1e30f), sum = {};
            for (int j = low / 16 * 16; j <= high; j += 16)
              top = _mm512_mask_max_ps(top, seen(j, low, high), top, _mm512_load_ps(row + j));
            const float most = _mm512_reduce_max_ps(top) * scale;
            for (int j = 0; j < wide; j += 16) {
              const __mmask16 m = seen(j, low, high);
              __m512 e = {};
              if (m) e = _mm512_maskz_mov_ps(m, (__m512)exp2v((vec)_mm512_maskz_mov_ps(
                             m, _mm512_load_ps(row + j) * _mm512_set1_ps(scale) - _mm512_set1_ps(most))));
              sum += e;
              _mm512_store_ps(row + j, e);
            }
            total[i] = _mm512_reduce_add_ps(sum);
            lse[((int64_t)b * heads + h) * queries + start + i] = most + log2f(total[i]);
          }
          left_tiles(weights, score, wide, padded);
          for (int j = 0; j < d; j += 32)
            multiply(weights, 32, 2 * TILE, TILE, values + j / 16 * beside + (int64_t)begin / 32 * TILE, beside,
                     wide / 32, sums + j, dp, 2, d - j > 16 ? 2 : 1, 0);
          for (int i = 0; i < count; i++) {
            const __m512 share = _mm512_set1_ps(1.f / total[i]);
            for (int j = 0; j < d; j += 16)
              _mm512_mask_storeu_ps(out + at * d + i * ldq + j, first16(d - j),
                                    _mm512_load_ps(sums + i * dp + j) * share);
          }
        }
    }
    free(keys), free(rows), free(weights), free(score), free(sums);
    end_tiles();
  }
}

void attention_backward(const float *grad, const float *q, const float *k, const float *v, const int32_t *first,
                        const float *out, const float *lse, float *dq, float *dk, float *dv, int batch, int length,
                        int queries, int heads, int kv_heads, int d, int threads) {
  const int padded = UP(length, 32), groups = heads / kv_heads, shift = length - queries, dp = UP(d, 32);
  const int64_t beside = (int64_t)padded / 32 * TILE, ldk = (int64_t)kv_heads * d, ldq = (int64_t)heads * d;
  const float scale = 1.f / sqrtf(d);
#pragma omp parallel num_threads(threads)
  {
    begin_tiles();
    const size_t size = (size_t)padded * dp;
    half *keys = memory(size * 6), *values = keys + size, *back = values + size;
    float *dkeys = memory(size * 8), *dvalues = dkeys + size;
    half *rows = memory(32 * dp * 8), *grads = rows + 32 * dp, *row_pairs = grads + 32 * dp;
    half *grad_pairs = row_pairs + 32 * dp;
    half *weights = memory((size_t)padded * 64), *turned = memory((size_t)padded * 64);
    float *score = memory((size_t)padded * 256), *slope = score + (size_t)padded * 32, *sums = memory(32 * dp * 4);
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < batch * kv_heads; unit++) {
      const int b = unit / kv_heads, kv = unit % kv_heads;
      const int64_t own = ((int64_t)b * length * kv_heads + kv) * d;
      pack_right(keys, k + own, d, length, 1, ldk);
      pack_right(values, v + own, d, length, 1, ldk);
      pack_right(back, k + own, length, d, 0, ldk);
      memset(dkeys, 0, size * 8);
      const int32_t *low_of = first ? first + (int64_t)b * length : 0;
      for (int g = 0; g < groups; g++)
        for (int start = 0; start < queries; start += 32) {
          const int h = kv * groups + g, count = LESS(32, queries - start), place = shift + start;
          const int64_t at = ((int64_t)b * queries + start) * heads + h;
          const int begin = low_of ? low_of[place] / 32 * 32 : 0, wide = UP(place + count, 32) - begin;
          round_rows(rows, q + at * d, 32, count, d, ldq);
          round_rows(grads, grad + at * d, 32, count, d, ldq);
          pair_rows(row_pairs, q + at * d, count, d, ldq, TILE);
          pair_rows(grad_pairs, grad + at * d, count, d, ldq, TILE);
          for (int j = 0; j < wide; j += 32) {
            const int64_t tile = (int64_t)(begin + j) / 16 * dp * 16;
            const int two = begin + j + 16 < UP(length, 16) ? 2 : 1;
            multiply(rows, dp, 32, 16 * dp, keys + tile, (int64_t)dp * 16, dp / 32, score + j, padded, 2, two, 0);
            multiply(grads, dp, 32, 16 * dp, values + tile, (int64_t)dp * 16, dp / 32, slope + j, padded, 2, two, 0);
          }
          for (int i = 0; i < 32; i++) {
            float *row = score + (int64_t)i * padded, *by = slope + (int64_t)i * padded;
            const int high = i < count ? place + i - begin : -1;
            const int low = low_of && i < count ? low_of[place + i] - begin : 0;
            __m512 delta = {};
            if (i < count)
              for (int j = 0; j < d; j += 16)
                delta += floats(grad + at * d + i * ldq + j, d - j) * floats(out + at * d + i * ldq + j, d - j);
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(delta));
            const __m512 norm = _mm512_set1_ps(i < count ? lse[((int64_t)b * heads + h) * queries + start + i] : 0.f);
            for (int j = 0; j < wide; j += 16) {
              const __mmask16 m = seen(j, low, high);
              __m512 e = {}, s = {};
              if (m) {
                e = _mm512_maskz_mov_ps(m, (__m512)exp2v((vec)_mm512_maskz_mov_ps(
                        m, _mm512_load_ps(row + j) * _mm512_set1_ps(scale * LOG2E) - norm)));
                s = _mm512_maskz_mov_ps(m, e * (_mm512_load_ps(by + j) - mean));
              }
              _mm512_store_ps(row + j, e);
              _mm512_store_ps(by + j, s);
            }
          }
          left_tiles(weights, slope, wide, padded);
          for (int j = 0; j < d; j += 32)
            multiply(weights, 32, 2 * TILE, TILE, back + j / 16 * beside + (int64_t)begin / 32 * TILE, beside,
                     wide / 32, sums + j, dp, 2, d - j > 16 ? 2 : 1, 0);
          for (int i = 0; i < count; i++)
            for (int j = 0; j < d; j += 16)
              _mm512_mask_storeu_ps(dq + at * d + i * ldq + j, first16(d - j),
                                    _mm512_load_ps(sums + i * dp + j) * _mm512_set1_ps(scale));
          turn_rows(turned, slope, 32, wide, padded, TILE);
          for (int i = 0; i < wide; i += 32)
            for (int j = 0; j < d; j += 32)
              multiply(turned + i / 16 * TILE, 32, TILE, TILE, row_pairs + j / 16 * TILE, TILE, 1,
                       dkeys + (int64_t)(begin + i) * dp + j, dp, 2, d - j > 16 ? 2 : 1, 1);
          turn_rows(turned, score, 32, wide, padded, TILE);
          for (int i = 0; i < wide; i += 32)
            for (int j = 0; j < d; j += 32)
              multiply(turned + i / 16 * TILE, 32, TILE, TILE, grad_pairs + j / 16 * TILE, TILE, 1,
                       dvalues + (int64_t)(begin + i) * dp + j, dp, 2, d - j > 16 ? 2 : 1, 1);
        }
      for (int i = 0; i < length; i++)
        for (int j = 0; j < d; j += 16) {
          _mm512_mask_storeu_ps(dk + own + i * ldk + j, first16(d - j),
                                _mm512_load_ps(dkeys + (int64_t)i * dp + j) * _mm512_set1_ps(scale));
          _mm512_mask_storeu_ps(dv + own + i * ldk + j, first16(d - j), _mm512_load_ps(dvalues + (int64_t)i * dp + j));
        }
    }
    free(keys), free(dkeys), free(rows), free(weights), free(turned), free(score), free(sums);
    end_tiles();
  }
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernels. Raises native.Unavailable."""
    return tiles.library(SOURCE, folder)


@operator("pgolf::tiled_attention")
def attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `attention.attention`, with every factor of a product rounded."""
    (batch, queries, heads, width), (_, length, kv_heads, _) = q.shape, k.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    first = None if first is None else first.contiguous()
    y, lse = torch.empty_like(q), q.new_empty(batch, heads, queries)
    tensors = map(native.pointer, (q, k, v, first, y, lse))
    load().attention_forward(*tensors, batch, length, queries, heads, kv_heads, width, torch.get_num_threads())
    return y, lse


@operator("pgolf::tiled_attention_backward")
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v, shaped like them; the arguments are as in `attention`."""
    (batch, queries, heads, width), (_, length, kv_heads, _) = q.shape, k.shape
    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    first = None if first is None else first.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tensors = map(native.pointer, (grad, q, k, v, first, y, lse, *gradients))
    sizes = batch, length, queries, heads, kv_heads, width, torch.get_num_threads()
    load().attention_backward(*tensors, *sizes)
    return gradients


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)  # nothing but y gets a gradient: torch would fill one with zeros


def _differentiate_attention(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*attention_backward(grad, *ctx.saved_tensors), None)


attention.register_autograd(_differentiate_attention, setup_context=_save_attention)
