"""Training on text that is scored, in rows of the context's length: what `sgd` does with chunks of several windows."""

import numpy as np
import torch

from pgolf.evaluate.ttt.optimizer import Learner
from pgolf.evaluate.ttt.task import Task


def train(task: Task, learner: Learner, scored: np.ndarray, done: float) -> None:
    """Train on a stretch of scored tokens in rows of the context's length, `batch_windows` rows a step."""
    length = min(task.settings.seq_len, len(scored) - 1)
    rows = (len(scored) - 1) // length
    ids = torch.from_numpy(scored[-rows * length - 1 :].astype(np.int64)).to(task.device)
    inputs, targets = ids[:-1].view(rows, length), ids[1:].view(rows, length)
    size = task.settings.batch_windows
    for _ in range(task.ttt.epochs):
        for at in range(0, rows, size):
            learner.step(task.model.token_losses(inputs[at : at + size], targets[at : at + size]).mean(), done)
