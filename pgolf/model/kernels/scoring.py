"""The forward pass without gradients in C: the embedding, and each block from its norms to its MLP.

In scoring, plain torch spends more than half of a block's time on elementwise operations over tensors that do not fit
the cache. Here rows are taken in steps of 48, so everything between two products happens while they are in the first
cache; attention is the kernel of `attention`. Weights are packed at every call (1% of its time), so they may change
between calls. `fast_paths` installs it. A block with parts that it does not compute, and every pass with gradients,
runs in torch.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from pgolf.model.attention_mask import View
from pgolf.model.block import Block
from pgolf.model.forward_context import Step
from pgolf.model.gpt import GPT, Parts
from pgolf.model.kernels import attention, linear, native
from pgolf.model.lanes import advance
from pgolf.model.layers import NORM_EPS
from pgolf.model.skips import Skip, join

WIDEST = 256
"""Widest stream: the packed weights of a block and 48 rows then fit the second cache."""
POINTERS = (
    "x", "x0", "inside", "cos", "sin", "first", "values", "mix", "attn_taps", "mlp_taps", "wq", "wk", "wv", "gain",
    "gate", "wo", "attn_scale", "fc", "proj", "mlp_scale", "out",
)  # fmt: skip
NUMBERS = ("batch", "length", "asked", "last", "dim", "heads", "kv_heads", "hidden", "half", "taps", "gate_width",
           "exclusive", "threads")  # fmt: skip
FACTORS = ("norm", "slope", "gate_factor", "eps")


class _Task(ctypes.Structure):
    """The arguments of the kernel; C gets the same fields from the same lists."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int) for name in NUMBERS),
        *((name, ctypes.c_float) for name in FACTORS),
    ]


SOURCE = (
    attention.SOURCE
    + linear.SOURCE.removeprefix(native.VECTORS)
    + f"""
typedef struct {{
  const float {", ".join("*" + name for name in POINTERS)};
  int {", ".join(NUMBERS)};
  float {", ".join(FACTORS)};
}} task;
"""
    + r"""
#define BACK 8 /* most taps of a convolution */
#define EACH_STEP(rows) _Pragma("omp parallel for num_threads(t->threads) schedule(static)") \
  for (int at = 0; at < (rows); at += STEP)

static float *floats(size_t count) { return aligned_alloc(64, (count * 4 + 63) / 64 * 64); }

static float *packed(const float *w, int k, int m) {
  float *to = floats((size_t)k * PAD(m));
  pack_panels(w, to, k, m, 1);
  return to;
}

static inline float dot(const float *a, const float *b, int n) {
  vec sums = {};
  float sum = 0.f;
  int i = 0;
  for (; i + LANES <= n; i += LANES) sums += *(const uvec *)(a + i) * *(const uvec *)(b + i);
  for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

/* out = x + scale y; out may be x */
static inline void add(float *out, const float *x, const float *scale, const float *y, int n) {
#pragma GCC ivdep
  for (int i = 0; i < n; i++) out[i] = x[i] + scale[i] * y[i];
}

/* The square of z above zero, of slope z below; z is writable up to a whole vector. */
static inline void square(float *z, float slope, int n) {
  for (int i = 0; i < n; i += LANES) {
    const vec x = *(vec *)(z + i), s = choose(x > splat(0.f), x, splat(slope) * x);
    *(vec *)(z + i) = s * s;
  }
}

/* out = factor x / rms(x) */
static inline void norm(float *out, const float *x, int n, float factor, float eps) {
  const float scale = factor / sqrtf(dot(x, x, n) / n + eps);
  for (int i = 0; i < n; i++) out[i] = x[i] * scale;
}

/* h[r] += sum over k of taps[k] h[r - 1 - k] within the document, r < rows, from the last row to the first.
   h has `back` readable rows before; place: position of the first row. */
static void convolve(float *h, const float *taps, const float *inside, int rows, int back, const task *t) {
  const int dim = t->dim;
  for (int r = rows - 1; r >= 0; r--)
    for (int k = 0; k < t->taps && r - 1 - k >= -back && inside[r - k] != 0.f; k++) {
      add(h + r * dim, h + r * dim, taps + k * dim, h + (r - 1 - k) * dim, dim);
    }
}

/* normed and rotated heads of one position, in place; gain: per head, or null */
static void turn(float *x, int heads, const float *gain, const float *restrict cos, const float *restrict sin,
                 const task *t) {
  const int half = t->half;
  for (int n = 0; n < heads; n++, x += D) {
    norm(x, x, D, gain ? gain[n] : 1.f, t->eps);
    float *restrict low = x, *restrict high = x + half;
    for (int i = 0; i < half; i++) {
      const float a = low[i], b = high[i];
      low[i] = a * cos[i] + b * sin[i];
      high[i] = b * cos[i] - a * sin[i];
    }
  }
}

/* The rows from at to end of windows of `length` rows, in pieces from..to that lie in one window. */
#define EACH_PIECE(at, end, length) \
  for (int from = (at), to; from < (end); from = to) \
    if (to = from / (length) * (length) + (length), to = to < (end) ? to : (end), 1)

/* out = the normed sum of a token's embedding, its copies' times their vectors, and the gated sum before */
void embed(const int64_t *tokens, const int64_t *copied, const float *table, const float *on_input, const float *gate,
           const float *inside, float *out, float strength, float eps, int batch, int length, int dim, int orders,
           int depth, int width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int at = 0; at < batch * length; at += STEP) {
    float before[dim], sum[dim];
    const int end = batch * length - at < STEP ? batch * length : at + STEP;
    for (int row = at % length ? at - 1 : at; row < end; row++) {
      memcpy(sum, table + tokens[row] * dim, dim * 4);
      for (int n = 0; n < orders; n++) {
        const int64_t copy = copied[((int64_t)row * orders + n) * depth];
        if (copy >= 0) add(sum, sum, on_input + n * dim, table + copy * dim, dim);
      }
      float *to = out + (int64_t)row * dim;
      if (row >= at) {
        const float share = gate && row % length ? inside[row] * strength * sigmoid(dot(sum, gate, width)) : 0.f;
        for (int i = 0; i < dim; i++) to[i] = share != 0.f ? sum[i] + share * before[i] : sum[i];
        norm(to, to, dim, 1.f, eps);
      }
      memcpy(before, sum, dim * 4);
    }
  }
}

void block(const task *t) {
  const int dim = t->dim, kv = t->kv_heads * D, length = t->length, asked = t->asked, shift = length - asked;
  const int all = t->batch * length, few = t->batch * asked, last = t->last, hidden = t->hidden, heads = t->heads;
  float *q = floats((size_t)few * dim), *k = floats((size_t)all * kv), *v = floats((size_t)all * kv);
  float *y = floats((size_t)few * dim), *lse = floats((size_t)few * heads), *gates = floats((size_t)few * heads);
  float *stream = floats((size_t)few * dim);
  float *wq = packed(t->wq, dim, dim), *wk = packed(t->wk, dim, kv), *wv = packed(t->wv, dim, kv);
  float *wo = packed(t->wo, dim, dim), *fc = packed(t->fc, dim, hidden), *proj = packed(t->proj, hidden, dim);

  EACH_STEP(all) {
    float h_rows[(STEP + BACK) * dim] __attribute__((aligned(64))), mixed[STEP * dim], query[STEP * dim];
    float *h = h_rows + BACK * dim;
    const float *restrict mix = t->mix;
    const int end = all - at < STEP ? all : at + STEP;
    EACH_PIECE(at, end, length) {
      const int place = from % length, rows = to - from, back = place < t->taps ? place : t->taps;
      for (int r = -back; r < rows; r++) {
        const float *x = t->x + (int64_t)(from + r) * dim, *x0 = t->x0 + (int64_t)(from + r) * dim;
        float *to_row = mixed + (r < 0 ? 0 : r) * dim;
        if (t->mix) {
          for (int i = 0; i < dim; i++) to_row[i] = mix[i] * x[i] + mix[dim + i] * x0[i];
        } else
          memcpy(to_row, x, dim * 4);
        norm(h + r * dim, to_row, dim, t->norm, t->eps);
      }
      if (t->attn_taps) convolve(h, t->attn_taps, t->inside + from, rows, back, t);
      times_panels(h, wk, k + (int64_t)from * kv, rows, dim, kv, dim, kv, 0);
      times_panels(h, wv, v + (int64_t)from * kv, rows, dim, kv, dim, kv, 0);
      for (int r = 0; r < rows; r++) {
        const int p = place + r;
        turn(k + (int64_t)(from + r) * kv, t->kv_heads, 0, t->cos + p * t->half, t->sin + p * t->half, t);
        for (int64_t i = (int64_t)(from + r) * kv, end = i + kv; t->values && i < end; i++) v[i] += t->values[i];
      }
      const int begin = place < shift ? shift - place : 0; /* the first row that is asked for */
      if (begin >= rows) continue;
      times_panels(h + begin * dim, wq, query, rows - begin, dim, dim, dim, dim, 0);
      for (int r = begin; r < rows; r++) {
        const int p = place + r;
        const int64_t row = (int64_t)(from / length) * asked + p - shift;
        float *mine = query + (r - begin) * dim;
        turn(mine, heads, t->gain, t->cos + p * t->half, t->sin + p * t->half, t);
        memcpy(q + row * dim, mine, dim * 4);
        memcpy(stream + row * dim, mixed + r * dim, dim * 4);
        for (int n = 0; t->gate && n < heads; n++) {
          const float z = dot(h + r * dim, t->gate + n * t->gate_width, t->gate_width);
          gates[row * heads + n] = sigmoid(t->gate_factor * z);
        }
      }
    }
  }

  attention_forward(q, k, v, (const int32_t *)t->first, 0, y, lse, t->batch, length, asked, heads, t->kv_heads, dim, kv,
                    t->threads);

  EACH_STEP(few) {
    float added[STEP * dim];
    const int rows = few - at < STEP ? few - at : STEP;
    for (int r = 0; r < rows; r++) {
      const int64_t row = at + r, key = row / asked * length + shift + row % asked;
      for (int n = 0; n < heads; n++) {
        float *mine = y + row * dim + n * D;
        const float *own = v + key * kv + n / (heads / t->kv_heads) * D;
        if (t->exclusive) {
          const float size = dot(own, own, D), share = dot(mine, own, D) / (size > 1e-24f ? size : 1e-24f);
          for (int i = 0; i < D; i++) mine[i] -= share * own[i];
        }
        if (t->gate) for (int i = 0; i < D; i++) mine[i] *= gates[row * heads + n];
      }
    }
    times_panels(y + (int64_t)at * dim, wo, added, rows, dim, dim, dim, dim, 0);
    for (int r = 0; r < rows; r++)
      add(stream + (int64_t)(at + r) * dim, stream + (int64_t)(at + r) * dim, t->attn_scale, added + r * dim, dim);
  }

  EACH_STEP(t->batch * last) {
    float h_rows[(STEP + BACK) * dim] __attribute__((aligned(64))), added[STEP * dim];
    float *h = h_rows + BACK * dim, *z = floats((size_t)STEP * hidden);
    const int end = t->batch * last - at < STEP ? t->batch * last : at + STEP;
    EACH_PIECE(at, end, last) {
      const int place = asked - last + from % last, rows = to - from, back = place < t->taps ? place : t->taps;
      const int window = from / last;
      const float *x = stream + ((int64_t)window * asked + place) * dim;
      for (int r = -back; r < rows; r++) norm(h + r * dim, x + r * dim, dim, t->norm, t->eps);
      if (t->mlp_taps) convolve(h, t->mlp_taps, t->inside + (int64_t)window * length + shift + place, rows, back, t);
      times_panels(h, fc, z, rows, dim, hidden, dim, hidden, 0);
      square(z, t->slope, rows * hidden);
      times_panels(z, proj, added, rows, hidden, dim, hidden, dim, 0);
      float *to_rows = (float *)t->out + (int64_t)from * dim;
      for (int r = 0; r < rows; r++)
        add(to_rows + r * dim, x + r * dim, t->mlp_scale, added + r * dim, dim);
    }
    free(z);
  }
  float *made[] = {q, k, v, y, lse, gates, stream, wq, wk, wv, wo, fc, proj};
  for (int i = 0; i < 13; i++) free(made[i]);
}
"""
)


def load(head_dim: int, folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel for heads of this width. Raises native.Unavailable."""
    attention.check(head_dim)
    return native.library(SOURCE, (f"HEAD_DIM={head_dim}",), folder)


def fits(block: Block) -> bool:
    """True if the kernel computes every part that this block has."""
    attn = block.attn
    taps = 0 if block.attn_canon is None else len(block.attn_canon.taps)
    return (
        attn.proj.in_features <= WIDEST
        and taps <= 8
        and not (block.parallel or attn.offset_from)
        and attn.value_x0 is None
    )


def parts(model: GPT, folder: Path | None = None) -> Parts | None:
    """The parts of a forward pass of `model` without gradients, in C where the kernel computes them.

    folder: of compiled kernels. None where it computes no block. Raises native.Unavailable.
    """
    plain = cast(list[Block], list(model.blocks))
    blocks = [BlockInC(block) if fits(block) else block for block in plain]
    if not any(isinstance(block, BlockInC) for block in blocks):
        return None
    load(model.config.dim // model.config.num_heads, folder)
    other = model.bigram is not None or model.emb_proj is not None
    embedded = model.embedded if other else EmbeddingInC(model)
    return Parts(embedded, cast(list[Callable[..., Tensor]], blocks), advance, model.closed)


class EmbeddingInC:
    """Called like `GPT.embedded`, without gradients."""

    def __init__(self, model: GPT) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, tokens: Tensor, inside: Tensor | None, copied: Tensor | None) -> Tensor:
        """See `GPT.embedded`."""
        model, smear = self.model, self.model.smear
        heads = model.copy_heads if copied is not None else None
        table = model.input_table()
        if model.compute_dtype != torch.float32 or table.dtype != torch.float32:
            return model.embedded(tokens, inside, copied)
        out = torch.empty(*tokens.shape, table.shape[1])
        on_input = None if heads is None else heads.on_input
        orders, depth = (0, 0) if on_input is None or copied is None else copied.shape[2:]
        given = tokens, copied, table, on_input, None if smear is None else smear.weight, inside
        held = [None if tensor is None else tensor.contiguous() for tensor in given]
        strength = 0.0 if smear is None else float(smear.strength)
        numbers = *tokens.shape, table.shape[1], orders, depth, 0 if smear is None else len(smear.weight)
        load(model.config.dim // model.config.num_heads).embed(
            *map(native.pointer, (*held, out)), ctypes.c_float(strength), ctypes.c_float(NORM_EPS), *numbers,
            torch.get_num_threads(),
        )  # fmt: skip
        return out


class BlockInC:
    """Called like `block`, without gradients."""

    def __init__(self, block: Block) -> None:
        self.block = block

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        step: Step,
        view: View,
        values: Tensor | None = None,
        last: int = 0,
        skip: Skip | None = None,
    ) -> Tensor:
        """See `Block.forward`."""
        block, attn = self.block, self.block.attn
        if step.cache is not None or x.dtype != torch.float32 or view.window:
            return cast(Tensor, block(x, step, view, values, last, skip))
        batch, length, dim = x.shape
        reach = 0 if block.mlp_canon is None or not last else len(block.mlp_canon.taps)
        asked = min(last + reach, length) if last else length
        out = x.new_empty(batch, last or length, dim)
        canon = block.attn_canon is not None and step.inside is not None
        gate = attn.gate
        held: dict[str, Tensor | None] = {
            "x": x if skip is None else join(x, skip),
            "x0": step.x0,
            "inside": step.inside,
            "cos": step.cos,
            "sin": step.sin,
            "first": view.first,
            "values": values,
            "mix": block.resid_mix,
            "attn_taps": block.attn_canon.taps if canon and block.attn_canon is not None else None,
            "mlp_taps": block.mlp_canon.taps if canon and block.mlp_canon is not None else None,
            "wq": attn.c_q.weight,
            "wk": attn.c_k.weight,
            "wv": attn.c_v.weight,
            "gain": attn.q_gain,
            "gate": None if gate is None else gate.weight,
            "wo": attn.proj.weight,
            "attn_scale": block.attn_scale,
            "fc": block.mlp.fc.weight,
            "proj": block.mlp.proj.weight,
            "mlp_scale": block.mlp_scale,
            "out": out,
        }
        held = {name: None if tensor is None else tensor.contiguous() for name, tensor in held.items()}
        task = _Task(
            **{name: native.pointer(tensor) for name, tensor in held.items()},
            batch=batch,
            length=length,
            asked=asked,
            last=last or length,
            dim=dim,
            heads=attn.num_heads,
            kv_heads=attn.num_kv_heads,
            hidden=block.mlp.fc.out_features,
            half=step.cos.shape[-1],
            taps=0 if block.attn_canon is None else len(block.attn_canon.taps),
            gate_width=0 if gate is None else gate.width,
            exclusive=int(attn.exclusive),
            threads=torch.get_num_threads(),
            norm=1.0 if block.norm_factor is None else float(block.norm_factor),
            slope=block.mlp.slope,
            gate_factor=0.0 if gate is None else gate.factor,
            eps=NORM_EPS,
        )
        load(attn.head_dim).block(ctypes.byref(task))
        return out
