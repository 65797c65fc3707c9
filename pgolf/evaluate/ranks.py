"""Gather the results of an evaluation's processes, each of which scores a share of the text."""

from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from pgolf.runtime import Runtime

T = TypeVar("T")


def total(values: np.ndarray, runtime: Runtime) -> np.ndarray:
    """The sum of an array over all processes; the array itself where there is one."""
    if runtime.world_size == 1:
        return values
    tensor = torch.from_numpy(values).to(runtime.device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def joined(values: list[T], runtime: Runtime) -> list[T]:
    """The lists of all processes, one after another."""
    if runtime.world_size == 1:
        return values
    parts: list[list[T]] = [[] for _ in range(runtime.world_size)]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def largest(value: float, runtime: Runtime) -> float:
    """The largest of a number over all processes."""
    if runtime.world_size == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=runtime.device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)
