"""pgolf: the best language model that fits a byte budget.

The library: pure computation and file formats. It never prints and never parses arguments; `stages` calls it, and
`cli` calls `stages`. For use from Python: `pgolf.open_run(path)` and `pgolf.load(path)`, see `pgolf.saved.front`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("open_run", "load", "Run", "Model"):  # only now: importing pgolf does not import torch
        return getattr(importlib.import_module("pgolf.saved.front"), name)
    raise AttributeError(f"module 'pgolf' has no attribute {name!r}")
