"""The copy heads' search and look-ups and the document counts in C, for float32 on a CPU.

Plain torch sorts integers for every order and passes over (tokens, orders, dim) tensors half a dozen times. Here a hash
table per row finds the earlier occurrences, and every look-up is added to its sum at once. Gradients by the table are
split between threads by columns, so that no two threads write the same number and the order of every sum is that of
the tokens.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.model.kernels import native
from pgolf.model.raised_logits import Gradients, Raised

COUNTED = r"""
/* What document counts raise: position p, counted through all rows of `length`, raises the tokens that its document
   holds so far, token j by (gates[p] + by_token[j]) * weights[j]; with room for the gradients. */
typedef struct {
  const int64_t *tokens;
  const int32_t *first; /* of each position's document, in its row */
  const float *gates, *by_token, *weights;
  float *d_gates, *d_by_token;
  int64_t length;
} counted;

static inline void add_counted(float *logits, const counted *c, int64_t p) {
  const float gate = c->gates[p];
  for (int64_t at = p - p % c->length + c->first[p]; at <= p; at++)
    logits[c->tokens[at]] += (gate + c->by_token[at]) * c->weights[at];
}

/* The gradients by by_token are summed over PIECE positions at a time, then piece by piece, so that the order of the
   sums is the same for every number of threads. A piece begins anywhere in a row and may end in the next one. */
#define PIECE 16
static size_t counted_span(const counted *c) { return (size_t)c->length + PIECE; }
static size_t counted_sums(const counted *c, int64_t positions) { /* floats */
  return (positions + PIECE - 1) / PIECE * counted_span(c);
}

/* The gradients of the positions begin <= p < end of one piece, for g (end - begin, width) by their logits: those by
   gates are written, those by by_token go to the piece's sums. */
static void differentiate_counted(const float *g, int64_t width, const counted *c, float *sums, int64_t begin,
                                  int64_t end) {
  const int64_t origin = begin - begin % c->length;
  memset(sums, 0, (size_t)(end - origin) * 4);
  for (int64_t p = begin; p < end; p++) {
    const float *slopes = g + (p - begin) * width;
    float parts[4] = {}; /* one sum would be a chain of additions */
    for (int64_t at = p - p % c->length + c->first[p]; at <= p; at += 4)
      for (int k = 0; k < 4 && at + k <= p; k++) {
        const float slope = slopes[c->tokens[at + k]] * c->weights[at + k];
        parts[k] += slope, sums[at + k - origin] += slope;
      }
    c->d_gates[p] = parts[0] + parts[1] + parts[2] + parts[3];
  }
}

/* adds the sums of all pieces from position begin on to the gradient by by_token */
static void add_counted_sums(const counted *c, const float *sums, int64_t begin, int64_t end) {
  for (int64_t from = begin; from < end; from += PIECE, sums += counted_span(c)) {
    const int64_t origin = from - from % c->length, to = from + PIECE < end ? from + PIECE : end;
    for (int64_t at = 0; at < to - origin; at++) c->d_by_token[origin + at] += sums[at];
  }
}
"""
"""C of document counts, for kernels that hold logits."""

SOURCE = (
    native.VECTORS
    + COUNTED
    + r"""
typedef float uvec __attribute__((vector_size(BYTES), aligned(4)));
typedef struct { uint64_t key; int32_t number, last; } entry;

/* The entry of `key`, a new one with a number of its own and last = -1 where there was none. Keys are not 0. */
static entry *find(entry *table, int mask, uint64_t key, int32_t *numbers) {
  uint64_t at = key * 0x9e3779b97f4a7c15u;
  for (at = (at >> 32) & mask; table[at].key && table[at].key != key; at = (at + 1) & mask) {}
  if (!table[at].key) table[at] = (entry){key, (*numbers)++, -1};
  return table + at;
}

/* found (rows, length, orders, depth): see `copy_heads.candidates`; orders ascend */
void candidates(const int64_t *tokens, int64_t *found, const int32_t *orders, int count, int depth, int64_t bos,
                int window, int rows, int length, int threads) {
  int size = 2;
  while (size < 2 * length) size *= 2;
#pragma omp parallel num_threads(threads)
  {
    entry *table = malloc(size * sizeof(entry));
    int32_t *gram = malloc(length * 8), *earlier = gram + length;
#pragma omp for schedule(static)
    for (int row = 0; row < rows; row++) {
      const int64_t *mine = tokens + (int64_t)row * length;
      int document = 0, numbers = 0, next = 0;
      for (int order = 1; next < count; order++) {
        memset(table, 0, size * sizeof(entry));
        int32_t before = 0; /* the shorter context that ends at the token before */
        for (int i = 0; i < length; i++) {
          const int begins = i == 0 || mine[i] == bos;
          const int32_t shorter = gram[i];
          if (order == 1) document += begins, before = document;
          earlier[i] = -1;
          if (order > 1 && begins) {
            gram[i] = numbers++; /* it crosses the start of a document: like no other */
          } else {
            entry *e = find(table, size - 1, ((uint64_t)(before + 1) << 32 | (uint32_t)mine[i]), &numbers);
            earlier[i] = e->last, gram[i] = e->number, e->last = i;
          }
          before = shorter;
        }
        if (order != orders[next]) continue;
        for (int i = 0; i < length; i++) {
          int64_t *to = found + (((int64_t)row * length + i) * count + next) * depth;
          for (int n = 0, match = earlier[i]; n < depth; n++) {
            to[n] = match >= 0 && (!window || i - match < window) ? mine[match + 1] : -1;
            if (match >= 0) match = earlier[match];
          }
        }
        next++;
      }
    }
    free(table), free(gram);
  }
}

/* out (n, width) = the sum over j of gates[n][j] * table[tokens[n][j]], or with shared gates of vectors[j] * table[..];
   a token of -1 is none. tokens (n, count) at a distance of `step` numbers; gates (n, count), vectors (count, width) */
void look_up(const int64_t *tokens, const float *table, const float *gates, const float *vectors, float *out, int n,
             int count, int step, int width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int i = 0; i < n; i++) {
    float *to = out + (int64_t)i * width;
    memset(to, 0, (size_t)width * 4);
    for (int j = 0; j < count; j++) {
      const int64_t token = tokens[((int64_t)i * count + j) * step];
      if (token < 0) continue;
      const float *row = table + token * width, *by = vectors + (int64_t)j * width;
      const float gate = gates ? gates[(int64_t)i * count + j] : 0.f;
      int c = 0;
      if (gates)
        for (; c + LANES <= width; c += LANES) *(uvec *)(to + c) += splat(gate) * *(const uvec *)(row + c);
      else
        for (; c + LANES <= width; c += LANES) *(uvec *)(to + c) += *(const uvec *)(by + c) * *(const uvec *)(row + c);
      for (; c < width; c++) to[c] += (gates ? gate : by[c]) * row[c];
    }
  }
}

/* What `document_counts` raises at position i of a row for the tokens first[i] <= j <= i: (gates[i] + by_token[j]) *
   weights[j]; elsewhere token 0 by 0. All (rows, length) but raised and amounts (rows, length, length). */
void counts(const int64_t *tokens, const int32_t *first, const float *gates, const float *by_token,
            const float *weights, int64_t *raised, float *amounts, int rows, int length, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t at = 0; at < (int64_t)rows * length; at++) {
    const int i = at % length;
    const int64_t row = at - i;
    int64_t *to = raised + at * length;
    float *amount = amounts + at * length;
    for (int j = 0; j < first[at]; j++) to[j] = 0, amount[j] = 0.f;
    memcpy(to + first[at], tokens + row + first[at], (size_t)(i + 1 - first[at]) * 8);
    for (int j = first[at]; j <= i; j++) amount[j] = (gates[at] + by_token[row + j]) * weights[row + j];
    memset(to + i + 1, 0, (size_t)(length - 1 - i) * 8);
    memset(amount + i + 1, 0, (size_t)(length - 1 - i) * 4);
  }
}

/* gradients by gates and by_token for g by amounts, `step` numbers from position to position */
void counts_backward(const float *g, int64_t step, const int32_t *first, const float *weights, float *d_gates,
                     float *d_by_token, int rows, int length, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int row = 0; row < rows; row++) {
    const float *by = weights + (int64_t)row * length;
    float *sums = d_by_token + (int64_t)row * length;
    memset(sums, 0, (size_t)length * 4);
    for (int i = 0; i < length; i++) {
      const int64_t at = (int64_t)row * length + i;
      const float *mine = g + at * step;
      float sum = 0.f;
#pragma omp simd reduction(+ : sum)
      for (int j = first[at]; j <= i; j++) sum += mine[j] * by[j], sums[j] += mine[j] * by[j];
      d_gates[at] = sum;
    }
  }
}

/* Adds what `counts` writes for the positions begin <= p < end, counted through all rows, to their logits z
   (end - begin, width). */
void add_counts(float *z, const counted *c, int64_t begin, int64_t end, int width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = begin; p < end; p++) add_counted(z + (p - begin) * width, c, p);
}

/* Gradients for g (end - begin, width) by the logits of `add_counts`: those by gates are written, those by by_token
   added to what is there. */
void add_counts_backward(const float *g, const counted *c, int64_t begin, int64_t end, int width, int threads) {
  float *sums = malloc(counted_sums(c, end - begin) * 4);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t from = begin; from < end; from += PIECE)
    differentiate_counted(g + (from - begin) * width, width, c, sums + (from - begin) / PIECE * counted_span(c), from,
                          from + PIECE < end ? from + PIECE : end);
  add_counted_sums(c, sums, begin, end);
  free(sums);
}

/* gradients for g (n, width) by out: d_table (rows, width); d_gates (n, count), or d_vectors (count, width) */
void look_up_backward(const float *g, const int64_t *tokens, const float *table, const float *gates,
                      const float *vectors, float *d_table, float *d_gates, float *d_vectors, int n, int count,
                      int step, int width, int rows, int threads) {
#pragma omp parallel num_threads(threads)
  {
    if (gates)
#pragma omp for schedule(static) nowait
      for (int i = 0; i < n; i++)
        for (int j = 0; j < count; j++) {
          const int64_t token = tokens[((int64_t)i * count + j) * step];
          const float *row = table + token * width, *mine = g + (int64_t)i * width;
          vec sums = {};
          float sum = 0.f;
          int c = 0;
          if (token >= 0) {
            for (; c + LANES <= width; c += LANES) sums += *(const uvec *)(row + c) * *(const uvec *)(mine + c);
            for (; c < width; c++) sum += row[c] * mine[c];
          }
          for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
          d_gates[(int64_t)i * count + j] = sum;
        }
#pragma omp for schedule(static)
    for (int from = 0; from < width; from += 16) {
      const int to = from + 16 < width ? from + 16 : width;
      for (int r = 0; r < rows; r++) memset(d_table + (int64_t)r * width + from, 0, (size_t)(to - from) * 4);
      for (int j = 0; !gates && j < count; j++) memset(d_vectors + j * width + from, 0, (size_t)(to - from) * 4);
      for (int i = 0; i < n; i++)
        for (int j = 0; j < count; j++) {
          const int64_t token = tokens[((int64_t)i * count + j) * step];
          if (token < 0) continue;
          float *by_row = d_table + token * width;
          const float *mine = g + (int64_t)i * width, *row = table + token * width;
          if (gates) {
            const float gate = gates[(int64_t)i * count + j];
            if (to - from == 16)
              for (int c = from; c < from + 16; c++) by_row[c] += gate * mine[c];
            else
              for (int c = from; c < to; c++) by_row[c] += gate * mine[c];
          } else {
            const float *by = vectors + j * width;
            float *by_vector = d_vectors + j * width;
            for (int c = from; c < to; c++) by_row[c] += by[c] * mine[c], by_vector[c] += row[c] * mine[c];
          }
        }
    }
  }
}
"""
)


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled kernel. Raises native.Unavailable."""
    return native.library(SOURCE, (), folder)


def candidates(tokens: Tensor, orders: Sequence[int], depth: int, bos_id: int, window: int) -> Tensor:
    """As `copy_heads.candidates`: tokens int64 (B, T) -> int64 (B, T, orders, depth); the orders ascend."""
    tokens = tokens.contiguous()
    found, wanted = tokens.new_empty(*tokens.shape, len(orders), depth), torch.tensor(orders, dtype=torch.int32)
    given = map(native.pointer, (tokens, found, wanted))
    sizes = len(orders), depth, ctypes.c_int64(bos_id), window, *tokens.shape, torch.get_num_threads()
    load().candidates(*given, *sizes)
    return found


def look_up(tokens: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """out (N, d): the sum over j of weights * table[tokens[n, j]]; tokens int64 (N, J), -1 for none, table (V, d).

    weights: (N, J), a number for every token, or (J, 1, d), a vector for every j. All float32.
    """
    if tokens.stride(0) != tokens.shape[1] * tokens.stride(1):
        tokens = tokens.contiguous()
    return _LookUp.apply(tokens, table, weights)


class Counted(NamedTuple):
    """What document counts raise, as a form of `raised_logits.Raising`: at position i of a row, for first_i <= j <= i,
    token j by (gates_i + by_token_j) * weights_j.

    All are (B, T) and contiguous, tokens int64, first int32, else float32. The weights do not learn.
    """

    tokens: Tensor
    first: Tensor
    gates: Tensor
    by_token: Tensor
    weights: Tensor

    def spread(self) -> Raised:
        """Tokens and amounts (B, T, T); where j is not seen, token 0 by 0."""
        return Raised(*_Spread.apply(*self))

    def add(self, z: Tensor, part: slice) -> None:
        """See `Raising`."""
        load().add_counts(native.pointer(z), ctypes.byref(self.in_c()), *_sizes_of(z, part))

    def gradients(self) -> Gradients:
        """See `Raising`."""
        return None, None, torch.empty_like(self.gates), torch.zeros_like(self.by_token), None

    def differentiate(self, z: Tensor, part: slice, gradients: Gradients) -> None:
        """See `Raising`."""
        load().add_counts_backward(native.pointer(z), ctypes.byref(self.in_c(*gradients[2:4])), *_sizes_of(z, part))

    def in_c(self, d_gates: Tensor | None = None, d_by_token: Tensor | None = None) -> "InC":
        """The `counted` of `COUNTED`, as long as these tensors are alive."""
        return InC(*(native.pointer(part) for part in (*self, d_gates, d_by_token)), self.tokens.shape[1])


class InC(ctypes.Structure):
    """`counted` of `COUNTED`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*Counted._fields, "d_gates", "d_by_token")),
        ("length", ctypes.c_int64),
    )


def _sizes_of(z: Tensor, part: slice) -> tuple[ctypes.c_int64 | int, ...]:
    """First position and the one behind the last, width and threads."""
    return ctypes.c_int64(part.start), ctypes.c_int64(part.stop), z.shape[1], torch.get_num_threads()


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, first: Tensor, gates: Tensor, by_token: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, length = tokens.shape
        raised, amounts = tokens.new_empty(rows, length, length), gates.new_empty(rows, length, length)
        given = tokens, first, gates, by_token, weights, raised, amounts
        load().counts(*map(native.pointer, given), rows, length, torch.get_num_threads())
        ctx.save_for_backward(first, weights)
        ctx.mark_non_differentiable(raised)
        ctx.set_materialize_grads(False)  # else it would be handed zeros (B, T, T) for the tokens
        return raised, amounts

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
        first, weights = ctx.saved_tensors
        rows, length = first.shape
        step = grad.stride(1)  # the gradient may be a part of a wider one
        if grad.stride() != (length * step, step, 1):
            grad, step = grad.contiguous(), length
        d_gates, d_by_token = torch.empty_like(weights), torch.empty_like(weights)
        tensors = list(map(native.pointer, (first, weights, d_gates, d_by_token)))
        sizes = rows, length, torch.get_num_threads()
        load().counts_backward(native.pointer(grad), ctypes.c_int64(step), *tensors, *sizes)
        return None, None, d_gates, d_by_token, None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, weights: Tensor) -> Tensor:
        table, weights = table.contiguous(), weights.contiguous()
        ctx.save_for_backward(tokens, table, weights)
        out = table.new_empty(len(tokens), table.shape[1])
        load().look_up(*map(native.pointer, (tokens, table, *_kinds(weights), out)), *_sizes(tokens, table))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        tokens, table, weights = ctx.saved_tensors
        d_table, d_weights = torch.empty_like(table), torch.empty_like(weights)
        tensors = grad.contiguous(), tokens, table, *_kinds(weights), d_table, *_kinds(d_weights)
        *sizes, threads = _sizes(tokens, table)
        load().look_up_backward(*map(native.pointer, tensors), *sizes, len(table), threads)
        return None, d_table, d_weights


def _kinds(weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The weights as gates or as vectors."""
    return (weights, None) if weights.ndim == 2 else (None, weights)


def _sizes(tokens: Tensor, table: Tensor) -> tuple[int, ...]:
    """Rows, look-ups of each, distance from one to the next, width and threads."""
    count, each = tokens.shape
    return count, each, tokens.stride(1), table.shape[1], torch.get_num_threads()
