"""Recorded updates as nested dicts of numbers, texts and tensors, for checkpoints."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel.problems.batches import map_tensors
from multilevel.problems.errors import CheckpointError
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatch
from multilevel.problems.history import LevelHistory
from multilevel.problems.recording import RecordedUpdate
from multilevel.solvers import Step
from multilevel.solvers.update_rules import UpdateRule


def stored_updates(history: LevelHistory) -> dict[str, Any]:
    """A history's updates, for ``restore_updates``.

    Raises:
        CheckpointError: an update was changed by hooks or callbacks, its loss uses a ``torch.Generator``, or its batch
            or draws have containers other than lists, tuples and dicts.
    """
    restarted = sorted(map(list, history.restarted))
    return {"updates": list(map(_stored, history.updates)), "outer_step": history.outer_step, "restarted": restarted}


def restore_updates(history: LevelHistory, stored: Mapping[str, Any], device: torch.device) -> None:
    updates = [_restored(update, device) for update in stored["updates"]]
    history.updates = deque(updates, maxlen=history.updates.maxlen)
    history.outer_step = stored["outer_step"]
    history.restarted = frozenset(map(tuple, stored["restarted"]))


def _stored(update: RecordedUpdate) -> dict[str, Any]:
    step = update.step
    if step.before is not None or step.after or update.hook_tensors:
        raise CheckpointError(
            "a checkpoint cannot hold what hooks and callbacks changed in an update, which solver.outer_steps above 1 "
            "would differentiate after resuming: leave out the hooks, or outer_steps"
        )
    if any(part.generators for part in update.record):
        raise CheckpointError(
            "a checkpoint cannot hold the state of a torch.Generator that a loss uses, but resuming with "
            "solver.outer_steps above 1 would need it: use torch's global generator"
        )
    _check_plain([(part.batch, part.draws) for part in update.record])
    parts = [{"batch": part.batch, "draws": part.draws, "state": part.state.state_dict()} for part in update.record]
    return {
        "record": parts,
        "buffers": list(update.buffers),
        "step": {**_as_dict(step), "restarted": sorted(map(list, step.restarted)), "rule": _as_dict(step.rule)},
        "end": dict(update.end),
        "unfollowed": update.unfollowed,
        "outer_step": update.outer_step,
    }


def _check_plain(value: Any) -> None:
    """Raise CheckpointError for batches or draws that would not come back as they were."""
    if type(value) in (list, tuple, dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item)
    elif not (value is None or isinstance(value, bool | int | float | str | Tensor | np.ndarray | np.generic)):
        raise CheckpointError(
            f"a checkpoint cannot hold a batch or draws with a {type(value).__name__}, on which solver.outer_steps "
            "above 1 looks back after resuming: use tensors in dicts, lists and tuples"
        )


def _restored(stored: Mapping[str, Any], device: torch.device) -> RecordedUpdate:
    def placed(value: Any) -> Any:
        return map_tensors(lambda tensor: tensor.to(device), value)

    record = tuple(
        RecordedBatch(placed(part["batch"]), placed(part["draws"]), RandomState(**part["state"]))
        for part in stored["record"]
    )
    fields_of_step = placed(stored["step"])
    restarted = frozenset(map(tuple, fields_of_step["restarted"]))
    step = Step(**{**fields_of_step, "rule": UpdateRule(**fields_of_step["rule"]), "restarted": restarted})
    return RecordedUpdate(
        record, placed(stored["buffers"]), step, placed(stored["end"]), {}, stored["unfollowed"], stored["outer_step"]
    )


def _as_dict(value: Any) -> Any:
    """The fields of a dataclass, by name."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
