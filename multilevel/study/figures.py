"""Draws the pictures of a study, each with its caption for the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multilevel.recipes.evaluation import metric_title
from multilevel.recipes.evaluation.labels import Amount
from multilevel.reports.texts import Texts
from multilevel.runs.folder import RunFolder
from multilevel.study.part import run_path
from multilevel.study.pictures import draw_costs, draw_differences, draw_over, draw_over_time, draw_scores
from multilevel.study.scores import MAJORITY, TRAINED, reference_means
from multilevel.study.verdict import points
from multilevel.study.words import labels_in_words, listed, score_in_words

CURVE_LEVELS = {"finetune": "study_legend_training", "mask": "study_legend_held_out"}


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
        texts: of the language of titles and captions.
        words: of the language of the pictures themselves, whose characters need a font.
    """

    def __init__(self, result: Mapping[str, Any], folder: Path, texts: Texts, words: Texts) -> None:
        self.result, self.folder, self.texts, self.words = result, folder, texts, words
        self.study, self.question = result["study"], result["question"]
        self.arms = {arm["name"]: arm for arm in result["arms"] if arm["seeds"]}
        self.most, self.split = self.question["labels"], texts.named("split", self.question["split"])

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
            draw_scores(path, scores, self._references("scores"), self._score(self.words, self.most), self.words)
            yield self._figure(path, "scores", split=self.split, data=self.study["data"], **self._scored())

    def differences(self) -> Iterator[Figure]:
        path, baseline = self.folder / "differences.png", self.question["baseline"]
        comparisons = [comparison for comparison in self.result["comparisons"] if comparison["labels"] == self.most]
        if comparisons:
            effect, label = self.study["minimum_effect"], self.words("study_axis_difference", baseline=baseline)
            draw_differences(path, comparisons, effect, label, self.words)
            yield self._figure(path, "differences", baseline=baseline, effect=points(effect))

    def costs(self) -> Iterator[Figure]:
        path = self.folder / "costs.png"
        seconds, memory = (
            {name: [part[key] for part in self.result["parts"] if part["arm"] == name] for name in self.arms}
            for key in ("seconds", "peak_memory_mib")
        )
        draw_costs(path, seconds, memory, self.words)
        title, count = self.texts("study_figure_costs"), self.result["machine"]["parts_side_by_side"]
        jobs = self.texts("study_figure_costs_caption_jobs", count=count)
        yield Figure(path, title, jobs if count > 1 else self.texts("study_figure_costs_caption"))

    def labels(self) -> Iterator[Figure]:
        amounts, path = self.study["labels"], self.folder / "labels.png"
        if len(amounts) > 1:
            shares = all(not isinstance(amount, str) and amount <= 1 for amount in amounts)
            key = "labels" if shares else "images"
            lines = {name: self._by_labels(arm["scores"], key) for name, arm in self.arms.items()}
            label = self.words("study_axis_shares" if shares else "study_axis_images")
            draw_over(path, {self.study["data"]: lines}, label, self._score(self.words, 1.0), self.words)
            yield self._figure(path, "labels", amounts=self._amounts())

    def guidance(self) -> Iterator[Figure]:
        if not any(arm["guidance"] is not None for arm in self.arms.values()):
            return
        panels = {self.study["data"]: self._guidance_lines("scores")}
        if self.study["transfer"]:
            panels[self.study["transfer_name"]] = self._guidance_lines("transfer")
        path, score = self.folder / "guidance.png", self._score(self.words, self.most)
        draw_over(path, panels, self.words("study_axis_guidance"), score, self.words)
        yield self._figure(path, "guidance")

    def transfer(self) -> Iterator[Figure]:
        scores = self._by_arm("transfer")
        if scores:
            path, other = self.folder / "transfer.png", self.study["transfer_name"]
            label = self.words("study_axis_transfer", score=self._score(self.words, self.most), data=other)
            draw_scores(path, scores, self._references("transfer"), label, self.words)
            yield self._figure(path, "transfer", other=other, data=self.study["data"], **self._scored())

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
            metric = self.words.named("metric", self.study["metric"], metric_title(self.study["metric"]))
            draw_over_time(path, curves, ends, lines, metric, self.words)
            yield self._figure(path, "time", split=self.split)

    def galleries(self) -> list[Figure]:
        """The masks of each arm, of its first seed."""
        figures = []
        for name, arm in self.arms.items():
            path = run_path(self.folder, f"{name}-seed{arm['seeds'][0]}") / "masks.png"
            if path.exists():
                figures.append(Figure(path, name, self.texts("study_gallery", seed=arm["seeds"][0])))
        return figures

    def _figure(self, path: Path, name: str, **values: Any) -> Figure:
        caption = self.texts(f"study_figure_{name}_caption", **values)
        return Figure(path, self.texts(f"study_figure_{name}"), caption[0].upper() + caption[1:])

    def _score(self, texts: Texts, amount: Amount) -> str:
        return score_in_words(self.study["protocol"], self.study["metric"], amount, texts)

    def _scored(self) -> dict[str, str]:
        """The names of the score and of its labels, for captions."""
        return {"score": self._score(self.texts, 1.0), "labels": labels_in_words(self.most, self.texts)}

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
            row, labels = self._find(scores, amount), labels_in_words(amount, self.texts)
            images = row["images"] if row is not None else None
            named.append(self.texts("labels_images", labels=labels, images=f"{images:,}") if images else labels)
        return listed(named, "and", self.texts)

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
                curves[self.words(images)] = (seconds, values)
        return curves
