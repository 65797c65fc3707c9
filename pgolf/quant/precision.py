"""float32 arithmetic for everything that measures a model, on every device.

A GPU runs models in bfloat16 and multiplies float32 matrices in TF32. The divergences that bits are allocated by are
about 1e-4 nats per token; bfloat16 activations alone put 2e-5 to 1e-4 of rounding noise on them, and the quantized
model lost 2.5 to 4.2% more (measured on preset `demo`'s model).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pgolf.model.gpt import GPT


@contextmanager
def float32(*models: GPT) -> Iterator[None]:
    """Run these models with float32 activations, and all float32 products without TF32, inside the `with` block."""
    dtypes = [model.compute_dtype for model in models]
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        for model in models:
            model.compute_dtype = torch.float32
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for model, dtype in zip(models, dtypes, strict=True):
            model.compute_dtype = dtype
