"""Stopping a run from outside without losing any of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from multilevel.problems import Engine

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A run that a signal has ended early, after a checkpoint.

    Args:
        number: the signal's.
        text: what was done, and how to go on.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + number  # as a shell has it


class StopOnSignal:
    """While active, SIGTERM and SIGINT let an engine end its step; a second one ends the process at once.

    In a thread other than the main one, where signals cannot be handled, it does nothing.

    Attributes:
        number: of the signal that came; None while none has.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        self.engine.stop()
        name = signal.Signals(number).name
        # Not print: it may be in the middle of a write of its own.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{name}: ending after this step\n".encode())
