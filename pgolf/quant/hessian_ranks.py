"""Calibration sums of several processes, added up. Programs that calibrate in one process leave this out."""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Sums(Protocol):
    """Of one matrix, as `hessian` keeps them."""

    inputs: Tensor
    output: Tensor
    weight: float


def add_up(sums: Mapping[str, Sums], tokens: int, device: torch.device) -> int:
    """Add up the sums of all processes in place; returns the tokens of all."""
    counts = torch.tensor(float(tokens), dtype=torch.float64, device=device)
    dist.all_reduce(counts)
    for _, each in sorted(sums.items()):
        weight = torch.tensor(each.weight, dtype=torch.float64, device=device)
        dist.all_reduce(weight)
        each.weight = float(weight)
        for total in (each.inputs, each.output):
            moved = total.to(device)
            dist.all_reduce(moved)
            total.copy_(moved)
    return int(counts)
