"""Attention in C with all that happens to its heads before and after, for training in float32 on a CPU.

    q = gain * rotate(norm(q)),  k = rotate(norm(k))
    y = attention(q, k, v)
    y = y - (y . v') v'          v' = v / |v|, the own value (`xsa`); where it is exclusive
    y = sigmoid(factor * z) * y  (`head_gate`); where there is a gate

Torch makes some thirty passes over tensors of (B, T, H, D) of it, forward and backward. Here each of these steps
happens to a head while `attention` has it in the first cache. Queries, keys, values and the gate's z lie side by side
in the rows of one matrix, so that one product makes them and one takes their gradient.
"""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.kernels import attention, native
from pgolf.model.kernels.operator import operator

if TYPE_CHECKING:
    from pgolf.model.attention import Attention
    from pgolf.model.attention_mask import View
    from pgolf.model.forward_context import Step

_HOOKS = r"""
#define HEADS
typedef struct {
  const float *cos, *sin; /* (length, HALF): HALF of the D dimensions are turned with as many others */
  const float *gain;      /* (heads), of the queries */
  const float *gate;      /* heads columns of the rows, or null */
  float *along;           /* (batch, length, heads): the share of the own value that was taken out, or null */
  float *by_gate;         /* as the gate */
  float *by_gain;         /* (batch, heads) */
  float factor;           /* of the gate */
  int heads, width; /* of a row */
} around;

/* in `attention`, with its names: sequence b, head h, first token `place`, and t, an `around` */
#define ENTER(x, position, gain) enter(x, t, position, gain)
#define LEAVE(y, own, row) leave(y, own, t, row, h)
#define LEAVE_BACK(g, y, own, by_own, row) leave_back(g, y, own, by_own, t, row, h)
#define ENTER_BACK(g, x, position, gain) enter_back(g, x, t, position, gain)
#define KEEP(sum) t->by_gain[b * heads + kv * groups + g] = sum

#define EPS 1.1920928955078125e-07f /* of the norms, torch's for float32 */

static inline float dot_head(const float *a, const float *b) {
  typedef float four __attribute__((vector_size(16)));
  dvec sums = {};
  for (int d = 0; d < D; d += DLANES) sums += *(const unaligned *)(a + d) * *(const unaligned *)(b + d);
  four parts[DLANES / 4];
  memcpy(parts, &sums, sizeof sums);
  UNROLL for (int n = DLANES / 8; n; n /= 2)
    UNROLL for (int i = 0; i < n; i++) parts[i] += parts[i + n];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

/* x (D), normed, rotated as at `position`, times gain, in place */
static void enter(float *x, const around *t, int position, float gain) {
  const float *restrict cos = t->cos + (int64_t)position * HALF, *restrict sin = t->sin + (int64_t)position * HALF;
  const float scale = gain / sqrtf(dot_head(x, x) / D + EPS);
  for (int i = 0; i < D; i++) x[i] *= scale;
  float *restrict low = x, *restrict high = x + HALF;
  for (int i = 0; i < HALF; i++) {
    const float a = low[i], b = high[i];
    low[i] = a * cos[i] + b * sin[i];
    high[i] = b * cos[i] - a * sin[i];
  }
}

/* Turns g (D), the gradient by the output of `enter`, into that by its input x; returns that by gain. */
static float enter_back(float *g, const float *x, const around *t, int position, float gain) {
  const float *restrict cos = t->cos + (int64_t)position * HALF, *restrict sin = t->sin + (int64_t)position * HALF;
  float *restrict low = g, *restrict high = g + HALF;
  for (int i = 0; i < HALF; i++) {
    const float a = low[i], b = high[i];
    low[i] = a * cos[i] - b * sin[i];
    high[i] = b * cos[i] + a * sin[i];
  }
  const float scale = 1.f / sqrtf(dot_head(x, x) / D + EPS), by_gain = dot_head(g, x) * scale;
  const float back = scale * by_gain / D;
  for (int i = 0; i < D; i++) g[i] = gain * scale * (g[i] - back * x[i]);
  return by_gain;
}

static inline float squared_length(const float *v) {
  const float size = dot_head(v, v);
  return size > 1e-24f ? size : 1e-24f; /* as F.normalize */
}

static inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

/* a head's output, without its part along the own value, times its gate; row: of the token */
static inline void leave(float *y, const float *own, const around *t, int64_t row, int h) {
  if (t->along) {
    const float share = t->along[row * t->heads + h] = dot_head(y, own) / squared_length(own);
    for (int d = 0; d < D; d++) y[d] -= share * own[d];
  }
  if (t->gate) {
    const float open = sigmoid(t->factor * t->gate[row * t->width + h]);
    for (int d = 0; d < D; d++) y[d] *= open;
  }
}

/* Turns g, the gradient by the result y of `leave`, into that by its input; adds to that by the own value. */
static inline void leave_back(float *g, const float *y, const float *own, float *by_own, const around *t, int64_t row,
                              int h) {
  float open = 1.f;
  if (t->gate) {
    open = sigmoid(t->factor * t->gate[row * t->width + h]);
    t->by_gate[row * t->width + h] = t->factor * (1.f - open) * dot_head(g, y);
  }
  if (t->along) {
    const float share = t->along[row * t->heads + h], back = dot_head(g, own) / squared_length(own);
    for (int d = 0; d < D; d++) {
      by_own[d] -= share * open * (g[d] - back * own[d]) + back * y[d];
      g[d] = open * (g[d] - back * own[d]);
    }
  } else if (t->gate)
    for (int d = 0; d < D; d++) g[d] *= open;
}
"""

SOURCE = (
    attention.SOURCE.replace("#ifndef HEADS", _HOOKS + "#ifndef HEADS", 1)
    + r"""
/* rows (batch, length, width): of each token the heads' queries, keys and values, and with a gate its z for each head;
   along: room, or null where the own value stays */
void heads_forward(const float *rows, const float *cos, const float *sin, const float *gain, const int32_t *first,
                   float *out, float *lse, float *along, float factor, int batch, int length, int heads, int kv_heads,
                   int width, int gated, int threads) {
  const float *k = rows + heads * D, *v = k + kv_heads * D;
  const around t = {cos, sin, gain, gated ? v + kv_heads * D : 0, along, 0, 0, factor, heads, width};
  attention_forward(rows, k, v, first, &t, out, lse, batch, length, length, heads, kv_heads, width, width, threads);
}

void heads_backward(const float *grad, const float *rows, const float *cos, const float *sin, const float *gain,
                    const int32_t *first, const float *out, const float *lse, float *along, float *by_rows,
                    float *by_gain, float factor, int batch, int length, int heads, int kv_heads, int width, int gated,
                    int threads) {
  const float *k = rows + heads * D, *v = k + kv_heads * D;
  float *dk = by_rows + heads * D, *dv = dk + kv_heads * D;
  const around t = {cos, sin, gain, gated ? v + kv_heads * D : 0, along, dv + kv_heads * D, by_gain,
                    factor, heads, width};
  attention_backward(grad, rows, k, v, first, &t, out, lse, by_rows, dk, dv, batch, length, length, heads, kv_heads,
                     width, width, threads);
}
"""
)


def load(head_dim: int, rotated: int, folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel for heads of this width, so many of whose dimensions are rotated: compiled for both, because
    the loops over them are short. Raises native.Unavailable."""
    attention.check(head_dim)
    return native.library(SOURCE, (f"HEAD_DIM={head_dim}", f"HALF={rotated // 2}"), folder)


@operator("pgolf::heads")
def heads(
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor,
    first: Tensor | None,
    head_dim: int,
    exclusive: bool,
    factor: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas above; factor: of the gate, None without one.

    rows (B, T, (H + 2 H_kv) D, and H more with a gate); cos, sin (T, R / 2) for R rotated dimensions; gain (H,); first
    as in `attention`. Returns y (B, T, H, D), and what the backward pass needs: the logarithms (B, H, T) of
    `attention`, and the shares of the own value that were taken out (B, T, H), or nothing.
    """
    (batch, length, _), count = rows.shape, len(gain)
    given = [None if part is None else part.contiguous() for part in (rows, cos, sin, gain, first)]
    out, lse = rows.new_empty(batch, length, count, head_dim), rows.new_empty(batch, count, length)
    along = rows.new_empty((batch, length, count) if exclusive else 0)
    tensors = map(native.pointer, (*given, out, lse, along if exclusive else None))
    load(head_dim, 2 * cos.shape[1]).heads_forward(*tensors, *_numbers(rows, gain, head_dim, factor))
    return out, lse, along


@operator("pgolf::heads_backward")
def heads_backward(
    grad: Tensor,
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor,
    first: Tensor | None,
    out: Tensor,
    lse: Tensor,
    along: Tensor,
    factor: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradients by rows and gain."""
    given = [None if part is None else part.contiguous() for part in (grad, rows, cos, sin, gain, first)]
    drows, dgain = rows.new_empty(rows.shape), rows.new_empty(len(rows), len(gain))
    tensors = map(native.pointer, (*given, out, lse, along if along.numel() else None, drows, dgain))
    head_dim = out.shape[-1]
    load(head_dim, 2 * cos.shape[1]).heads_backward(*tensors, *_numbers(rows, gain, head_dim, factor))
    return drows, dgain.sum(0)


def _numbers(rows: Tensor, gain: Tensor, head_dim: int, factor: float | None) -> tuple[Any, ...]:
    (batch, length, width), count = rows.shape, len(gain)
    kv_heads = (width - (0 if factor is None else count) - count * head_dim) // (2 * head_dim)
    sizes = batch, length, count, kv_heads, width
    return ctypes.c_float(factor or 0.0), *sizes, int(factor is not None), torch.get_num_threads()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.set_materialize_grads(False)  # nothing but y gets a gradient: torch would fill one with zeros
    ctx.factor = inputs[7]


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    drows, dgain = heads_backward(grad, *ctx.saved_tensors, ctx.factor)
    return drows, None, None, dgain, None, None, None, None


heads.register_autograd(_differentiate, setup_context=_save)


def whole(module: "Attention", h: Tensor, step: "Step", view: "View", scale: Tensor | None) -> Tensor:
    """What `module` makes of h (B, T, dim): one product for queries, keys, values and gate, and the kernel."""
    weights, gate = [module.c_q.weight, module.c_k.weight, module.c_v.weight], module.gate
    if gate is not None:
        weights.append(F.pad(gate.weight, (0, h.shape[-1] - gate.width)))
    rows = module.c_q.times(h, torch.cat(weights))
    factor = None if gate is None else gate.factor
    given = rows, step.cos, step.sin, module.q_gain, view.first, module.head_dim, module.exclusive, factor
    return module.proj(heads(*given)[0].flatten(2), scale)
