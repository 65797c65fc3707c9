"""Fixtures for the kernels: a test of one that this machine cannot build is skipped and says what stays untested."""

import pytest
import torch

from pgolf.model.kernels import linear, native
from pgolf.runtime import Runtime


@pytest.fixture(scope="session")
def kernels() -> Runtime:
    """A runtime that may compile; skips where attention and softmax in C cannot be built."""
    try:
        native.library("int probe(void) { return 0; }")
    except native.Unavailable as reason:
        pytest.skip(f"not tested here: attention and softmax in C ({reason})")
    return Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=True)


@pytest.fixture(scope="session")
def product_kernel(kernels: Runtime) -> None:
    """Skips where matrix products in C cannot be built."""
    try:
        linear.load()
    except native.Unavailable as reason:
        pytest.skip(f"not tested here: matrix products in C ({reason})")
