"""The language model: embedding, blocks in the order of the loop schedule, final norm, softcapped logits.

Every part beyond the plain transformer is a separate module, a field of `ModelConfig` and a line in `hidden` or in
the block; off, its parameters do not exist.

| part | field | module |
|---|---|---|
| depth recurrence | `loop_first`, `loop_last`, `loop_passes`, `loop_from` | `depth_recurrence` |
| parallel residual, one lane or two | `parallel_from`, `parallel_lanes` | `block`, `lanes` |
| share of the embedding in every block | `x0_mix` | `block` |
| norm scale | `norm_scale` | `block` |
| partial rotary | `rope_dims` | `rotary` |
| leaky relu squared | `mlp_slope` | `mlp` |
| exclusive self-attention | `xsa_from` | `xsa` |
| attention within documents, windows | `document_attention`, `layer_windows` | `attention_mask` |
| head gates | `head_gate` | `head_gate` |
| key offset | `key_offset` | `attention` |
| value embeddings | `value_embed_layers`, `value_x0` | `value_embedding`, `attention` |
| U-Net skips | `skips`, `skip_gates` | `skips` |
| SmearGate | `smear_gate` | `smear` |
| short convolution | `canon_taps` | `canon` |
| copy heads | `copy_orders`, `copy_depth`, `copy_logits`, `copy_token`, `copy_input` | `copy_heads` |
| document counts | `document_counts` | `document_counts` |
| hashed bigrams | `bigram_rows` | `bigram` |
| factored, untied embedding; bias | `embed_dim`, `tied_head`, `logit_bias` | here |
| map behind the embedding, before the tied head | `input_map`, `head_map` | here |
| backout | `backout` | here |
| multi-token loss | `future_weights`, `future_until` | `multi_token_prediction` |
| logit softcap | `logit_softcap`, `asymmetric_softcap` | `loss`, here |
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model import attention_mask, multi_token_prediction
from pgolf.model.bigram import BigramEmbedding
from pgolf.model.block import Block
from pgolf.model.copy_heads import CopyHeads, candidates
from pgolf.model.depth_recurrence import layer_order
from pgolf.model.divergence import Divergence, plain_divergence
from pgolf.model.document_counts import DocumentCounts
from pgolf.model.forward_context import Step
from pgolf.model.kernels import residual
from pgolf.model.key_value_cache import KeyValueCache
from pgolf.model.lanes import Lanes, advance
from pgolf.model.layers import Linear, rms_norm
from pgolf.model.loss import CHUNK_TOKENS, PLAIN, Arithmetic, logit_chunks, softcap, token_losses, weighted_loss
from pgolf.model.raised_logits import Raising, joined, split
from pgolf.model.rotary import rotary_tables
from pgolf.model.skips import Skip, Skips
from pgolf.model.smear import SmearGate
from pgolf.model.value_embedding import ValueEmbedding

__all__ = ["CHUNK_TOKENS", "GPT"]

BARRED = -60.0  # logit of a barred token: e^-60 of the others' mass, and a finite loss should it come all the same
BACKOUT = 0.2  # start of the share taken out: nanochat's code (the NanoGPT speedrun starts at 0.5)


class Barred(Protocol):
    """Tokens that cannot come."""

    reach: int
    """How many tokens before a target decide."""

    def __call__(self, previous: Tensor) -> Tensor:
        """(..., reach) ids of the tokens before, the last one last -> (..., vocab_size) bool."""


class Parts(NamedTuple):
    """The parts of a forward pass that `paths.use_graph` can compile, together all that touches (B, T, dim) tensors."""

    embedded: Callable[..., Tensor]
    blocks: list[Callable[..., Tensor]]
    advance: Callable[..., tuple[Tensor, Tensor]]
    closed: Callable[..., Tensor]


class States(NamedTuple):
    """Final states (B T, dim or embed_dim) in front of the head, and what raises their logits."""

    x: Tensor
    raised: Sequence[Raising]


class GPT(nn.Module):
    """Tokens are int64 (B, T). Weights are float32; `compute_dtype` is the type of the activations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        # What `fast_paths` changes: kernels in C, compiled blocks.
        self.native = self.native_norms = False
        self.compiled: Parts | None = None
        self.scoring: Parts | None = None
        self.scored_shape: tuple[int, ...] | None = None  # see `paths.scoring_graph`
        self.arithmetic: Arithmetic = PLAIN
        self.divergence: Divergence = plain_divergence
        self.looped = True
        self.window = 0
        # Set by an evaluation: what never comes after the tokens before (`evaluate.canonical`).
        self.barred: Barred | None = None
        self.future_share = 1.0 if config.future_weights else 0.0
        width = config.embed_dim or config.dim
        self.tok_emb = nn.Embedding(config.vocab_size, width)
        self.emb_proj = Linear(width, config.dim) if config.embed_dim else None
        self.bigram = (
            BigramEmbedding(config.bigram_rows, config.bigram_dim, config.dim, config.bos_id)
            if config.bigram_rows
            else None
        )
        self.smear = SmearGate(config.dim) if config.smear_gate else None
        kv_dim = config.dim // config.num_heads * config.num_kv_heads
        self.value_emb = (
            ValueEmbedding(config.vocab_size, config.value_embed_dim, kv_dim, config.value_embed_layers)
            if config.value_embed_layers
            else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.lanes = Lanes(config.num_layers - config.parallel_from) if config.parallel_lanes == 2 else None
        deepest = len(layer_order(config, max(config.loop_passes, config.eval_loop_passes)))
        self.skips = Skips(config, deepest // 2) if config.skips else None
        self.backout = nn.Parameter(torch.tensor(BACKOUT)) if config.backout else None
        self.input_map = Linear(config.dim, config.dim) if config.input_map else None
        self.head_map = Linear(config.dim, config.dim) if config.head_map else None
        self.copy_heads = CopyHeads(config) if config.copy_orders else None
        self.counts = DocumentCounts(config) if config.document_counts else None
        self.lm_head = None if config.tied_head else Linear(width, config.vocab_size)
        # PR #1923 trains the two caps at test time only; kept as distances from `logit_softcap`, so decay leaves them.
        self.softcap_shift = nn.Parameter(torch.zeros(2)) if config.asymmetric_softcap else None
        self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logit_bias else None
        self._tables: tuple[Tensor, Tensor] | None = None
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.tok_emb.weight, std=self.config.embed_init_std)
        if self.emb_proj is not None:
            nn.init.orthogonal_(self.emb_proj.weight)
        for mapped in (self.input_map, self.head_map):
            if mapped is not None:
                nn.init.eye_(mapped.weight)
        if self.lm_head is not None:
            with torch.no_grad():
                self.lm_head.weight.copy_(self.tok_emb.weight)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                # Zero outputs: every block starts as the identity (the records' initialization).
                nn.init.zeros_(module.weight) if name.endswith(".proj") else nn.init.orthogonal_(module.weight)

    def set_looped(self, looped: bool) -> None:
        """Switch the repetition of the looped range on or off."""
        self.looped = looped

    def set_window(self, window: int) -> None:
        """Limit every layer's attention window to `window` tokens, the query included; 0: as configured."""
        self.window = window

    def set_progress(self, fraction: float) -> None:
        """Set the fraction of training done, 0 to 1, which switches parts on and fades losses out."""
        self.set_looped(fraction >= self.config.loop_from)
        if self.config.future_weights:
            self.future_share = multi_token_prediction.share(self.config, fraction)

    def layer_order(self) -> list[int]:
        """Physical layer of every block executed now: training or evaluation depth by `self.training`."""
        passes = self.config.loop_passes
        if not self.training and self.config.eval_loop_passes:
            passes = self.config.eval_loop_passes
        return layer_order(self.config, passes if self.looped else 1)

    def local_reach(self) -> int:
        """Tokens that a score depends on beyond the windows of attention and copies, through parts that look back."""
        config = self.config
        per_block = 2 * config.canon_taps + config.key_offset
        at_input = max(config.smear_gate, config.bigram_rows > 0)
        return len(self.layer_order()) * per_block + at_input + max(config.copy_orders, default=0)

    def hidden(self, tokens: Tensor, last: int = 0, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (B, T) -> (B, T, dim) after the final norm; raised logits behind it, as in `raised_logits`.

        last: return the last `last` positions only, (B, last, dim): the last block then computes keys and values
            everywhere and all else only there. 0: all.
        cache: holds the keys and values of the tokens before, and gets those of the new ones; `last` is then 1.
        """
        x, parts = self._final(tokens, last, cache)
        raised = joined(parts)
        return x if raised is None else raised.beside(x)

    def _final(self, tokens: Tensor, last: int = 0, cache: KeyValueCache | None = None) -> tuple[Tensor, list[Raising]]:
        """As `hidden`, the raised logits apart: (B, T or last, dim)."""
        every, total = tokens, tokens.shape[1]
        if cache is not None:
            tokens = tokens[:, -cache.begin(total, self.local_reach()) :]
        last = 0 if last == tokens.shape[1] else last
        parts = self._parts((*tokens.shape, last))
        copied = None
        if self.copy_heads is not None:
            copied = candidates(every, self.config, self.window, self.copy_heads.native)[:, -tokens.shape[1] :]
        inside = self._inside(tokens)
        x = parts.embedded(tokens, inside, copied)
        cos, sin = self._rotary(total, tokens.device)
        step = Step(_alias(x), cos[-tokens.shape[1] :], sin[-tokens.shape[1] :], inside, cache, total)
        values = {} if self.value_emb is None else self.value_emb(tokens, self.compute_dtype)
        x = parts.closed(*self._run(parts, x, step, self._views(every), values, last), last)
        raised: list[Raising] = []
        if self.counts is not None:
            raised.append(self.counts(x, every, self._head()))
        if self.copy_heads is not None and copied is not None:
            given = x, copied[:, -last:], self._head()
            if self.config.copy_logits:
                raised.append(self.copy_heads.raised(*given))
            else:
                x = x + self.copy_heads(*given)
        return x, raised

    def _parts(self, shape: tuple[int, ...]) -> Parts:
        """The compiled parts in training and for the one shape of an evaluation, the kernels without gradients, where
        there are any; else the plain ones."""
        learns = torch.is_grad_enabled()
        if self.compiled is not None and ((learns and self.training) or shape == self.scored_shape):
            return self.compiled
        if self.scoring is not None and not learns:
            return self.scoring
        return Parts(self.embedded, cast(list[Callable[..., Tensor]], self.blocks), advance, self.closed)

    def embedded(self, tokens: Tensor, inside: Tensor | None, copied: Tensor | None) -> Tensor:
        """tokens (B, T) -> the normed embedding (B, T, dim).

        inside: as in `Step`; copied: the copy heads' candidates.
        """
        dtype = self.compute_dtype
        x = self.tok_emb(tokens).to(dtype)
        x = x if self.emb_proj is None else self.emb_proj(x)
        x = x if self.input_map is None else self.input_map(x)
        if self.copy_heads is not None and copied is not None:
            x = x + self.copy_heads.at_input(copied, self.input_table(), dtype)
        x = x if self.bigram is None else x + self.bigram(tokens, dtype)
        return self._normed(x if self.smear is None or inside is None else self.smear(x, inside))

    def input_table(self) -> Tensor:
        """The embedding as the input sees it, (vocab_size, dim); of a model without `embed_dim`."""
        table = self.tok_emb.weight
        return table if self.input_map is None else F.linear(table, self.input_map.weight)

    def closed(self, x: Tensor, second: Tensor | None, middle: Tensor | None, last: int = 0) -> Tensor:
        """What `_run` gives -> the normed stream (B, T or last, dim)."""
        x = x if second is None else (x + second) / 2
        if self.backout is None or middle is None:
            return self._normed(x)
        return self._normed(x - self.backout.to(x.dtype) * middle[:, -last:])

    def _normed(self, x: Tensor) -> Tensor:
        return residual.norm(x) if self.native_norms and self.training else rms_norm(x)

    def _run(
        self,
        parts: Parts,
        x: Tensor,
        step: Step,
        views: list[attention_mask.View],
        values: dict[int, Tensor],
        last: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The stream (B, T, dim) through all blocks executed now; (B, last, dim) with `last`.

        Returns it, the second lane if there is one, and with `backout` the stream (B, T, dim) at half depth.
        """
        order = self.layer_order()
        half = len(order) // 2
        pairs = [] if self.skips is None else self.skips.pairs()
        routes = [] if self.lanes is None else self.lanes.routes()
        saved: list[Tensor] = []
        second: Tensor | None = None  # lane b, from the first parallel layer on when there are two lanes
        middle = None
        for position, layer in enumerate(order):
            wanted = last if position == len(order) - 1 else 0
            in_lanes = self.lanes is not None and layer >= self.config.parallel_from
            if in_lanes and second is None:
                second = _alias(x)  # before the skip joins: every record since PR #1530
            skip = Skip(saved.pop(), *pairs[position - half]) if position >= half and saved else None
            if second is not None:
                route, block = routes[layer - self.config.parallel_from], self.blocks[layer]
                given = route, block, x, second, step, views[layer], values.get(layer), wanted, skip
                x, second = parts.advance(*given)
            else:
                x = parts.blocks[layer](x, step, views[layer], values.get(layer), wanted, skip)
            if self.skips is not None and position < half:
                saved.append(_alias(x))
            if self.backout is not None and position == half:
                middle = x
        return x, second, middle

    def logits(self, hidden: Tensor, previous: Tensor | None = None) -> Tensor:
        """hidden (..., dim) -> (..., vocab_size) float32, softcapped.

        previous: (..., `barred.reach`) int64 ids of the tokens before, the last one last; with them what is `barred` is
            ruled out.
        """
        z = self.project(self.before_head(hidden))
        if previous is None or self.barred is None:
            return z
        if previous.shape != (*z.shape[:-1], self.barred.reach):
            raise ValueError(f"previous {tuple(previous.shape)} does not go with {tuple(z.shape)} logits")
        return z.masked_fill(self.barred(previous), BARRED)

    def project(self, x: Tensor) -> Tensor:
        """Output of `before_head` (..., dim or embed_dim) -> (..., vocab_size) float32 logits, softcapped."""
        x, raised = split(x, self._head().shape[1])
        z = F.linear(x, self.tok_emb.weight.to(x.dtype)) if self.lm_head is None else self.lm_head(x)
        z = z.float() if self.logit_bias is None else z.float() + self.logit_bias
        return self.capped(z if raised is None else raised.on(z))

    def capped(self, z: Tensor) -> Tensor:
        """Logits (..., vocab_size), softcapped."""
        if self.softcap_shift is None:
            return softcap(z, self.config.logit_softcap)
        above, below = self.config.logit_softcap + self.softcap_shift
        return torch.where(z > 0, above * torch.tanh(z / above), below * torch.tanh(z / below))

    def states(self, tokens: Tensor) -> States:
        """What the logits after tokens (B, T) are made of."""
        x, raised = self._final(tokens)
        return States(self.before_head(x).flatten(0, 1), raised)

    def logit_chunks(self, states: States) -> Iterator[Tensor]:
        """Logits (n, vocab_size) before the softcap, chunk by chunk; each is good until the next one."""
        for _, z in logit_chunks(states.x, self._head(), self.logit_bias, self.arithmetic, states.raised):
            yield z

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats, (B, T) float32."""
        x, raised = self._final(tokens)
        return self.hidden_losses(x.flatten(0, 1), targets.flatten(), raised=raised).view(targets.shape)

    def hidden_losses(
        self, hidden: Tensor, targets: Tensor, previous: Tensor | None = None, raised: Sequence[Raising] = ()
    ) -> Tensor:
        """Negative log-likelihood in nats of targets (n,) after hidden states (n, dim): (n,) float32; previous: as for
        `logits`; raised: what is raised and does not stand beside the states."""
        ruled = previous is not None and self.barred is not None
        if ruled or (self.softcap_shift is not None and not self.training):
            one = joined(raised)
            hidden = hidden if one is None else one.flat().beside(hidden)
            return F.cross_entropy(self.logits(hidden, previous), targets, reduction="none")
        x, one = split(self.before_head(hidden), self._head().shape[1])
        x = x.float() if raised else x  # as it is where what is raised stands beside it
        given = x, self._head(), self.logit_bias, targets, self.config.logit_softcap, self.arithmetic
        return token_losses(*given, raised if one is None else (one,))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The training loss: mean nats per token and whatever terms exist in training only. A scalar."""
        count = targets.numel()
        wanted, weights = targets.reshape(-1, 1), torch.full((count, 1), 1.0 / count, device=targets.device)
        if self.future_share:
            wanted, weights = multi_token_prediction.targets(targets, self.config, self.future_share)
        return self.weighted_loss(tokens, wanted, weights, self.arithmetic)

    def weighted_loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, arithmetic: Arithmetic) -> Tensor:
        """Sum of weights (B T, K) times the losses of targets (B T, K) after tokens (B, T), a scalar; `arithmetic` may
        take targets of another kind, one row for each token."""
        x, raised = self.states(tokens)
        cap = self.config.logit_softcap
        return weighted_loss(x, self._head(), self.logit_bias, targets, weights, cap, arithmetic, raised)

    def matrix_roles(self) -> dict[str, str]:
        """Role of every weight matrix to be quantized, by parameter name; all else is a control tensor."""
        roles = {"tok_emb.weight": "embed"}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                role = "attn" if ".attn." in name else "mlp" if ".mlp." in name else "projection"
                roles[f"{name}.weight"] = "head" if name == "lm_head" else role
            elif isinstance(module, nn.Embedding):
                roles[f"{name}.weight"] = "embed"
        return roles

    def _head(self) -> Tensor:
        """(vocab_size, dim or embed_dim)"""
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    def before_head(self, hidden: Tensor) -> Tensor:
        """Hidden states in the width of the output embedding; raised logits stay beside them."""
        x, raised = split(hidden, self.config.dim)
        if raised is not None:
            x = x.to(self.compute_dtype)
        x = x if self.head_map is None else self.head_map(x)
        x = x if self.emb_proj is None else x @ self.emb_proj.weight.to(x.dtype)
        return x if raised is None else raised.beside(x)

    def _inside(self, tokens: Tensor) -> Tensor | None:
        if self.smear is None and not self.config.key_offset and not self.config.canon_taps:
            return None
        return (tokens != self.config.bos_id).to(self.compute_dtype)[..., None]

    def _views(self, tokens: Tensor) -> list[attention_mask.View]:
        """The attention mask of each physical layer."""
        starts = attention_mask.document_starts(tokens, self.config.bos_id) if self.config.document_attention else None
        windows = self.config.layer_windows or (0,) * self.config.num_layers
        narrowed = [min(filter(None, (window, self.window)), default=0) for window in windows]
        made = {window: attention_mask.view(starts, window, tokens, self.native) for window in set(narrowed)}
        return [made[window] for window in narrowed]

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._tables is None or len(self._tables[0]) < length or self._tables[0].device != device:
            dims = self.config.rope_dims or self.config.dim // self.config.num_heads
            with torch.inference_mode(False):  # they are kept: training may come after scoring
                self._tables = rotary_tables(length, dims, self.config.rope_base, device)
        cos, sin = self._tables
        return cos[:length], sin[:length]


def _alias(x: Tensor) -> Tensor:
    """Another tensor on the same memory: torch.compile makes a graph more where two arguments are the same tensor."""
    return x.view_as(x)
