"""Test-time training, score first: text is scored before anything learns from it.

`TttEvaluator` is what stages and the audit use; the methods stand in modules of their own: `stream` (sgd), `lora` (and
its phases) and `in_place`. The model handed in is left as it was.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.evaluate.evaluator import OnProgress, Trace
from pgolf.evaluate.sliding import check_stream
from pgolf.evaluate.trace_recorder import Recorder
from pgolf.evaluate.ttt.task import Task
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime


@dataclass(frozen=True)
class TttEvaluator:
    """A model that learns from the scored part of the stream."""

    model: GPT
    settings: EvaluateConfig
    ttt: TttConfig
    runtime: Runtime
    on_progress: OnProgress | None = None

    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        """See `Evaluator.score`; `Trace.facts` says what was learned. One process: ranks would learn apart."""
        check_stream(tokens, positions)
        recorder = Recorder(len(tokens) - 1, positions, self.on_progress)
        model = copy.deepcopy(self.model).eval()
        task = Task(model, tokens, self.settings, self.ttt, self.runtime.device, recorder)
        if self.ttt.method == "sgd":
            from pgolf.evaluate.ttt import dynamic_evaluation

            return dynamic_evaluation.run(task)
        if self.ttt.method == "in-place":
            from pgolf.evaluate.ttt import in_place

            return in_place.run(task)
        from pgolf.evaluate.ttt import lora

        return lora.run(task, phases=self.ttt.phases if self.ttt.method == "phased" else 1)
