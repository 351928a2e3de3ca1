"""Shows the progress of a whole study, read from the event logs of its parts."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from multilevel.solvers.files import parse_json
from multilevel.study.part import is_done, run_path
from multilevel.study.plan import Study, StudyRun

INTERVAL = 1.0  # seconds between two looks
LINES = 20
TAIL = 1 << 16  # bytes at the end of a log to search for its last whole line


class Watch:
    """Shows one progress bar for the steps of all parts within its block; without a terminal, a line now and then.

    Args:
        study: the running study.
        folder: its folder.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.parts = study.parts()
        self.total = sum(part.arm.steps for part in self.parts)
        self._steps: dict[str, int] = {}
        self._finished = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        done = self._look()
        self._first, self._started, self._shown = done, time.monotonic(), (-1, -1)
        # disable=None: no bar unless standard error is a terminal; smoothing=0: the mean speed gives the time left
        self._bar = tqdm(total=self.total, initial=done, unit="step", disable=None, dynamic_ncols=True, smoothing=0)
        self._show(done)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._show(self._look())
        self._bar.close()

    def _follow(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._show(self._look())

    def _look(self) -> int:
        """Steps done in all parts together."""
        for part in self.parts:
            if self._steps.get(part.name) != part.arm.steps or not is_done(self.study, self.folder, part.name):
                self._steps[part.name] = steps_done(self.folder, part)
        self._finished = sum(is_done(self.study, self.folder, part.name) for part in self.parts)
        return sum(self._steps.values())

    def _show(self, done: int) -> None:
        parts = f"{self._finished} of {len(self.parts)} parts done"
        self._bar.set_postfix_str(parts, refresh=False)
        self._bar.update(done - self._bar.n if not self._bar.disable else 0)
        progress = (self._finished, done * LINES // self.total)
        if self._bar.disable and progress != self._shown:
            self._shown = progress
            passed = time.monotonic() - self._started
            seconds_left = passed * (self.total - done) / (done - self._first) if done > self._first else None
            time_left = "" if seconds_left is None else f" | {tqdm.format_interval(seconds_left)} left"
            print(f"step {done}/{self.total} | {parts}{time_left}", file=sys.stderr, flush=True)


def steps_done(folder: Path, part: StudyRun) -> int:
    """Steps of the top level that a part has ended or begun; all if it has a summary."""
    run = run_path(folder, part.name)
    if (run / "summary.json").exists():
        return part.arm.steps
    try:
        with (run / "metrics.jsonl").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL))
            lines = log.read().split(b"\n")[:-1]  # the text after the last newline may be half a line
        return int(parse_json(lines[-1])["step"])
    except (OSError, IndexError, ValueError, KeyError):  # not started, or just being cut by a resume
        return 0
