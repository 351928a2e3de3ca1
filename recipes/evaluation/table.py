"""Formats scores as a table."""

from __future__ import annotations

from collections.abc import Sequence

from multilevel.recipes.evaluation.labels import labels_phrase
from multilevel.recipes.evaluation.protocols import PROTOCOLS
from multilevel.recipes.evaluation.scores import Score, metric_title
from multilevel.recipes.evaluation.supervised import COLUMN, SupervisedFromScratch
from multilevel.solvers import SettingError


def format_table(scores: Sequence[Score], split: str = "test", metric: str | None = None) -> str:
    """One row per encoder and one column per protocol, in percent; one block per amount of labels.

    Args:
        scores: one or more scores.
        split: the split of the scores.
        metric: the metric to show; None takes each score's first.

    Raises:
        SettingError: a score lacks ``metric``.
    """
    for score in scores:
        if metric is not None and metric not in score.metrics:
            raise SettingError("evaluation.metric", metric, f"one of {', '.join(score.metrics)}")
    amounts = list(dict.fromkeys(score.labels for score in scores))
    blocks = []
    for amount in amounts:
        title = f"{split} {metric_title(_shown(scores[0], metric))}"
        title += f", {labels_phrase(amount)}" if amounts != [1.0] else ""
        blocks.append(_block([score for score in scores if score.labels == amount], title, metric))
    return "\n\n".join(blocks)


def protocol_title(name: str) -> str:
    """The heading of a protocol's column."""
    return SupervisedFromScratch.title if name == COLUMN else PROTOCOLS[name].title


def _block(scores: Sequence[Score], heading: str, metric: str | None) -> str:
    cells = {(score.encoder, score.protocol): f"{100 * score.metrics[_shown(score, metric)]:.1f}%" for score in scores}
    encoders = list(dict.fromkeys(encoder for encoder, _ in cells))
    titles: dict[str, str] = {}
    for score in scores:
        shown = _shown(score, metric)
        suffix = f" ({metric_title(shown)})" if shown != _shown(scores[0], metric) else ""
        titles.setdefault(score.protocol, protocol_title(score.protocol) + suffix)
    width = max(len(name) for name in [heading, *encoders])
    lines = [heading.ljust(width) + "".join(f"  {title}" for title in titles.values())]
    for encoder in encoders:
        row = (f"  {cells.get((encoder, protocol), '-'):>{len(title)}}" for protocol, title in titles.items())
        lines.append(encoder.ljust(width) + "".join(row))
    return "\n".join(lines)


def _shown(score: Score, metric: str | None) -> str:
    return metric or next(iter(score.metrics))
