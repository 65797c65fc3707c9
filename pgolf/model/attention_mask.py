"""Causal attention masks, optionally limited to the query's document and to a window.

Attention within documents: challenge PR #1530, about -0.001 nats and 2% faster with kernels that skip masked blocks.
Windows per layer: the NanoGPT speedrun's short and long layers. Both are encoded as one integer per query: the first
position it sees; everything from there up to itself is visible.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """The attention mask of one layer."""

    first: Tensor | None = None
    """(B, T) int32, the first position each query may attend to; None: from the start, or the window."""
    window: int = 0
    """With `first` None: tokens back that each query sees, its own included; 0: all."""


def view(starts: Tensor | None, window: int, tokens: Tensor, native: bool) -> View:
    """The mask of a layer with this window for tokens (B, T); `starts`: their documents' first positions or None.

    The C kernel takes every view as `first`; a plain window alone has a cheaper plain path.
    """
    if not 0 < window < tokens.shape[1]:
        return View(starts)
    if starts is None and not native:
        return View(window=window)
    return View(within_window(starts, tokens, window))


def document_starts(tokens: Tensor, bos_id: int) -> Tensor:
    """tokens (B, T) -> (B, T) int32: the position of the nearest document start at or before each token.

    A row's first token counts as a start.
    """
    position = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
    starts = torch.where(tokens == bos_id, position, torch.zeros_like(position))
    return starts.cummax(dim=1).values


def within_window(first: Tensor | None, tokens: Tensor, window: int) -> Tensor:
    """The later of `first` and the start of a window of `window` tokens, the query included."""
    position = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
    edge = (position - (window - 1)).clamp(min=0)
    return edge.expand(tokens.shape) if first is None else torch.maximum(first, edge)


def mask(first: Tensor) -> Tensor:
    """first (B, T) -> (B, 1, T, T), true where the query (second last) sees the key (last)."""
    position = torch.arange(first.shape[1], device=first.device)
    return ((position >= first[..., None]) & (position <= position[:, None]))[:, None]
