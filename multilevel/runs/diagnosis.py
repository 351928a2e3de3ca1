"""A callback that measures the error and the noise of the top level's hypergradient during training."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from multilevel.problems import Callback, Engine, NotFiniteError, replicas
from multilevel.problems.hypergradient_noise import Estimate, inner_products, noise_cosine
from multilevel.problems.reference import agreement, largest_residual, reference_hypergradient
from multilevel.runs.records import read_records
from multilevel.solvers import SolveError
from multilevel.solvers.vectors import Tensors, flatten

WINDOW = 20  # updates of the top level
NOISY = 0.1  # a cosine below this is noise


class Diagnosis(Callback):
    """Every N steps, computes the hypergradient and the reference at the current point and writes a line of
    diagnosis.jsonl.

    Each level's damping is that of its own solver. If the reference's residual is too large to be meaningful, or it
    cannot be computed, error and cosine are null.

    From the hypergradients of the last ``WINDOW`` updates, it adds under ``noise`` the mean cosine of each with the
    mean of the others, with its interval; null before there are so many, also after resuming, and on Betty's engine.
    The top level moves in between, so the hypergradients' mean drifts, which lowers the cosine: ``multilevel compare
    reliability=K`` holds the level.

    Args:
        path: the file; appended to.
        every: steps between comparisons.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self._last: Tensors | None = None
        self._window: deque[Tensor] = deque(maxlen=WINDOW)

    def on_step(self, engine: Engine) -> None:
        top = engine.graph.top
        if not engine.graph.passes(top):
            return
        values = engine.histories[top].hypergradient
        if values is not None and values is not self._last:  # after a skipped update it is that of an earlier one
            self._last = values
            self._window.append(flatten(values))
        if engine.step % self.every:
            return
        comparison, text = _compared(engine, top)
        if replicas.rank() > 0:
            return
        noise = noise_cosine(inner_products(self._window)) if len(self._window) == WINDOW else None
        record = {"step": engine.step, "level": top, **comparison, "noise": asdict(noise) if noise else None}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        text += f"; cosine with the mean of {WINDOW - 1} others {noise}" if noise else ""
        tqdm.write(f"step {engine.step}: hypergradient of {top}: {text}", file=sys.stderr)


def last_noise(path: Path) -> dict[str, Any] | None:
    """The step of the last line of a diagnosis with ``noise``, and its value, low and high; None without such a
    line."""
    measured = [record for record in read_records(path)[0] if record.get("noise")]
    return {"step": measured[-1]["step"], **measured[-1]["noise"]} if measured else None


def noise_message(level: str, noise: Mapping[str, Any]) -> str | None:
    """One line for a level whose hypergradients are noise, from ``last_noise``; None for others."""
    if noise["value"] >= NOISY:
        return None
    estimate = Estimate(noise["value"], noise["low"], noise["high"])
    return (
        f"step {noise['step']}: hypergradients of {level} have a cosine of {estimate} with the mean of "
        f"{WINDOW - 1} others: an update follows mostly noise: a larger held-out batch (levels.{level}.accumulate), "
        f"averaging over more updates by a lower levels.{level}.learning_rate, see docs/choosing_a_solver.md"
    )


def _compared(engine: Engine, name: str) -> tuple[dict[str, Any], str]:
    """The figures of the hypergradient against the reference, and a line about them."""
    problems = engine.graph.problems
    dampings = {level: getattr(problems[level].solver, "damping", 0.0) for level in engine.graph.passes(name)}
    figures = dict.fromkeys(("error", "cosine", "residual", "reference", "reference_residual"))
    try:
        hypergradient = engine.solve_hypergradient(name)
        figures["residual"] = largest_residual(hypergradient)
        reference = reference_hypergradient(engine, name, dampings)
    except (NotFiniteError, SolveError) as reason:  # training continues
        return figures, f"not compared: {reason}"
    figures |= {"reference": dict(reference.solver), "reference_residual": reference.residual}
    if not reference.usable:
        return figures, f"no reference: its residual is {reference.residual:.2g}; raise solver.damping"
    error, cosine = agreement(hypergradient.values, reference.values)
    figures |= {"error": error, "cosine": cosine}
    return figures, f"error {error:.3g}, cosine {cosine:.3g} against the reference"
