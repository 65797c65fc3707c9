"""The machine's rate of large matrix products, the measure that a training run's own operations are held against."""

import time

import torch


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Operations per second of a product of two square matrices (2048 wide, 8192 on a GPU): the best of as many as fit
    in `seconds`, at least two."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, begun, count = float("inf"), time.perf_counter(), 0
    while count < 2 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if count:  # the first run may include one-time setup
            best = min(best, time.perf_counter() - started)
        count += 1
    return 2 * size**3 / best
