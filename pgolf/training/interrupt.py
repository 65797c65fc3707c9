"""Ctrl-C during training: the step is finished and a checkpoint written before the program ends."""

import signal
import threading
from types import FrameType, TracebackType

from pgolf.runtime import Runtime


class Interrupt:
    """While it is entered, the first Ctrl-C (or termination request) only sets `requested`; a second one stops at once.

    Under torchrun only rank 0 is asked; the others learn from it, and no rank stops at a second signal, since the
    launcher passes on what the terminal has already sent to all.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.requested = False
        self._alone = runtime.world_size == 1
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            kinds = (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,)
            self._before = {kind: signal.signal(kind, self._handle) for kind in kinds}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self._alone:
            raise KeyboardInterrupt
        self.requested = True
