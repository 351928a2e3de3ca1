"""Several commands at the same time: one output, a run that trains, two resumes, one second, a link that moves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random

from PIL import Image

from trials.base import SCRATCH, TINY, Named, Outcome, command, copied, ended, finished, kind, start, write_images

STEPS = 40
TRAIN = ["train", *TINY, "data.path=images", "evaluate=false", f"steps={STEPS}"]
STUDY = ["study", "data=digits", "seeds=1", "steps=1", "data.limit=300", "data.batch_size=16"]
STUDY += ["evaluation.protocols=[knn]", "model.width=16", "model.heads=2", "model.depth=1"]


@kind("concurrency: same output, live and double resume")
def trials(random: Random) -> Iterator[Named]:
    yield "two runs with one output", _two_runs(["steps=4"])
    yield "two runs of other seeds with one output", _two_runs(["steps=4", "seed=1"])
    yield "two exports of one run with one output", _two_exports
    yield "two predictions with one output", _two_predictions
    yield "two monitors with one output", _two_monitors
    yield "resume of a run that trains", _live_resume(paused=False)
    yield "resume of a run that is stopped", _live_resume(paused=True)
    yield "evaluation of a run that trains", _live_reader("evaluate", "run")
    yield "export of a run that trains", _live_reader("export", "run", "output=export", "head=own", "references=false")
    for delay in (0.0, random.uniform(0.1, 0.4), random.uniform(0.5, 1.5)):
        yield f"two resumes, {delay:.2f} s apart", _two_resumes(delay)
    yield "two runs in one second", _one_second(2)
    yield "three runs in one second", _one_second(3)
    yield "two resumes of a study", _two_studies
    yield "predictions while the link moves", _moving_link
    yield "two promotions of one link", _two_promotions


def together(folder: Path, *commands: Sequence[str], delay: float = 0.0) -> list[Outcome]:
    """Run commands at the same time in one folder."""
    processes = []
    for number, words in enumerate(commands):
        time.sleep(delay if number else 0)
        processes.append(start(folder, *words, name=f"-{number}"))
    return [ended(process, folder, name=f"-{number}") for number, process in enumerate(processes)]


def one_wins(ends: Sequence[Outcome]) -> list[str]:
    """What is wrong where one command does the work and the others are refused."""
    problems = [problem for end in ends for problem in end.problems(0, 2)]
    won = sum(end.status == 0 for end in ends)
    return problems + ([] if won == 1 else [f"{won} of {len(ends)} did the work"])


def whole_log(run: Path, steps: int) -> list[str]:
    """What is wrong with the log and the summary of a run that has ended."""
    if not (run / "summary.json").exists():
        return ["no summary"]
    json.loads((run / "summary.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counts: dict[str, int] = {}
    for record in records:
        if "loss" in record and "level" in record:
            counts[record["level"]] = counts.get(record["level"], 0) + 1
    expected = {steps * factor for factor in (1, 2)}
    wrong = {level: count for level, count in counts.items() if count not in expected}
    return [f"updates in the log: {wrong}, of {steps} steps"] if wrong or not counts else []


def _wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.01)


def _lines(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _two_runs(other: list[str]) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images")
        words = [*TRAIN, "output=run", "steps=4"]
        problems = one_wins(together(folder, words, [*words, *other]))
        return problems + whole_log(folder / "run", 4)

    return run


def _two_exports(folder: Path) -> list[str]:
    copied(folder, "images", "run")
    shutil.move(folder / "images", folder / "moved")  # the path in the run is that of the first images
    words = ["export", "run", "output=export", "head=own", "references=false"]
    ends = together(folder, words, words)
    problems = [problem for end in ends for problem in end.problems(0, 2)]
    if all(end.status for end in ends):
        problems.append("none has exported")
    predicted = command(folder, "predict", "export", "moved", "output=p.csv")
    return problems + predicted.problems(0)


def _two_predictions(folder: Path) -> list[str]:
    copied(folder, "images", "export")
    words = ["predict", "export", "images", "output=p.csv"]
    problems = [problem for end in together(folder, words, words) for problem in end.problems(0)]
    with (folder / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    left = [f"{path.name} is left" for path in folder.glob(".*partial*")]
    return problems + left + ([] if len(rows) == 20 and all(row["label"] for row in rows) else ["rows are missing"])


def _two_monitors(folder: Path) -> list[str]:
    copied(folder, "images", "export")
    commands = [["monitor", "export", place, "output=m.json"] for place in ("images", "images/a")]
    problems = [problem for end in together(folder, *commands) for problem in end.problems(0, 3, 4)]
    json.loads((folder / "m.json").read_text())
    with Image.open(folder / "m.png") as picture:
        picture.load()
    return problems


def _training(folder: Path, lines: int) -> int:
    """A run that trains and has written more than so many lines of its log."""
    copied(folder, "images")
    process = start(folder, *TRAIN, "output=run")
    _wait(lambda: _lines(folder / "run") > lines)
    return process


def _live_resume(paused: bool) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        process = _training(folder, 20)
        if paused:
            os.kill(process, signal.SIGSTOP)
        second = ended(start(folder, "train", "resume=run", name="-1"), folder, name="-1")
        if paused:
            os.kill(process, signal.SIGCONT)
        first = ended(process, folder)
        return first.problems(0) + second.problems(2) + whole_log(folder / "run", STEPS) + same(folder / "run")

    return run


def _live_reader(*words: str) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        process = _training(folder, 20)
        second = ended(start(folder, *words, name="-1"), folder, name="-1")
        first = ended(process, folder)
        return first.problems(0) + second.problems(0, 2) + whole_log(folder / "run", STEPS) + same(folder / "run")

    return run


def _two_resumes(delay: float) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        process = _training(folder, 30)
        os.kill(process, signal.SIGKILL)
        ended(process, folder)
        words = ["train", "resume=run"]
        ends = together(folder, words, words, delay=delay)
        problems = [problem for end in ends for problem in end.problems(0, 2)]
        if ends[0].status and ends[1].status:
            problems.append("none has resumed")
        if sum("resumed at step" in end.err + end.out for end in ends) != 1:
            problems.append("not exactly one has resumed")
        return problems + whole_log(folder / "run", STEPS) + same(folder / "run")

    return run


@cache
def _undisturbed() -> dict[str, bytes]:
    """The last checkpoint of a run that nothing disturbs."""
    folder = SCRATCH[0] / "undisturbed"
    shutil.copytree(finished() / "images", folder / "images")
    outcome = command(folder, *TRAIN, "output=run")
    assert outcome.status == 0, outcome.err
    return _tensors(folder / "run")


def _tensors(run: Path) -> dict[str, bytes]:
    newest = run / "checkpoint" / f"step-{STEPS}"
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def same(run: Path) -> list[str]:
    """Whether the last checkpoint is that of a run that nothing disturbs, to the last bit."""
    own, expected = _tensors(run), _undisturbed()
    return [] if own == expected and own else ["the last checkpoint differs from that of an undisturbed run"]


def _one_second(count: int) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images")
        time.sleep(1 - time.time() % 1)
        words = [*TRAIN, "steps=2"]
        ends = together(folder, *([*words, f"seed={seed}"] for seed in range(count)))
        problems = [problem for end in ends for problem in end.problems(0)]
        runs = list((folder / "runs").iterdir()) if (folder / "runs").exists() else []
        seeds = {line for run in runs for line in (run / "config.yaml").read_text().splitlines() if line[:5] == "seed:"}
        if len(runs) != count or len(seeds) != count:
            problems.append(f"{len(runs)} folders with {len(seeds)} seeds, of {count} runs")
        return problems + [problem for run in runs for problem in whole_log(run, 2)]

    return run


def _two_studies(folder: Path) -> list[str]:
    process = start(folder, *STUDY, "output=study")
    _wait(lambda: any((folder / "study").glob("runs/*/config.yaml")), 240)
    os.killpg(process, signal.SIGKILL)
    ended(process, folder)
    if not (folder / "study" / "study.yaml").exists():
        return ["the study has not begun"]
    words = ["study", "resume=study"]
    problems = one_wins(together(folder, words, words))
    result = folder / "study" / "study.json"
    if not result.exists():
        return [*problems, "no result"]
    failed = json.loads(result.read_text())["failed"]
    problems += [f"parts failed: {failed}"] if failed else []
    for run in sorted((folder / "study" / "runs").iterdir()):
        if run.is_dir():
            settings = (run / "config.yaml").read_text().splitlines()
            problems += whole_log(run, int(next(line for line in settings if line.startswith("steps:"))[6:]))
    return problems


def _moving_link(folder: Path) -> list[str]:
    base = folder / "line"
    copied(folder, "images", "export")
    base.mkdir()
    shutil.copytree(folder / "export", base / "second")
    config = json.loads((base / "second" / "config.json").read_text())
    names = {"0": "c", "1": "d"}
    config |= {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}}
    (base / "second" / "config.json").write_text(json.dumps(config))
    (base / "second" / "inspection.json").unlink(missing_ok=True)
    problems = command(folder, "promote", "export", "link=line/current").problems(0)
    for number in range(6):
        moved = "line/second" if number % 2 == 0 else "export"
        words = [["predict", "line/current", "images", "output=p.csv"], ["promote", moved, "link=line/current"]]
        ends = together(folder, *words)
        problems += [problem for end in ends for problem in end.problems(0)]
        with (folder / "p.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        models = {row["model"] for row in rows}
        labels = {row["label"] for row in rows}
        if len(models) != 1 or not (labels <= {"a", "b"} or labels <= {"c", "d"}) or len(rows) != 20:
            problems.append(f"rows of {len(models)} models with labels {sorted(labels)}")
    return problems


def _two_promotions(folder: Path) -> list[str]:
    copied(folder, "export")
    shutil.copytree(folder / "export", folder / "second")
    write_images(folder / "images", count=2)
    problems = []
    for _ in range(4):
        words = [["promote", export, "link=current"] for export in ("export", "second")]
        problems += [problem for end in together(folder, *words) for problem in end.problems(0, 2)]
        problems += command(folder, "predict", "current", "images", "output=p.csv").problems(0)
        json.loads((folder / "current.history.json").read_text())
    return problems + [f"{path.name} is left" for path in folder.glob(".*partial*")]
