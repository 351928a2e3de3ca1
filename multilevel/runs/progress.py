"""A callback that shows a live progress bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from multilevel.problems import Callback, Engine, Update

LINES = 20


class Progress(Callback):
    """Shows losses, images per second and the time left; reports the choices of ``auto`` and each level's first failed
    solve at once.

    Args:
        images_per_step: images that the updates of one step use in total; None shows no images per second.
    """

    def __init__(self, images_per_step: int | None) -> None:
        self.images_per_step = images_per_step
        self._losses: dict[str, float] = {}
        self._warned: set[str] = set()
        self._reported: set[tuple[str, str]] = set()
        self._skipped: dict[str, int] = {}

    def on_start(self, engine: Engine, steps: int) -> None:
        self._first, self._last = engine.step, engine.step + steps
        self._started = time.perf_counter()
        # disable=None: no bar unless standard error is a terminal
        self._bar = tqdm(total=self._last, initial=self._first, unit="step", disable=None, dynamic_ncols=True)
        self._live = not self._bar.disable
        if not self._live:
            print(f"steps {self._first} to {self._last}", file=sys.stderr, flush=True)

    def on_update(self, engine: Engine, update: Update) -> None:
        before = self._losses.get(update.level, update.loss)
        self._losses[update.level] = 0.9 * before + 0.1 * update.loss
        for level, report in update.solves.items():
            if report.choice and (level, report.choice) not in self._reported:
                self._reported.add((level, report.choice))
                tqdm.write(f"level {level}: {report.choice}", file=sys.stderr)
            if report.failed and level not in self._warned:
                self._warned.add(level)
                tqdm.write(f"step {engine.step}: the solve of level {level} failed: {report.cause}", file=sys.stderr)

    def on_skip(self, engine: Engine, level: str, reason: str) -> None:
        count = self._skipped[level] = self._skipped.get(level, 0) + 1
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            tqdm.write(f"step {engine.step}: update {count} of level {level} skipped: {reason}", file=sys.stderr)

    def on_notice(self, engine: Engine, notice: str) -> None:
        tqdm.write(f"step {engine.step}: {notice}", file=sys.stderr)

    def on_step(self, engine: Engine) -> None:
        speed = (engine.step - self._first) / (time.perf_counter() - self._started)
        losses = " ".join(f"{level} {loss:.4g}" for level, loss in self._losses.items())
        status = f"loss: {losses}"
        if self.images_per_step is not None:
            status += f" | {speed * self.images_per_step:,.0f} images/s"
        if self._skipped:
            status += f" | updates skipped: {sum(self._skipped.values())}"
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update()
        if not self._live and (engine.step % max(1, self._last // LINES) == 0 or engine.step == self._last):
            time_left = tqdm.format_interval((self._last - engine.step) / speed)
            print(f"step {engine.step}/{self._last} | {status} | {time_left} left", file=sys.stderr, flush=True)

    def on_end(self, engine: Engine) -> None:
        self._bar.close()
