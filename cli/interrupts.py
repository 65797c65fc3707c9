"""Ctrl-C, a closed terminal and a request to end, all as a KeyboardInterrupt that is not lost in compiled code."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

TEXT = "interrupted; everything finished so far is kept"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
asked = False
"""Whether a signal has come; compiled code may lose the exception that it raises."""


def leave(number: int, frame: FrameType | None) -> None:
    """End at once, without a traceback from the middle of an import. For the time when nothing has begun."""
    os.write(2, f"pgolf: {TEXT}\n".encode())
    os._exit(130)


def _handle(number: int, frame: FrameType | None) -> None:
    global asked
    asked = True
    raise KeyboardInterrupt


def listen(handler: Callable[[int, FrameType | None], None] = _handle) -> None:
    """Treat SIGINT, SIGTERM and SIGHUP alike. Under torchrun the launcher's SIGTERM still ends a process at once, and
    SIGHUP stays ignored where it is (nohup)."""
    if "RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # a rank does not outlive its launcher
    names = ["SIGINT", "SIGHUP"] + ([] if "RANK" in os.environ else ["SIGTERM"])
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def check() -> None:
    """Raises KeyboardInterrupt when one has been swallowed."""
    if asked:
        raise KeyboardInterrupt
