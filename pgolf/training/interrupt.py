"""Ctrl-C during training: the current step ends and a checkpoint is written before the program does."""

import signal
import threading
from types import FrameType, TracebackType

from pgolf.runtime import Runtime


class Interrupt:
    """While it is entered, the first Ctrl-C (closed terminal, request to end) only makes it return True when called; a
    second one raises KeyboardInterrupt at once.

    Under torchrun only rank 0 is asked; the others learn from it, and no rank stops at a second signal, since the
    launcher repeats the signal that the terminal has sent to all processes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._requested = False
        self._alone = runtime.world_size == 1
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            names = ("SIGINT", "SIGHUP", "SIGTERM") if self._alone else ("SIGINT", "SIGHUP")
            kinds = (getattr(signal, name) for name in names if hasattr(signal, name))  # no SIGHUP on Windows
            self._before = {
                kind: signal.signal(kind, self._handle) for kind in kinds if signal.getsignal(kind) != signal.SIG_IGN
            }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        return self._requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested and self._alone:
            raise KeyboardInterrupt
        self._requested = True
