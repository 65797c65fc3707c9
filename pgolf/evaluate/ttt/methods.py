"""Test-time training, score first: text is scored before anything learns from it.

`METHODS` is the table of methods; a new one is a module with its row, and a line here. Stages and the audit use
`TttEvaluator`, which leaves the given model unchanged.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluator import OnProgress, Positions, Trace
from pgolf.evaluate.sliding import check_stream
from pgolf.evaluate.trace_recorder import Recorder
from pgolf.evaluate.ttt import dynamic_evaluation, in_place, lora, time_cap
from pgolf.evaluate.ttt.task import Clock, Method, Task
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

METHODS: dict[str, Method] = {
    "sgd": dynamic_evaluation.METHOD,
    "lora": lora.LORA,
    "in-place": in_place.METHOD,
    "phased": lora.PHASED,
}


def of(settings: TttConfig) -> Method:
    """The configured method. Raises PgolfError for an unknown one."""
    if settings.method not in METHODS:
        raise PgolfError(f"ttt.method is {settings.method!r}; choose {', '.join(METHODS)}")
    return METHODS[settings.method]


def modules_without(settings: TttConfig) -> list[str]:
    """Names of the modules of all other methods: a packaged program does without them."""
    used = of(settings).run.__module__
    return sorted({row.run.__module__ for row in METHODS.values()} - {used})


@dataclass(frozen=True)
class TttEvaluator:
    """A model that learns from the scored part of the stream."""

    model: GPT
    settings: EvaluateConfig
    ttt: TttConfig
    runtime: Runtime
    on_progress: OnProgress | None = None
    on_estimate: Callable[[time_cap.Estimate], None] | None = None
    """Called before the evaluation starts, with the estimate of its duration."""

    def planned(self, tokens: np.ndarray) -> np.ndarray:
        """The step of each target in the order of scoring, (N-1,); all zero in stream order."""
        steps = METHODS[self.ttt.method].steps
        if steps is None:
            return np.zeros(len(tokens) - 1, dtype=np.int64)
        return steps(self._task(tokens, Recorder(len(tokens) - 1, (), None), Clock()))

    def score(self, tokens: np.ndarray, positions: Positions = ()) -> Trace:
        """See `Evaluator.score`; `Trace.facts` has the number of steps.

        Raises PgolfError, before it starts, when `ttt.seconds` is too little even for scoring without learning, or
        for several processes when the method learns along one stream.
        """
        check_stream(tokens, positions)
        method = METHODS[self.ttt.method]
        if self.runtime.world_size > 1 and not method.shared:
            shared = " or ".join(name for name, row in METHODS.items() if row.shared)
            raise PgolfError(f"ttt.method {self.ttt.method} needs one process; {shared} share documents (--nproc)")
        clock = Clock()
        if self.ttt.seconds or self.on_estimate is not None:

            def probed(clock: Clock) -> Task:  # with a recorder of its own: on a short text a probe comes to its end
                return self._task(tokens, Recorder(len(tokens) - 1, (), None), clock)

            clock = time_cap.clock(method, probed, self.on_estimate)
        recorder = Recorder(len(tokens) - 1, positions, self.on_progress)
        return method.run(self._task(tokens, recorder, clock))

    def _task(self, tokens: np.ndarray, recorder: Recorder, clock: Clock) -> Task:
        model = copy.deepcopy(self.model).eval()
        return Task(model, tokens, self.settings, self.ttt, self.runtime, recorder, clock)
