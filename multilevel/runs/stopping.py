"""Stops a run from outside without losing progress."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, ClassVar

from multilevel.problems import Engine, replicas
from multilevel.runs.distributed import launched

#: SIGHUP comes when a terminal closes; nohup has it ignored.
ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
SIGNALS = (*ENDING, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal ended the run early, after a checkpoint.

    Args:
        text: the progress made, and how to resume.
        status: exit status of the process: 128 + the signal's number, as in a shell.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class StopOnSignal:
    """While active, SIGTERM, SIGHUP or SIGINT ends the run after the current step; a second one ends the process at
    once.

    Does nothing outside the main thread, where signals cannot be handled. A signal that the process ignores stays
    ignored.

    Attributes:
        number: number of the received signal; None before the first.
    """

    current: ClassVar[StopOnSignal | None] = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            used = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in used}
            StopOnSignal.current = self
        return self

    def __exit__(self, *error: object) -> None:
        StopOnSignal.current = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if launched():  # torchrun forwards signals that every process has received already, and kills after 30 s
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        self.engine.stop()
        if replicas.rank() > 0:
            return
        with contextlib.suppress(OSError):  # its reader may be gone
            # Not print: the signal may have interrupted a print.
            os.write(2, f"\n{signal.Signals(number).name}: ending after this step\n".encode())


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, so that temporary files and processes do not outlive it;
    the exit status is 128 + the signal's number. Does nothing outside the main thread, where a signal is ignored, or
    under torchrun, whose ranks may wait for each other where no handler runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)

    main = threading.current_thread() is threading.main_thread() and not launched()
    used = [number for number in ENDING if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in used:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in used:
            signal.signal(number, signal.SIG_DFL)


def stop_once() -> None:
    """Send this process SIGTERM unless it is already ending its step."""
    if StopOnSignal.current is None or StopOnSignal.current.number is None:
        os.kill(os.getpid(), signal.SIGTERM)
