"""A binary tree over the tokens: the decisions that `context_mixing` mixes.

Every inner node splits its tokens in two halves of about equal probability, along the direction in which their
embeddings differ most, so that tokens of like use share decisions and a frequent token needs few. Both the embeddings
and the probabilities are the model's own: the tree depends on no text.
"""

from typing import NamedTuple

import numpy as np
import torch

from pgolf.model.gpt import GPT

_ROUNDS = 8  # of the power iterations: for the model's own unigram distribution and for a principal direction
_LEAST = 1e-7  # mass of a token at least


class Tree(NamedTuple):
    places: np.ndarray
    """(vocab_size,) int64 place of each token among the leaves, left to right."""
    nodes: np.ndarray
    """(vocab_size - 1, 5) int64, parents before children: its leaves are first .. middle - 1 on the left and middle ..
    end - 1 on the right (columns first, middle, end); left and right child, a leaf as -1 - token. The root is 0."""


@torch.no_grad()
def of(model: GPT) -> Tree:
    """The tree of a model."""
    return build(model.tok_emb.weight.double().cpu().numpy(), unigram(model))


@torch.no_grad()
def unigram(model: GPT) -> np.ndarray:
    """(vocab_size,) the distribution that the model's predictions after [BOS, token] lead to, in text of its own."""
    size, device = model.config.vocab_size, model.tok_emb.weight.device
    ids = torch.arange(size, device=device)
    rows = torch.stack([torch.full_like(ids, model.config.bos_id), ids], dim=1)
    after = torch.cat([torch.softmax(model.logits(model.hidden(part, 1)[:, 0]), -1) for part in rows.split(256)])
    mass = torch.full((size,), 1.0 / size, device=device)
    for _ in range(_ROUNDS):
        mass = mass @ after
    return mass.double().cpu().numpy()


def build(vectors: np.ndarray, mass: np.ndarray) -> Tree:
    """vectors: (vocab_size, n) of the tokens; mass: (vocab_size,) their probabilities."""
    mass = np.maximum(mass, _LEAST)
    places, nodes = np.zeros(len(mass), np.int64), np.zeros((len(mass) - 1, 5), np.int64)
    made = 0
    waiting = [(np.arange(len(mass)), 0, -1, 0)]  # tokens, first leaf, parent and its column
    while waiting:
        tokens, first, parent, column = waiting.pop()
        if len(tokens) == 1:
            places[tokens[0]] = first
            child = -1 - int(tokens[0])
        else:
            tokens, half = _halves(tokens, vectors, mass)
            child, made = made, made + 1
            nodes[child, :3] = first, first + half, first + len(tokens)
            waiting += [(tokens[half:], first + half, child, 4), (tokens[:half], first, child, 3)]
        if parent >= 0:
            nodes[parent, column] = child
    return Tree(places, nodes)


def _halves(tokens: np.ndarray, vectors: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, int]:
    """The tokens in order along their principal direction, and how many go left."""
    weights = mass[tokens]
    centred = vectors[tokens] - weights @ vectors[tokens] / weights.sum()
    scaled = centred * np.sqrt(weights)[:, None]
    direction = scaled[np.argmax((scaled**2).sum(1))]
    for _ in range(_ROUNDS):
        direction = scaled.T @ (scaled @ direction)
        direction /= np.linalg.norm(direction) + 1e-300
    order = np.argsort(centred @ direction, kind="stable")
    sums = np.cumsum(weights[order])
    half = int(np.argmin(np.abs(sums[:-1] - sums[-1] / 2))) + 1
    return tokens[order], half
