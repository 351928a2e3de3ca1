"""A callback that measures the error of the top level's hypergradient against a reference, during training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tqdm import tqdm

from multilevel.problems import Callback, Engine, NotFiniteError, replicas
from multilevel.problems.reference import agreement, largest_residual, reference_hypergradient
from multilevel.solvers import CotangentError


class Diagnosis(Callback):
    """Every N steps, computes the hypergradient and the reference at the current point and writes a line of
    diagnosis.jsonl.

    Each level's damping is that of its own solver. If the reference's residual is too large to be meaningful, error and
    cosine are null.

    Args:
        path: the file; appended to.
        every: steps between comparisons.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def on_step(self, engine: Engine) -> None:
        top = engine.graph.top
        passes = engine.graph.passes(top)
        if engine.step % self.every or not passes:
            return
        dampings = {level: getattr(engine.graph.problems[level].solver, "damping", 0.0) for level in passes}
        try:
            hypergradient = engine.solve_hypergradient(top)
            reference = reference_hypergradient(engine, top, dampings)
        except (NotFiniteError, CotangentError) as reason:  # as the engine skips such an update
            tqdm.write(f"step {engine.step}: hypergradient of {top} not compared: {reason}", file=sys.stderr)
            return
        error, cosine = agreement(hypergradient.values, reference.values) if reference.usable else (None, None)
        record = {
            "step": engine.step,
            "level": top,
            "error": error,
            "cosine": cosine,
            "residual": largest_residual(hypergradient),
            "reference": dict(reference.solver),
            "reference_residual": reference.residual,
        }
        if replicas.rank() > 0:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if error is None:
            result = f"no reference: its residual is {reference.residual:.2g}; raise solver.damping"
        else:
            result = f"error {error:.3g}, cosine {cosine:.3g} against the reference"
        tqdm.write(f"step {engine.step}: hypergradient of {top}: {result}", file=sys.stderr)
