import pytest
import torch

from pgolf.model.kernels import native
from pgolf.runtime import Runtime


@pytest.fixture(scope="session")
def kernels() -> Runtime:
    """A runtime that may compile; skips where there is no C compiler to do it with."""
    if native.compiler() is None:
        pytest.skip("no C compiler on this machine, so there are no kernels to test")
    return Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=True)
