"""Signals to commands that export, evaluate, study and compare, and to their children."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from trials.base import SCRATCH, TINY, Named, Outcome, command, contents, copied, ended, finished, kind, start
from trials.kills import SETTINGS, counted, differences, signal_at, started, whole

TITLE = (
    "SIGKILL in export, evaluate, final evaluation, then again; TERM, INT, HUP, STOP/CONT; "
    "study and compare, parents and children"
)
EXPORT = ["export", "run", "output=new", "head=own", "references=false"]
EVALUATE = ["evaluate", "run"]
FINAL = [*TINY, "data.path=images", "steps=2", "output=run"]
SMALL = [setting for setting in TINY if not setting.startswith("steps=")]
STUDY = ["study", *SMALL, "data.path=images", "steps=2", "seeds=1", "output=study"]
COMPARE = ["compare", *SMALL, "data.path=images", "solvers=identity,neumann", "warmup=1", "rounds=1", "output=compared"]
PATIENCE = 120  # seconds that children have to end; they take a few


@cache
def undisturbed(*words: str) -> tuple[Path, int]:
    """What a command writes beside a run, and how many operations on files it makes."""
    folder = SCRATCH[0] / "_".join(words[:2]).replace("/", "")
    folder.mkdir()
    copied(folder, "images", "run")
    return folder, counted(folder, *words)[0]


@cache
def evaluated() -> tuple[Path, int]:
    """A run that ends with an evaluation, and the operations on files after its last checkpoint."""
    folder = SCRATCH[0] / "evaluated"
    shutil.copytree(finished() / "images", folder / "images")
    return folder, counted(folder, "train", *FINAL, after="step-2")[0]


def shown(folder: Path) -> dict[str, bytes]:
    """What a folder contains but for files of the trials and those that a kill leaves half written."""
    return {
        name: content
        for name, content in contents(folder).items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


def again(words: list[str], which: signal.Signals, share: float, folder: Path) -> list[str]:
    """Stop a command at a moment, then run it again: the files are those of one that was not stopped."""
    base, operations = undisturbed(*words)
    copied(folder, "images", "run")
    before = shown(folder)
    outcome = command(folder, *words, before=signal_at(int(share * operations), which))
    problems = outcome.problems(0, -which if which == signal.SIGKILL else 128 + which)
    after = shown(folder)
    problems += [f"{name} is lost or changed" for name in before if after.get(name) != before[name]]
    expected = shown(base)
    partly = [name for name in after if name not in before and after[name] != expected.get(name)]
    problems += [f"{name} is half written" for name in partly]
    if not (folder / "new").exists():  # an export is whole or not there
        problems += command(folder, *words).problems(0)
    left = shown(folder)
    different = [name for name in {*left, *expected} if left.get(name) != expected.get(name)]
    return problems + [f"{name} differs after the second time" for name in different]


def final_evaluation(share: float, folder: Path) -> list[str]:
    base, operations = evaluated()
    shutil.copytree(base / "images", folder / "images")
    outcome = command(folder, "train", *FINAL, before=signal_at(int(share * operations), after="step-2"))
    problems = outcome.problems(0, -signal.SIGKILL) + command(folder, "train", "resume=run").problems(0)
    return problems or differences(folder / "run", base / "run")


def stopped_training(which: signal.Signals, operation: int, folder: Path) -> list[str]:
    base, *_ = whole("warm starts")
    started(folder, "warm starts")
    words = ["train", *SETTINGS["warm starts"], "output=run"]

    def before(path: Path) -> None:
        handler = signal.default_int_handler if which == signal.SIGINT else signal.SIG_DFL
        signal.signal(which, handler)  # nohup and shells have commands ignore some
        signal_at(operation, which, after="step-1")(path)

    outcome = command(folder, *words, before=before)
    problems = outcome.problems(128 + which)
    if "resume=run" not in outcome.err:
        problems.append("the last line does not say how to resume")
    problems += command(folder, "train", "resume=run").problems(0)
    return problems or differences(folder / "run", base / "run")


def unstopped_training(act: Callable[[int], object], before: Callable[[Path], object], folder: Path) -> list[str]:
    base, _, seconds = whole("adam")
    started(folder, "adam")
    process = start(folder, "train", *SETTINGS["adam"], "output=run", before=before)
    time.sleep(0.5 * seconds)
    act(process)
    outcome = ended(process, folder)
    return outcome.problems(0) or differences(folder / "run", base / "run")


def hang_up(process: int) -> None:
    os.kill(process, signal.SIGHUP)


def pause(process: int) -> None:
    os.kill(process, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(process, signal.SIGCONT)


def twice(folder: Path) -> list[str]:
    """A second SIGTERM ends at once, and the run goes on from its last checkpoint."""
    base, *_ = whole("adam")
    started(folder, "adam")

    def both(path: Path) -> None:
        signal_at(30, signal.SIGTERM, "step-2")(path)
        signal_at(31, signal.SIGTERM, "step-2")(path)

    outcome = command(folder, "train", *SETTINGS["adam"], "output=run", before=both)
    problems = outcome.problems(-signal.SIGTERM, 128 + signal.SIGTERM)
    problems += command(folder, "train", "resume=run").problems(0)
    return problems or differences(folder / "run", base / "run")


def children(session: int) -> list[int]:
    """The running processes of a command but itself, by their session."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *_, own = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(own) == session and state != "Z" and int(path.parent.name) != session:
            processes.append(int(path.parent.name))
    return processes


def gone(session: int) -> list[str]:
    """A problem if processes of a command outlive it."""
    deadline = time.monotonic() + PATIENCE
    while children(session):
        if time.monotonic() > deadline:
            for process in children(session):
                os.kill(process, signal.SIGKILL)
            return ["processes outlive the command"]
        time.sleep(0.1)
    return []


def when(condition: Callable[[], object], process: int) -> None:
    """Wait until a condition holds or a command has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.02)


def scores(folder: Path) -> Any:
    """The scores and weights of a study."""
    runs = folder / "study" / "runs"
    weights = {
        path.relative_to(runs).as_posix(): path.read_bytes() for path in runs.rglob("step-2/weights.safetensors")
    }
    verdict = json.loads((folder / "study" / "study.json").read_text())["verdict"]
    return verdict["differences"], weights


@cache
def studied() -> Path:
    """A study that nothing stops."""
    folder = SCRATCH[0] / "studied"
    shutil.copytree(finished() / "images", folder / "images")
    outcome = command(folder, *STUDY)
    assert outcome.status == 0, outcome.err
    return folder


def study(which: signal.Signals, part: bool, folder: Path) -> list[str]:
    """Stop a study, or a part of it, while a part trains; it resumes to the same scores."""
    shutil.copytree(studied() / "images", folder / "images")
    process = start(folder, *STUDY)
    when(lambda: list(folder.glob("study/runs/*/checkpoint/step-1")), process)
    for target in children(process) if part else [process]:
        os.kill(target, which)
    outcome = ended(process, folder)
    status = 1 if part else -which if which == signal.SIGKILL else 128 + which
    problems = outcome.problems(status) + gone(process)
    problems += command(folder, "study", "resume=study").problems(0)
    return problems or ([] if scores(folder) == scores(studied()) else ["the resumed study differs"])


def compare(which: signal.Signals, folder: Path) -> list[str]:
    """Stop a comparison while a solver is measured: nothing is left."""
    shutil.copytree(finished() / "images", folder / "images")
    process = start(folder, *COMPARE)
    when(lambda: children(process), process)
    time.sleep(1)
    os.kill(process, which)
    outcome: Outcome = ended(process, folder)
    return outcome.problems(-which if which == signal.SIGKILL else 128 + which) + gone(process)


@kind(TITLE)
def signals(generator: random.Random) -> Iterator[Named]:
    for number in range(10):
        share = round(0.1 * number + generator.uniform(0, 0.099), 3)
        name = f"at {share} of its operations on files, then again"
        if number % 5 < 2:
            yield f"export killed {name}", partial(again, EXPORT, signal.SIGKILL, share)
        elif number % 5 == 2 or number == 3:
            yield f"evaluate killed {name}", partial(again, EVALUATE, signal.SIGKILL, share)
        else:
            yield f"final evaluation killed {name}", partial(final_evaluation, share)
    for which in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        operation = generator.randrange(60)
        yield f"{which.name} to a run at operation {operation}", partial(stopped_training, which, operation)
    for which, words in ((signal.SIGTERM, EXPORT), (signal.SIGINT, EVALUATE)):
        share = round(generator.uniform(0.05, 0.6), 3)
        yield f"{which.name} to {words[0]} at {share} of its operations", partial(again, words, which, share)
    ignoring = partial(unstopped_training, hang_up, lambda folder: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    yield "SIGHUP to a run that ignores it", ignoring
    yield "SIGSTOP and SIGCONT to a run", partial(unstopped_training, pause, lambda folder: None)
    yield "SIGTERM twice to a run", twice
    for which in (signal.SIGKILL, signal.SIGTERM):
        yield f"{which.name} to a study, resumed", partial(study, which, False)
    yield "SIGKILL to a part of a study, resumed", partial(study, signal.SIGKILL, True)
    for which in (signal.SIGKILL, signal.SIGTERM):
        yield f"{which.name} to a comparison", partial(compare, which)
