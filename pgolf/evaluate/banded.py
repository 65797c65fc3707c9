"""The windows of a banded pass: long stretches, of which only what is new is scored.

Every layer sees `seq_len` tokens back, so a stretch begins a few times that far before its first scored target.
"""

import numpy as np

from pgolf.config.evaluate import EvaluateConfig
from pgolf.evaluate.windows import Window, segments
from pgolf.model.gpt import GPT

REACH = 4
"""Windows recomputed before each block of a banded pass; tokens further back reach a score through five
layers of attention at least."""
BLOCK = 8
"""Length of such a block over the recomputed part: an eighth of the work is done twice."""


def plan(model: GPT, tokens: np.ndarray, settings: EvaluateConfig, bos_id: int | None) -> tuple[list[Window], int]:
    """The windows that score a stream, in stream order, and how many make a batch."""
    windows_deep = len(model.layer_order()) + model.config.copy_input
    reach = min(windows_deep, REACH) * settings.seq_len + model.local_reach()
    block = BLOCK * reach
    size = max(1, settings.batch_windows * settings.seq_len // (reach + block))
    windows = [
        Window(max(first, begin - reach), min(begin + block, end), min(begin + block, end) - begin)
        for first, end in segments(tokens, bos_id)
        for begin in range(first, end, block)
    ]
    return windows, size
