"""Coordinates of pieces against the plain definition: dense matrices and a full singular value decomposition."""

import itertools

import numpy as np
import pytest
import torch

from pgolf.tokens import cooccurrence
from pgolf.tokens.shards import TokenStream


def stream(*parts: np.ndarray) -> TokenStream:
    return TokenStream([part.astype(np.uint16) for part in parts], "train")


def plain(tokens: np.ndarray, size: int, dims: int) -> np.ndarray:
    pairs = np.zeros((size, size))
    for first, second in itertools.pairwise(tokens):
        pairs[first, second] += 1
    sides = []
    for counts in (pairs, pairs.T):
        contexts = counts.sum(0) ** 0.75
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.log(counts / counts.sum(1, keepdims=True) / (contexts / contexts.sum()))
        sides.append(np.where(counts > 0, np.maximum(value, 0), 0))
    left, values, _ = np.linalg.svd(np.concatenate(sides, 1), full_matrices=False)
    found = left[:, :dims] * np.sqrt(values[:dims])
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def test_they_are_the_singular_vectors_of_the_information(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "_AT_ONCE", 700)  # several times, across the shards
    numbers = np.random.default_rng(0)
    tokens = numbers.zipf(1.3, 5000) % 19 + 1  # 0 and 20 to 23 never come
    found = cooccurrence.coordinates(stream(tokens[:1234], tokens[1234:]), 24, 6).double().numpy()
    wanted = plain(tokens, 24, 6)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-4)  # whatever their signs
    assert not found[[0, 20, 21, 22, 23]].any()
    np.testing.assert_allclose(np.linalg.norm(found[1:20], axis=1), 1, rtol=1e-5)


def test_pieces_with_like_neighbours_are_alike() -> None:
    numbers = np.random.default_rng(0)
    kinds = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    tokens = kinds[np.arange(6000) % 3, numbers.integers(0, 3, 6000)]  # a kind follows the one before it
    found = cooccurrence.coordinates(stream(tokens), 10, 4)
    likeness = (found @ found.T)[1:, 1:]
    same = torch.from_numpy(np.kron(np.eye(3), np.ones((3, 3))) > 0)
    assert likeness[same].min() > 0.9
    assert likeness[~same].max() < 0.5


def test_more_coordinates_than_pieces_are_zeros() -> None:
    found = cooccurrence.coordinates(stream(np.array([0, 1, 2, 1, 0, 2])), 4, 9)
    assert found.shape == (4, 9)
    assert not found[:, 4:].any()


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_pairs_says_nothing(length: int) -> None:
    assert not cooccurrence.coordinates(stream(np.zeros(length, int)), 4, 2).any()
