"""Draws the pictures of a study, each with its caption for the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multilevel.recipes.evaluation.labels import Amount, labels_phrase
from multilevel.runs.curves import words
from multilevel.runs.folder import RunFolder
from multilevel.study.part import run_path
from multilevel.study.pictures import draw_costs, draw_differences, draw_over, draw_over_time, draw_scores
from multilevel.study.scores import MAJORITY, TRAINED, reference_means
from multilevel.study.verdict import points

CURVE_LEVELS = {"finetune": "training images", "mask": "held-out images"}


@dataclass(frozen=True)
class Figure:
    """A picture in the study's folder."""

    path: Path
    title: str
    caption: str


class Figures:
    """Draws the figures that a result has data for.

    Args:
        result: the contents of study.json.
        folder: the study's folder.
    """

    def __init__(self, result: Mapping[str, Any], folder: Path) -> None:
        self.result, self.folder = result, folder
        self.study, self.question = result["study"], result["question"]
        self.arms = {arm["name"]: arm for arm in result["arms"] if arm["seeds"]}
        self.score, self.most = self.question["score"], self.question["labels"]

    def draw(self) -> list[Figure]:
        """Draw every picture that has data."""
        makers: list[Callable[[], Iterator[Figure]]] = [
            self.scores, self.differences, self.costs, self.labels, self.guidance, self.transfer, self.time
        ]  # fmt: skip
        return [figure for make in makers for figure in make()]

    def scores(self) -> Iterator[Figure]:
        path = self.folder / "scores.png"
        scores = self._by_arm("scores")
        if scores:
            draw_scores(path, scores, self._references("scores"), self.score)
            caption = (
                f"{self._score_on(self.study['data'])} on its {self.question['split']} images. Each dot is a seed, "
                "the diamond the mean, the bar its 95% interval over seeds (Student's t). Lines: references, by the "
                "same protocol; supervised from scratch is the same network trained on the labels."
            )
            yield Figure(path, "Score by mask policy", caption)

    def differences(self) -> Iterator[Figure]:
        path, baseline = self.folder / "differences.png", self.question["baseline"]
        comparisons = [comparison for comparison in self.result["comparisons"] if comparison["labels"] == self.most]
        if comparisons:
            effect = self.study["minimum_effect"]
            draw_differences(path, comparisons, effect, f"difference from {baseline} (points)")
            caption = (
                f"Score minus the score of {baseline} masks with the same seed (the same initial weights and data "
                "splits), paired by seed. If the whole bar is above 0, the policy pays; if it is below the upper "
                f"edge of the band ({points(effect)} points), it does not."
            )
            yield Figure(path, "Paired differences", caption)

    def costs(self) -> Iterator[Figure]:
        path = self.folder / "costs.png"
        seconds, memory = (
            {name: [part[key] for part in self.result["parts"] if part["arm"] == name] for name in self.arms}
            for key in ("seconds", "peak_memory_mib")
        )
        draw_costs(path, seconds, memory)
        count = self.result["machine"]["parts_side_by_side"]
        side = f" {count} parts ran side by side, which slows each." if count > 1 else ""
        yield Figure(path, "Cost", f"Only training, without the evaluation; each dot is one seed.{side}")

    def labels(self) -> Iterator[Figure]:
        amounts, path = self.study["labels"], self.folder / "labels.png"
        if len(amounts) > 1:
            shares = all(not isinstance(amount, str) and amount <= 1 for amount in amounts)
            key = "labels" if shares else "images"
            lines = {name: self._by_labels(arm["scores"], key) for name, arm in self.arms.items()}
            label = "share of the labels" if shares else "labelled images"
            draw_over(path, {self.study["data"]: lines}, label, self.question["score_without_labels"])
            caption = (
                f"The same encoders, the protocol fitted to {self._amounts()}, with 95% intervals over seeds. Learned "
                "masks were always trained on all labels of the training images, so this measures the encoder, not "
                "training with few labels."
            )
            yield Figure(path, "Score by number of labels", caption)

    def guidance(self) -> Iterator[Figure]:
        if not any(arm["guidance"] is not None for arm in self.arms.values()):
            return
        panels = {self.study["data"]: self._guidance_lines("scores")}
        if self.study["transfer"]:
            panels[self.study["transfer_name"]] = self._guidance_lines("transfer")
        path = self.folder / "guidance.png"
        draw_over(path, panels, "share of guided masks", self.score)
        caption = "Random masks are at 0. Transfer shows what guidance by this task costs on another data set."
        yield Figure(path, "Score by share of guided masks", caption)

    def transfer(self) -> Iterator[Figure]:
        scores = self._by_arm("transfer")
        if scores:
            path = self.folder / "transfer.png"
            draw_scores(path, scores, self._references("transfer"), f"{self.score}, {self.study['transfer_name']}")
            caption = f"{self._score_on(self.study['transfer_name'])}: encoders trained on {self.study['data']}."
            yield Figure(path, "Transfer to another data set", caption)

    def time(self) -> Iterator[Figure]:
        path, ends = self.folder / "time.png", defaultdict(list)
        scores = self._by_arm("scores")
        for part in self.result["parts"]:
            values = scores[part["arm"]]["values"] if part["arm"] in scores else {}
            if part["seed"] in values:
                ends[part["arm"]].append((part["seconds"], values[part["seed"]]))
        if ends:
            curves = {name: self._curves(name, arm["seeds"][0]) for name, arm in self.arms.items()}
            majority = next(iter(self._by_arm("scores", MAJORITY).values()), None)
            lines = {} if majority is None else {MAJORITY: majority["mean"]}
            draw_over_time(path, curves, ends, lines, words(self.study["metric"]))
            caption = (
                f"Stars: {self.question['split']} score of every seed at the end of training. Lines: moving mean of "
                "the accuracy of the jointly trained classifier on its batches, first seed. These are not test "
                "results: the training images train the classifier, and the held-out images the masking network."
            )
            yield Figure(path, "Accuracy against training time", caption)

    def galleries(self) -> list[Figure]:
        """The masks of each arm, of its first seed."""
        figures = []
        for name, arm in self.arms.items():
            path = run_path(self.folder, f"{name}-seed{arm['seeds'][0]}") / "masks.png"
            if path.exists():
                figures.append(Figure(path, name, f"seed {arm['seeds'][0]}"))
        return figures

    def _find(
        self, scores: Sequence[Mapping[str, Any]], labels: Amount, encoder: str = TRAINED
    ) -> Mapping[str, Any] | None:
        key = {"encoder": encoder, "protocol": self.study["protocol"], "labels": labels, "metric": self.study["metric"]}
        return next((score for score in scores if key.items() <= score.items()), None)

    def _by_labels(self, scores: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, Mapping[str, Any]]]:
        rows = [row for amount in self.study["labels"] if (row := self._find(scores, amount)) is not None]
        return [(row[key], row) for row in rows]

    def _amounts(self) -> str:
        """The amounts of labels in words, with the images that they come to if that is known."""
        scores = next(iter(self.arms.values()))["scores"]
        named = []
        for amount in self.study["labels"]:
            row = self._find(scores, amount)
            images = f" ({row['images']:,} images)" if row is not None and row["images"] else ""
            named.append(f"{labels_phrase(amount)}{images}")
        return f"{', '.join(named[:-1])} and {named[-1]}"

    def _by_arm(self, table: str, encoder: str = TRAINED) -> dict[str, Mapping[str, Any]]:
        scores = {name: self._find(arm[table], self.most, encoder) for name, arm in self.arms.items()}
        return {name: score for name, score in scores.items() if score is not None}

    def _references(self, table: str) -> dict[str, float]:
        """All except the majority class, which would need most of the axis."""
        arms, key = list(self.arms.values()), (self.study["protocol"], self.most, self.study["metric"])
        means = reference_means(arms, table, *key)
        return {encoder: mean for encoder, mean in means.items() if encoder != MAJORITY}

    def _guidance_lines(self, table: str) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
        lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
        for name, score in self._by_arm(table).items():
            arm = self.arms[name]
            if not arm["settings"] and (arm["learned"] or arm["policy"] == "random"):
                lines[arm["policy"]].append((arm["guided_share"], score))
        return {policy: sorted(line, key=lambda point: point[0]) for policy, line in lines.items()}

    def _curves(self, name: str, seed: int) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
        records = RunFolder(run_path(self.folder, f"{name}-seed{seed}")).read_metrics()
        curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
        for level, images in CURVE_LEVELS.items():
            points = [
                (record["seconds"], record["metrics"][self.study["metric"]])
                for record in records
                if record["level"] == level and record["metrics"].get(self.study["metric"]) is not None
            ]
            if points:
                seconds, values = zip(*points, strict=True)
                curves[images] = (seconds, values)
        return curves

    def _score_on(self, data: str) -> str:
        labels = "" if self.most != 1 else " with all labels"  # the score's name has any other amount
        return f"{self.score[0].upper()}{self.score[1:]}{labels} of {data}"
